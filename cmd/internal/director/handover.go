package director

import (
	"errors"
	"log/slog"
	"strings"
	"time"

	"vstun/balancer/conntab"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/daemon"
	"vstun/cmd/internal/tunnel"
	"vstun/routing"
	"vstun/tundev"
)

// A director that systemd restarts passes its devices on: systemd holds the descriptors of their queues, in which
// packets wait. Routes, rules and sysctls stay, too, and the journal lists them for the successor.
//
//	director ──SIGTERM, SIGKILL──> director undo ──> the next director
//	devices, journal ────────────────────────────────> adopted, if undo finds that it starts
//	                                   └─> undone, if it does not
//
// SIGTERM does not say whether a start follows. The command undo asks systemd.
//
// Without systemd, a director that is killed loses its devices. The next one adopts the rest. At SIGTERM a director
// undoes its changes.

// The names of the queues in systemd's descriptor store.
const (
	storedClients = "clients" // of dataPlane.device
	storedLocal   = "local"   // of dataPlane.local
	storedTunnel  = "tunnel-" // of a point-to-point tunnel, whose name follows
)

// handover is the part of the director that outlives its process.
type handover struct {
	log     *slog.Logger
	allowed bool // the unit has a descriptor store, and runs the command undo
	adopted bool // the devices are a predecessor's
	stored  bool // the service manager has the queues
	leaves  bool // the process ends, and a successor or the command undo takes over
	tunnels keptTunnels
	moved   bool // the next start has another control socket, and does not find what this process would leave
}

// take adopts the devices of stored, if there are any, for p. Devices that are not as cfg has them are removed.
func (h *handover) take(stored daemon.Stored, cfg *config.Director, p *dataPlane) error {
	if len(stored) == 0 {
		return nil
	}
	clients, local := stored[storedClients], stored[storedLocal]
	delete(stored, storedClients)
	delete(stored, storedLocal)
	h.tunnels.take(stored)
	stored.Close() // those of other units
	if len(clients)+len(local) == 0 {
		return nil
	}
	var devices []string
	for _, fds := range [][]int{clients, local} {
		if len(fds) > 0 {
			if name, err := tundev.Identify(fds[0]); err == nil {
				devices = append(devices, name)
			}
		}
	}
	h.stored = true
	var errs [2]error
	p.device, errs[0] = tundev.Adopt(cfg.TUN, clientOptions(cfg), clients)
	p.local, errs[1] = tundev.Adopt(cfg.LocalTUN(), localOptions(cfg), local)
	if errs == [2]error{} {
		h.adopted = true
		return nil
	}
	for i, name := range []string{cfg.TUN, cfg.LocalTUN()} {
		if errs[i] != nil {
			h.log.Info("the devices of the last start are given up: packets that wait in them are lost", "device", name,
				"reason", errs[i])
		}
	}
	err := p.close()
	p.device, p.local = nil, nil
	return errors.Join(err, h.forget(devices...))
}

// firstAnswers is how long packets that have waited in an adopted device may wait on for the MAC addresses of their
// realservers.
const firstAnswers = 3 * time.Second

// begin is called when the workers begin.
func (h *handover) begin(p *dataPlane) {
	if h.adopted {
		p.shared.HoldMore(p.now() + conntab.Ticks(firstAnswers*conntab.PerSecond/time.Second))
	}
}

// openNetwork opens the manager of the network state with the journal at path. It adopts the changes of a predecessor
// that was killed or has passed its devices on. If it undid them first, replies of VS/NAT would reach clients as they
// are meanwhile, and end connections that go on with this process.
func (h *handover) openNetwork(path string) (*routing.Manager, error) {
	m, journal, err := routing.Adopt(path, h.log)
	if err == nil && h.adopted {
		h.log.Info("took over the devices of the last start, with the packets that wait in them", "journal", journal)
	}
	return m, err
}

// store gives the queues of p to the service manager, if it may keep them and has not got them.
func (h *handover) store(p *dataPlane) {
	if !h.allowed || h.stored {
		return
	}
	err := errors.Join(daemon.Store(storedClients, p.device.Descriptors()),
		daemon.Store(storedLocal, p.local.Descriptors()))
	if err != nil {
		h.log.Warn("systemd does not keep the devices over a restart: packets of that time will be lost", "error", err)
	}
	h.stored = err == nil
}

// end decides whether the process leaves its devices and changes. It does not if the configuration file at path cannot
// be read, since no start succeeds then, or names another control socket than control: a successor with that file would
// not find the journal.
func (h *handover) end(path, control string) {
	if !h.allowed || !h.stored {
		return
	}
	next, err := config.ControlSocket(path, "director")
	h.moved = err == nil && next != control
	h.leaves = err == nil && next == control
}

// endNetwork ends m, and undoes its changes unless they are left.
func (h *handover) endNetwork(m *routing.Manager) error {
	if h.leaves {
		m.Leave()
		return nil
	}
	return m.Close()
}

// close removes the devices that the service manager has, unless they are left.
func (h *handover) close(cfg *config.Director) error {
	err := h.tunnels.drop() // if the start has failed before the tunnels
	if !h.stored || h.leaves {
		return err
	}
	return errors.Join(err, h.forget(cfg.TUN, cfg.LocalTUN()))
}

// forget removes devices of which the service manager has descriptors, and lets it close these. It would do so too
// late for a device of the same name.
func (h *handover) forget(devices ...string) error {
	var errs []error
	for _, name := range devices {
		errs = append(errs, routing.RemoveLink(name))
	}
	h.stored = false
	return errors.Join(append(errs, daemon.Forget(storedClients), daemon.Forget(storedLocal))...)
}

// keptTunnels is the devices of point-to-point tunnels that the service manager keeps (tunnel.Keeper).
type keptTunnels map[string][]int

// take takes the descriptors of tunnels' devices out of stored.
func (k *keptTunnels) take(stored daemon.Stored) {
	*k = keptTunnels{}
	for name, fds := range stored {
		if device, is := strings.CutPrefix(name, storedTunnel); is {
			(*k)[device] = fds
			delete(stored, name)
		}
	}
}

// Kept implements tunnel.Keeper.
func (k *keptTunnels) Kept() map[string][]int {
	all := *k
	*k = nil
	return all
}

// Keep implements tunnel.Keeper.
func (k *keptTunnels) Keep(device string, fds []int) error {
	return daemon.Store(storedTunnel+device, fds)
}

// Forget implements tunnel.Keeper.
func (k *keptTunnels) Forget(device string) error { return daemon.Forget(storedTunnel + device) }

// drop removes the devices that nothing has adopted.
func (k *keptTunnels) drop() error {
	var errs []error
	for device, fds := range k.Kept() {
		daemon.Stored{device: fds}.Close()
		errs = append(errs, routing.RemoveLink(device), k.Forget(device))
	}
	return errors.Join(errs...)
}

// keeper returns what keeps the devices of tunnels, nil for nothing.
func (h *handover) keeper() tunnel.Keeper {
	if !h.allowed && len(h.tunnels) == 0 {
		return nil
	}
	return &h.tunnels
}

// journalPath returns the path of the journal that belongs to a control socket.
func journalPath(control string) string { return strings.TrimSuffix(control, ".sock") + ".journal" }
