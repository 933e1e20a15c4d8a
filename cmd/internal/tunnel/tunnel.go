// Package tunnel runs the point-to-point tunnels ([[tunnel]]) of a program. Each has a TUN or TAP device of its own,
// whose packets go to one peer and back:
//
//	device → endpoint.Outbound (one for each queue) → sockets ──────────────→ peer
//	device ← endpoint.Inbound (one for each source) ← sockets of all tunnels ← peers
//
// The devices' addresses, routes and settings are kept, and undone, by a routing.Manager of the Set, with a journal
// beside the program's own.
package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"vstun/cmd/internal/config"
	"vstun/cmd/internal/daemon"
	"vstun/cmd/internal/ping"
	"vstun/encap/egress"
	"vstun/encap/endpoint"
	"vstun/encap/packet"
	"vstun/encap/packet/stats"
	"vstun/encap/wire"
	"vstun/encap/wireguard"
	"vstun/routing"
	"vstun/routing/query"
	"vstun/tundev"
)

// Options are the options of Open.
type Options struct {
	Log     *slog.Logger
	Control string // the program's control socket, beside which the journal lies
	Queues  int    // of each device; maxQueues at most are used
	Offload bool   // use the offloads of TUN devices that the kernel has
	// Sources is the number of Inbounds. Their IDs are 0 to Sources - 1.
	Sources int
	// Learn makes the kernel learn path MTUs from ICMP errors about the tunnels' packets while there are tunnels, for a
	// program that does not do so itself: each packet of a tunnel's protocol costs a little more then, one of IPIP
	// 154 ns.
	Learn  bool
	Sealed *wireguard.Device // nil: there is no [wireguard] table
	Pinger *ping.Pinger      // of probes
	Keeper Keeper            // nil: the devices end with the process
}

// Set is the tunnels of a program. It has none until Apply.
type Set struct {
	o         Options
	network   *routing.Manager
	sender    *wire.Sender    // whose sockets all Outbounds share
	learners  []*wire.Learner // at work while there are tunnels
	ids       *egress.IDs
	peers     atomic.Pointer[endpoint.Peers]
	strangers stats.Counters
	kick      chan struct{} // a path may have changed, or a device is gone
	workers   sync.WaitGroup

	mu     sync.Mutex       // held by Apply, follow and Close
	shared uint16           // see Apply
	kept   map[string][]int // descriptors of the last start's devices that have not been adopted, by name
	want   []config.PointToPoint
	leaves bool // see Leave
	closed bool
	all    atomic.Pointer[[]*tunnel] // in the configuration's order
}

// tunnel is one tunnel.
type tunnel struct {
	name    string
	index   int                   // of its device
	setup   atomic.Pointer[setup] // in force
	device  *tundev.Device
	senders []io.Closer // of UDP
	kept    bool        // the Keeper has its device's descriptors
	sinks   []endpoint.EndSink
	workers []*endpoint.Outbound
	remote  atomic.Pointer[endpoint.Remote]
	sizes   *endpoint.Sizes
	in, out stats.Counters // from the peer, and to it
	gone    atomic.Bool    // its device has been removed by another program

	mu   sync.Mutex
	seen observed
}

// setup is a tunnel's configuration, and the MTU of its device. It is immutable.
type setup struct {
	cfg config.PointToPoint
	mtu int
}

// JournalPath returns the path of the journal of the tunnels of a program with this control socket.
func JournalPath(control string) string {
	return strings.TrimSuffix(control, ".sock") + ".tunnels.journal"
}

