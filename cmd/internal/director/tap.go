package director

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"

	"vstun/cmd/internal/config"
	"vstun/cmd/internal/director/plan"
	"vstun/encap/egress"
	"vstun/encap/packet/stats"
	"vstun/routing/neigh"
	"vstun/routing/query"
	"vstun/tundev"
	"vstun/tundev/tap"
)

// ethernet is the director's TAP device as a port of an Ethernet network. The director answers ARP and neighbour
// discovery there, and resolves its realservers: the host has no part in that.
//
//	network ── bridge ── TAP ┬─ ARP, neighbour discovery → answerer, resolver
//	                         └─ IP packets → workers → realservers and clients in the network
type ethernet struct {
	device   *tundev.Device
	index    int
	mac      [6]byte // of the port, which neighbours know; not the device's own
	senders  *tap.Senders
	ports    []*tap.Port // of the workers
	answerer *neigh.Answerer
	resolver *neigh.Resolver
}

// openEthernet opens the TAP device that cfg names, unless d is that device. On an error the device, if there is one,
// is returned, too.
func openEthernet(cfg *config.Director, d *tundev.Device, log *slog.Logger) (*tundev.Device, *ethernet, error) {
	if d == nil {
		own, err := deviceMAC(cfg)
		if err != nil {
			return nil, nil, err
		}
		o := clientOptions(cfg)
		o.MAC = own
		if d, err = tundev.Open(cfg.TUN, o); err != nil {
			return nil, nil, err
		}
	}
	link, err := net.InterfaceByName(cfg.TUN)
	if err != nil {
		return d, nil, fmt.Errorf("TAP device %s: %w", cfg.TUN, err)
	}
	if len(link.HardwareAddr) != 6 {
		return d, nil, fmt.Errorf("TAP device %s: its MAC address is %v, want one of 6 bytes", cfg.TUN,
			link.HardwareAddr)
	}
	mac := portMAC([6]byte(link.HardwareAddr))
	e := &ethernet{device: d, index: link.Index, mac: mac, senders: new(tap.Senders)}
	control := neigh.NewSharedPort(e.writer())
	e.answerer = neigh.OpenOn(control, neigh.LinkLocal(mac), log)
	e.resolver = neigh.NewResolver(control, e.index, mac)
	return d, e, nil
}

// deviceMAC returns the MAC address of the device for its host. It is locally administered. It stays the same after a
// restart as long as the bridge has its MAC address, which is unique in the network, so that neighbours' entries of
// portMAC stay right. It begins with fe: a bridge takes the lowest MAC address of its ports for its own, and must not
// change it.
func deviceMAC(cfg *config.Director) (mac [6]byte, err error) {
	seed := fmt.Sprint("no bridge", rand.Uint64(), rand.Uint64())
	if cfg.Bridge != "" {
		b, err := query.FindBridge(cfg.Bridge)
		if err != nil {
			return mac, err
		}
		if b.MAC != ([6]byte{}) { // as a bridge without ports has it
			seed = string(b.MAC[:])
		}
	}
	sum := sha256.Sum256([]byte(seed + " " + cfg.TUN))
	mac = [6]byte(sum[:])
	mac[0] = 0xfe
	return mac, nil
}

// portMAC returns the MAC address of the port for the network, made from the device's. It is locally administered, too.
func portMAC(device [6]byte) [6]byte {
	device[0] = 0x02
	return device
}

// port returns the port of a worker, for one queue.
func (e *ethernet) port(q *tundev.Queue) *tap.Port {
	p := tap.NewPort(q, e.mac, e, e.senders)
	e.ports = append(e.ports, p)
	return p
}

// writer returns a port for another sending goroutine.
func (e *ethernet) writer() *tap.Port {
	return tap.NewPort(e.device.Queues()[0].Writer(), e.mac, nil, e.senders)
}

// Receive implements tap.Neighbours.
func (e *ethernet) Receive(src, dst [6]byte, etherType uint16, payload []byte) bool {
	e.resolver.Receive(src, dst, etherType, payload)
	return e.answerer.Receive(src, dst, etherType, payload)
}

// read adds the counts of frames that no worker gets to t.
func (e *ethernet) read(t *stats.Tally) {
	for _, p := range e.ports {
		p.Read(t)
	}
}

// toClients returns a port for packets to clients, such as ICMP errors.
func (p *dataPlane) toClients() (egress.Port, error) {
	if p.ethernet != nil {
		return p.ethernet.writer(), nil
	}
	return p.openSender()
}

// askedByBridge returns added, the addresses of the TAP device's port, as addresses to ask for on its bridge, which has
// the same hosts behind it. It returns nil without a bridge, since the port is in no network yet, and without VIPs.
func askedByBridge(in plan.Inputs, added []neigh.Device) []neigh.Device {
	i := slices.IndexFunc(in.Devices, func(d query.Device) bool { return d.Name == in.Config.Bridge })
	if i < 0 {
		return nil
	}
	d := in.Devices[i]
	var vips []netip.Addr
	for _, a := range added[0].Addrs {
		if slices.Contains(plan.VIPs(in.Config), a) {
			vips = append(vips, a)
		}
	}
	if len(vips) == 0 {
		return nil
	}
	return []neigh.Device{{Name: d.Name, Index: d.Index, MAC: d.MAC, Addrs: vips}}
}

// resolvePort asks the kernel for the director's port of an Ethernet network. If that fails, what is known stays.
func (c *controller) resolvePort(in *plan.Inputs) {
	e := c.plane.ethernet
	if e == nil {
		return
	}
	devices, err := c.ask.devices()
	c.logFailure(slog.LevelWarn, "cannot ask the kernel for the MTU of the network: what is known stays", err)
	if err != nil {
		return
	}
	port := plan.Port{Device: e.index, MAC: e.mac, Own: []netip.Addr{neigh.LinkLocal(e.mac)}}
	for _, d := range devices {
		if d.Name == cmp.Or(in.Config.Bridge, in.Config.TUN) {
			port.MTU = d.MTU
		}
	}
	sender := netip.IPv4Unspecified()
	for _, a := range in.Config.Source.List() {
		// Neighbours would send the packets for an address of the host here.
		if _, local, err := c.ask.local(a); err == nil && !local {
			port.Own = append(port.Own, a)
			if a.Is4() {
				sender = a
			}
		}
	}
	e.resolver.SetSender(sender)
	in.Port = port
}
