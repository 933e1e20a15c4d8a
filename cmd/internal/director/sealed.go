package director

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"vstun/cmd/internal/config"
	"vstun/cmd/internal/director/plan"
	"vstun/encap/egress"
	"vstun/encap/endpoint"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/encap/packet/stats"
	"vstun/encap/wireguard"
	"vstun/routing/query"
)

// sealed is the director's end of the tunnels of WireGuard.
type sealed struct {
	device *wireguard.Device // nil: there is no [wireguard] table
	// inbound takes the packets of point-to-point tunnels; nil: they are not open yet.
	inbound    atomic.Pointer[endpoint.Inbound]
	unexpected stats.Counters

	mu    sync.Mutex
	peers []wireguard.Peer // in force: the configured ones, and those of retired realservers
}

// open opens the sockets that cfg needs.
func (s *sealed) open(cfg *config.WireGuard) (err error) {
	if cfg.On {
		s.device, err = wireguard.Open(cfg.Listen, s.take)
	}
	return err
}

// port returns a port for one worker, nil without WireGuard.
func (s *sealed) port() egress.Port {
	if s.device == nil {
		return nil
	}
	return s.device.Sender()
}

// set puts the peers of cfg in force. Former peers stay until trim: retired realservers still have connections. mtu
// returns the largest packet of the tunnel to an address, in bytes.
func (s *sealed) set(cfg *config.WireGuard, mtu func(netip.Addr) int) error {
	return s.change(cfg, mtu, func(netip.Addr) bool { return true })
}

// trim removes the peers that are neither in cfg nor retired.
func (s *sealed) trim(cfg *config.WireGuard, mtu func(netip.Addr) int, retired []netip.Addr) error {
	return s.change(cfg, mtu, func(a netip.Addr) bool { return slices.Contains(retired, a) })
}

// change puts the peers of cfg in force, and those of the former ones that stay.
func (s *sealed) change(cfg *config.WireGuard, mtu func(netip.Addr) int, stays func(netip.Addr) bool) error {
	if s.device == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c := cfg.Config()
	c.Peers = slices.Clone(c.Peers)
	for i := range c.Peers {
		c.Peers[i].MTU = mtu(c.Peers[i].Address)
	}
	configured := c.Peers
	for _, p := range s.peers {
		other := slices.ContainsFunc(configured, func(q wireguard.Peer) bool {
			return q.Address == p.Address || slices.ContainsFunc(p.PublicKeys,
				func(k wireguard.Key) bool { return slices.Contains(q.PublicKeys, k) })
		})
		if !other && stays(p.Address) {
			c.Peers = append(c.Peers, p)
		}
	}
	if err := s.device.Set(c); err != nil {
		return err
	}
	s.peers = c.Peers
	return nil
}

// carriers returns the addresses outside of the tunnel of the peers of cfg and of the former ones, by their address in
// it. The zero Addr is one that is not known yet.
func (s *sealed) carriers(cfg *config.WireGuard) map[netip.Addr]netip.Addr {
	all := map[netip.Addr]netip.Addr{}
	if s.device != nil {
		for _, p := range s.device.Status().Peers {
			all[p.Address] = p.Endpoint.Addr()
		}
	}
	for _, p := range cfg.Peers {
		if !all[p.Address].IsValid() {
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

// take processes packets of the device: those of point-to-point tunnels go to their devices. It counts what realservers
// send to the director through WireGuard, since their answers go to the clients directly.
func (s *sealed) take(bufs []packet.Buf) error {
	if in := s.inbound.Load(); in != nil {
		if bufs = in.Take(bufs); len(bufs) == 0 {
			return nil
		}
	}
	var t stats.Tally
	t.DropN(drop.Unexpected, uint64(len(bufs)))
	s.unexpected.Add(&t)
	return nil
}

// read adds the counts of refused packets to t.
func (s *sealed) read(t *stats.Tally) {
	if s.device != nil {
		s.device.Read(t)
		s.unexpected.Read(t)
	}
}

// overruns returns the number of datagrams that the kernel dropped because they were not received in time.
func (s *sealed) overruns() uint64 {
	if s.device == nil {
		return 0
	}
	return s.device.Overruns()
}

// close ends the tunnels.
func (s *sealed) close() error {
	if s.device == nil {
		return nil
	}
	return s.device.Close()
}

// sealPaths replaces the paths to addresses in WireGuard's tunnel by the paths of what carries the tunnel.
func sealPaths(paths plan.Paths, answer map[netip.Addr]query.Path, carriers map[netip.Addr]netip.Addr) {
	for a, carrier := range carriers {
		if _, asked := paths[a]; asked {
			paths[a] = plan.SealedPath(a, carrier, answer)
		}
	}
}