// Open opens what any tunnel needs, before the program gives up CAP_NET_RAW: a reload may bring the first one. It
// undoes what a killed process has left.
func Open(o Options) (_ *Set, err error) {
	s := &Set{o: o, ids: egress.NewIDs(rand.Uint32()), kick: make(chan struct{}, 1)}
	s.all.Store(&[]*tunnel{})
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if s.network, err = s.openNetwork(JournalPath(o.Control)); err != nil {
		return nil, fmt.Errorf("tunnels: %w", err)
	}
	if s.sender, err = wire.NewSender(); err != nil {
		return nil, err
	}
	if o.Learn {
		if err := s.openLearners(); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// openLearners opens the sockets of learners, which rest until there are tunnels.
func (s *Set) openLearners() error {
	for _, protocol := range []int{packet.ProtoIPIP, packet.ProtoIPv6, packet.ProtoGRE, packet.ProtoUDP} {
		l, err := wire.LearnPathMTU(protocol)
		if err != nil {
			return err
		}
		s.learners = append(s.learners, l)
		if err := l.Rest(); err != nil {
			return err
		}
	}
	return nil
}

// learn lets the learners work or rest.
func (s *Set) learn(on bool) error {
	for _, l := range s.learners {
		change := l.Rest
		if on {
			change = l.Resume
		}
		if err := change(); err != nil {
			return fmt.Errorf("sockets that learn path MTUs: %w", err)
		}
	}
	return nil
}

// Inbound returns a source of source's packets that takes those of tunnels. With a nil source it is for the packets
// that WireGuard brings, and only its Take is used. id is less than Options.Sources.
func (s *Set) Inbound(id int, source endpoint.Source) *endpoint.Inbound {
	return endpoint.NewInbound(source, &s.peers, id, s.o.Offload, source == nil, &s.strangers)
}

// Apply puts tunnels in force. Those that stay the same keep their devices, packets and counts; those with another kind
// of device, or another encapsulation, begin anew. shared is a UDP port that receives other packets, too; 0: none. On
// an error nothing has changed, but for those that would have begun anew, which are removed.
func (s *Set) Apply(tunnels []config.PointToPoint, shared uint16) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return os.ErrClosed
	}
	return s.apply(tunnels, shared)
}

// apply is Apply. s.mu is held.
func (s *Set) apply(tunnels []config.PointToPoint, shared uint16) (err error) {
	was := *s.all.Load()
	var next, opened, removed []*tunnel
	for _, t := range was {
		if i := index(tunnels, t.name); i < 0 || !t.canBecome(&tunnels[i]) {
			removed = append(removed, t)
		}
	}
	// A device that begins anew goes first: its name is taken.
	anew := slices.ContainsFunc(removed, func(t *tunnel) bool { return index(tunnels, t.name) >= 0 })
	if anew {
		was = slices.DeleteFunc(slices.Clone(was), func(t *tunnel) bool { return slices.Contains(removed, t) })
		s.receive(was)
		s.close(removed)
		for _, t := range removed { // if this fails, refresh tries again
			t.gone.Store(true)
		}
		removed = nil
	}
	defer func() {
		if err != nil {
			s.close(opened)
			err = errors.Join(err, s.learn(len(was) > 0))
		}
	}()
	if err := s.learn(len(tunnels) > 0); err != nil {
		return err
	}
	for i := range tunnels {
		cfg := &tunnels[i]
		at := slices.IndexFunc(was, func(t *tunnel) bool { return t.name == cfg.Name })
		if at >= 0 {
			next = append(next, was[at])
			continue
		}
		t, err := s.open(cfg)
		if err != nil {
			return err
		}
		opened, next = append(opened, t), append(next, t)
	}
	paths := s.paths(tunnels)
	mtus := make([]int, len(next))
	for i, t := range next {
		mtus[i] = deviceMTU(&tunnels[i], paths[t.name])
	}
	if err := s.network.Set(State(tunnels, mtus)); err != nil {
		return errors.Join(err, s.network.Set(State(configs(was), mtusOf(was))))
	}
	s.shared = shared
	paths = s.paths(tunnels) // the routes of tunnels may have changed them
	for i, t := range next {
		t.setup.Store(&setup{tunnels[i], mtus[i]})
		t.aim(paths[t.name])
		if p := &tunnels[i]; p.Encap.Sealed() && s.o.Sealed != nil {
			s.o.Sealed.SetMTU(p.Remote, paths[t.name].mtu)
		}
	}
	s.receive(next)
	s.all.Store(&next)
	s.want = tunnels
	for _, t := range opened {
		s.begin(t)
	}
	s.close(removed)
	s.keep(next)
	return nil
}

// receive makes the Inbounds take the packets of next.
func (s *Set) receive(next []*tunnel) {
	var ends []*endpoint.End
	for _, t := range next {
		ends = append(ends, t.end())
	}
	if len(ends) == 0 {
		s.peers.Store(nil)
	} else {
		s.peers.Store(endpoint.NewPeers(ends, s.shared))
	}
}

