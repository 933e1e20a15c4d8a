package agent

import (
	"context"
	"net/netip"
	"slices"
	"sync/atomic"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/encap"
	"vstun/encap/endpoint"
	"vstun/encap/packet"
	"vstun/encap/packet/stats"
	"vstun/encap/wireguard"
	"vstun/tundev"
)

// sealed is the agent's end of the tunnels of WireGuard. Its packets have a policy of their own: a packet from a peer's
// address in the tunnel is let in only if WireGuard has brought it, and another one is not.
type sealed struct {
	device *wireguard.Device // nil: there is no [wireguard] table
	policy atomic.Pointer[endpoint.Policy]
	worker *endpoint.Worker // the device's goroutines drive it
	// inbound takes the packets of point-to-point tunnels; nil: they are not open yet.
	inbound atomic.Pointer[endpoint.Inbound]
}

// open opens the sockets that cfg needs, and makes the worker, which writes to a queue of the TUN device.
func (s *sealed) open(cfg *config.WireGuard, q *tundev.Queue, merge bool) (err error) {
	if !cfg.On {
		return nil
	}
	s.worker = endpoint.NewWorker(nil, q.Writer(), &s.policy, merge)
	s.device, err = wireguard.Open(cfg.Listen, s.take)
	return err
}

// take processes packets of the device: those of point-to-point tunnels go to their devices, the others to the worker.
func (s *sealed) take(bufs []packet.Buf) error {
	if in := s.inbound.Load(); in != nil {
		if bufs = in.Take(bufs); len(bufs) == 0 {
			return nil
		}
	}
	return s.worker.Take(bufs)
}

// set puts cfg in force.
func (s *sealed) set(cfg *config.WireGuard) error {
	if s.device == nil {
		return nil
	}
	return s.device.Set(cfg.Config()) // it sends no packets
}

// endpoints returns the addresses outside of the tunnel of the peers, by their address in it.
func (s *sealed) endpoints() map[netip.Addr]netip.Addr {
	all := map[netip.Addr]netip.Addr{}
	if s.device != nil {
		for _, p := range s.device.Status().Peers {
			all[p.Address] = p.Endpoint.Addr()
		}
	}
	return all
}

// run works until ctx is cancelled.
func (s *sealed) run(ctx context.Context) error {
	if s.device == nil {
		<-ctx.Done()
		return nil
	}
	return s.device.Run(ctx)
}

// read adds the counts of refused messages to t.
func (s *sealed) read(t *stats.Tally) {
	if s.device != nil {
		s.device.Read(t)
	}
}

// close ends the tunnels, and the worker of their packets.
func (s *sealed) close() error {
	if s.device == nil {
		return nil
	}
	return s.device.Close()
}

// sealedChanges adds the differences between two tables of WireGuard to all.
func sealedChanges(all *[]api.Change, was, is *config.WireGuard) {
	for _, c := range config.WireGuardChanges(was, is) {
		text := c.Key + " changed"
		switch {
		case c.Key == "peer":
			text = "with address " + c.Peer.String() + ": added"
			if c.New == "" {
				text = "with address " + c.Peer.String() + ": removed"
			}
		case c.Old == "":
			text = c.Key + ": " + c.New + " added"
		case c.New == "":
			text = c.Key + ": " + c.Old + " removed"
		case c.Old != c.New:
			text = c.Key + " " + c.Old + " -> " + c.New
		}
		switch {
		case c.Key == "peer":
			text = "wireguard peer " + text
		case c.Peer.IsValid():
			text = "wireguard peer " + c.Peer.String() + ": " + text
		default:
			text = "wireguard: " + text
		}
		*all = append(*all, api.Change{Key: "wireguard." + c.Key, Old: c.Old, New: c.New, Text: text})
	}
}

// accepts reports whether cfg has tunnels of WireGuard.
func accepts(cfg *config.Realserver) bool {
	return slices.Contains(cfg.Encaps, encap.KindWireGuard.String())
}

// peers returns the directors' addresses in the tunnel.
func peers(cfg *config.Realserver) (all []netip.Addr) {
	for _, p := range cfg.WireGuard.Peers {
		all = append(all, p.Address)
	}
	return all
}

// sealedRules returns the rules for packets that WireGuard has brought. all are those for the other packets.
func sealedRules(all endpoint.Rules, cfg *config.Realserver) endpoint.Rules {
	all.Directors, all.Sealed, all.Decapsulators, all.Peers = nil, nil, nil, nil
	if !accepts(cfg) {
		return all
	}
	for _, a := range peers(cfg) {
		all.Directors = append(all.Directors, netip.PrefixFrom(a, a.BitLen()))
	}
	all.Decapsulators = []encap.Decapsulator{{Kind: encap.KindWireGuard}}
	return all
}