// open opens the device of a tunnel, and makes its workers.
func (s *Set) open(cfg *config.PointToPoint) (_ *tunnel, err error) {
	t := &tunnel{name: cfg.Name, sizes: &endpoint.Sizes{}}
	defer func() {
		if err != nil {
			s.close([]*tunnel{t})
			err = fmt.Errorf("tunnel %s: %w", cfg.Name, err)
		}
	}()
	o := tundev.Options{Queues: min(s.o.Queues, maxQueues), Plain: !s.o.Offload, TAP: cfg.TAP, Host: true}
	if t.device, err = s.adopt(cfg.Name, o); err != nil {
		return nil, err
	}
	t.kept = t.device != nil
	if err := obstacles(cfg, t.kept); err != nil {
		return nil, err
	}
	if !t.kept {
		if t.device, err = tundev.Open(cfg.Name, o); err != nil {
			return nil, err
		}
	}
	if link, err := net.InterfaceByName(cfg.Name); err != nil {
		return nil, err
	} else {
		t.index = link.Index
	}
	queues := t.device.Queues()
	for i := range s.o.Sources {
		t.sinks = append(t.sinks, queues[i%len(queues)].Writer())
	}
	for _, q := range queues {
		c := endpoint.OutboundConfig{Source: q, Errors: q.Writer(), Raw: s.sender.Share(), IDs: s.ids,
			Remote: &t.remote, Counters: &t.out, TooBig: s.Look}
		if cfg.Encap.UDP() {
			u, err := wire.NewUDPSender(udpPorts)
			if err != nil {
				return nil, err
			}
			t.senders = append(t.senders, u)
			c.UDP, c.UDPPorts = u, u.Ports()
		}
		if cfg.Encap.Sealed() && s.o.Sealed != nil {
			c.Sealed = s.o.Sealed.Sender()
		}
		t.workers = append(t.workers, endpoint.NewOutbound(c))
	}
	return t, nil
}

// obstacles returns what keeps a tunnel's device from being made on this host, or a kept one from being used.
func obstacles(cfg *config.PointToPoint, kept bool) error {
	there, err := query.LinkExists(cfg.Name)
	if err != nil {
		return err
	}
	if there && !kept {
		return fmt.Errorf("there is a device of this name: remove it (ip link del %s), or choose another name",
			cfg.Name)
	}
	if cfg.Bridge != "" {
		if _, err := query.FindBridge(cfg.Bridge); err != nil {
			return err
		}
	}
	kernel, err := query.KernelTunnels()
	if err != nil {
		return err
	}
	return kernelTunnel(cfg, kernel)
}

// kernelTunnel refuses a tunnel device of the kernel that takes the same packets.
func kernelTunnel(cfg *config.PointToPoint, kernel []query.Tunnel) error {
	for _, s := range Sockets([]config.PointToPoint{*cfg}) {
		for _, k := range kernel {
			if k.Up && k.Takes(s.Protocol, s.Over6) && (!k.Remote.IsValid() || k.Remote == cfg.Remote) {
				return fmt.Errorf("kernel tunnel %s is up and takes protocol %d, so that each packet would come in "+
					"twice: set it down (ip link set %s down)", k.Name, s.Protocol, k.Name)
			}
		}
	}
	return nil
}

// maxQueues bounds the queues of a device: each has a worker that waits in the kernel, in a thread of its own, and the
// runtime ends a program with 10,000 threads (runtime/debug, SetMaxThreads).
const maxQueues = 4

// udpPorts is the number of source ports that a worker has for GUE and FOU: see the director's.
const udpPorts = 16

// begin starts the workers of t.
func (s *Set) begin(t *tunnel) {
	for _, w := range t.workers {
		s.workers.Go(func() {
			if err := w.Run(); err != nil { // the device has been removed
				if !t.gone.Swap(true) {
					s.o.Log.Error("tunnel ended", "tunnel", t.name, "error", err)
				}
				s.Look()
			}
		})
	}
}

// Look makes follow look at the paths and devices soon.
func (s *Set) Look() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// close closes the devices and sockets of tunnels, which ends their workers. The devices stay if they are left.
func (s *Set) close(tunnels []*tunnel) {
	for _, t := range tunnels {
		if t.device != nil {
			_ = t.device.Close() // also if it is gone
		}
		for _, c := range t.senders {
			_ = c.Close()
		}
		if t.kept && !s.leaves {
			s.forget(t.name, !t.gone.Load())
			t.kept = false
		}
	}
}

// Close removes all tunnels, and undoes what they have changed on this host.
func (s *Set) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	s.peers.Store(nil)
	var errs []error
	if s.network != nil && s.leaves {
		s.network.Leave()
	} else if s.network != nil {
		errs = append(errs, s.network.Close())
	}
	s.close(*s.all.Load())
	s.dropKept()
	s.workers.Wait()
	if s.sender != nil {
		errs = append(errs, s.sender.Close())
	}
	for _, l := range s.learners {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// Run follows paths, devices and probes until ctx is cancelled. The tunnels stay until Close.
func (s *Set) Run(ctx context.Context) error {
	return daemon.Run(ctx, s.network.Watch, s.follow, s.observe)
}
