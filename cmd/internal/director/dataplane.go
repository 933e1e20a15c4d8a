package director

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/balancer/forward"
	"vstun/balancer/method"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/daemon"
	"vstun/cmd/internal/director/plan"
	"vstun/encap/egress"
	"vstun/encap/packet"
	"vstun/encap/packet/stats"
	"vstun/encap/wire"
	"vstun/routing/query"
	"vstun/tundev"
)

// dataPlane is the devices, sockets and workers that packets pass through, and the tables for the packets' connections
// and services.
type dataPlane struct {
	start    time.Time // the clock's zero
	table    *conntab.Table
	balancer *balancer.Balancer
	shared   *forward.Shared
	device   *tundev.Device    // for packets of clients
	ethernet *ethernet         // of a TAP device; nil: it is a TUN device
	local    *tundev.Device    // for this host's own packets to VIPs
	workers  []*forward.Worker // one for each queue of device, then the one of local
	relays   []*forward.Relay  // of ICMP errors about tunnel packets
	senders  []io.Closer
	udpPorts []uint16 // source ports of tunnels over UDP, of the last worker
	fast     fastPath
	sealed   sealed // tunnels of WireGuard
	tunnels  peerTunnels
	noLink   error // why there is no VS/DR
	// receivers get ICMP errors about tunnel packets. The kernel learns path MTUs from them, and the relays send ICMP
	// errors to the clients.
	receivers []io.Closer
}

// udpPorts is the number of source ports that a worker has for tunnels over UDP. Routers and network cards on the path
// spread flows by them.
const udpPorts = 16

// urgent is the priority of packets that a full queue of the network device must not delay: TC_PRIO_INTERACTIVE in
// linux/pkt_sched.h, the first band of pfifo_fast and prio.
const urgent = 6

// open makes what cfg needs, but for the devices that p has already. The connection table is in memory; nil is private
// memory. On an error the caller calls close.
func (p *dataPlane) open(cfg *config.Director, memory conntab.Memory, log *slog.Logger) (err error) {
	p.shared = forward.NewShared()
	p.table = conntab.NewIn(memory, plan.Table(cfg.Connections))
	p.balancer = balancer.NewIn(memory, p.table, cfg.Queues+2) // workers, and the fast path
	if cfg.TAP {
		p.device, p.ethernet, err = openEthernet(cfg, p.device, log)
	} else if p.device == nil {
		p.device, err = tundev.Open(cfg.TUN, clientOptions(cfg))
	}
	if err != nil {
		return err
	}
	if err := p.sealed.open(&cfg.WireGuard); err != nil {
		return err
	}
	if err := p.openRelays(); err != nil {
		return err
	}
	waiting, err := p.openLink() // of packets that have waited for a MAC address
	if err != nil {
		return err
	}
	p.shared.UseLink(waiting)
	for _, protocol := range []int{packet.ProtoIPIP, packet.ProtoIPv6, packet.ProtoGRE, packet.ProtoUDP} {
		r, err := wire.LearnPathMTU(protocol)
		if err != nil {
			return err
		}
		p.receivers = append(p.receivers, r)
	}
	for i, q := range p.device.Queues() {
		if err := p.openWorker(i, q); err != nil {
			return err
		}
	}
	if err := p.openLocal(cfg, log); err != nil {
		return err
	}
	p.fast.open(cfg, p, log)
	return nil
}

// clientOptions are the options of the device for packets of clients.
func clientOptions(cfg *config.Director) tundev.Options {
	return tundev.Options{Queues: cfg.Queues, Plain: !cfg.Offload, TAP: cfg.TAP}
}

// localOptions are the options of the device for this host's own packets to VIPs.
func localOptions(cfg *config.Director) tundev.Options {
	return tundev.Options{Queues: 1, Plain: !cfg.Offload}
}

// openWorker makes the worker of one queue of the device.
func (p *dataPlane) openWorker(i int, q *tundev.Queue) error {
	s, err := p.openSender()
	if err != nil {
		return err
	}
	u, err := wire.NewUDPSender(udpPorts)
	if err != nil {
		return err
	}
	p.senders, p.udpPorts = append(p.senders, u), u.Ports()
	c := forward.WorkerConfig{ID: i, Source: q, Raw: s, UDP: u, UDPPorts: u.Ports(), Sealed: p.sealed.port(),
		Balancer: p.balancer, Shared: p.shared, Clock: p.now}
	if p.ethernet != nil {
		port := p.ethernet.port(q)
		c.Source, c.Link, c.Ethernet = port, port, true
	} else {
		c.TUN = q.Writer()
		if c.Link, err = p.openLink(); err != nil {
			return err
		}
	}
	p.workers = append(p.workers, forward.NewWorker(c))
	return nil
}

// openSender opens raw sockets for packets that the host routes.
func (p *dataPlane) openSender() (*wire.Sender, error) {
	s, err := wire.NewSender()
	if err != nil {
		return nil, err
	}
	p.senders = append(p.senders, s)
	return s, nil
}

// openLink opens a packet socket for VS/DR, whatever the configuration is: a reload cannot open one, and may bring the
// first realserver of VS/DR. On a kernel without packet sockets it returns nil, and notes that in p.noLink. With a TAP
// device it returns another port of that.
func (p *dataPlane) openLink() (egress.Port, error) {
	if p.ethernet != nil {
		return p.ethernet.writer(), nil
	}
	s, err := wire.NewLinkSender()
	if errors.Is(err, wire.ErrNoPacketSockets) {
		p.noLink = err
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	p.senders = append(p.senders, s)
	return s, nil
}

// allows returns an error if cfg has realservers of VS/DR and there are no packet sockets.
func (p *dataPlane) allows(cfg *config.Director) error {
	if p.noLink == nil {
		return nil
	}
	for i := range cfg.Services {
		for _, r := range append(cfg.Services[i].EveryRef(), cfg.Services[i].Sorry) {
			if r.Forward == method.DR {
				return fmt.Errorf("realserver %s: forward = \"dr\" is not possible here: %w; use tun", r.Name(),
					p.noLink)
			}
		}
	}
	return nil
}

// openRelays makes a relay for each family's ICMP errors. Each sends its messages to clients by a socket of its own.
func (p *dataPlane) openRelays() error {
	receivers, err := wire.NewErrorReceivers()
	if err != nil {
		return err
	}
	for _, r := range receivers {
		p.receivers = append(p.receivers, r)
	}
	for _, r := range receivers {
		s, err := p.toClients()
		if err != nil {
			return err
		}
		relay := forward.NewRelay(r, s, p.balancer, p.shared, p.now)
		if p.sealed.device != nil {
			relay.WatchSealed(p.sealed.device.Port())
		}
		p.relays = append(p.relays, relay)
	}
	return nil
}

// openLocal opens the device for this host's own packets, and makes its worker. The worker has a socket of its own,
// which no flood fills.
func (p *dataPlane) openLocal(cfg *config.Director, log *slog.Logger) (err error) {
	if p.local == nil {
		if p.local, err = tundev.Open(cfg.LocalTUN(), localOptions(cfg)); err != nil {
			return err
		}
	}
	s, err := p.openSender()
	if err != nil {
		return err
	}
	if err := s.SetPriority(urgent); err != nil {
		return err
	}
	link, err := p.openLink()
	if err != nil {
		return err
	}
	if s, ok := link.(*wire.LinkSender); ok {
		if err := s.SetPriority(urgent); err != nil {
			return err
		}
	}
	p.workers = append(p.workers, forward.NewWorker(forward.WorkerConfig{ID: cfg.Queues, Source: p.local.Queues()[0],
		Raw: s, Sealed: p.sealed.port(), Link: link, Balancer: p.balancer, Shared: p.shared, Clock: p.now}))
	for _, ipv6 := range []bool{false, true} {
		if !query.HasRules(ipv6) && (!ipv6 || query.HasIPv6()) {
			log.Warn("the kernel has no rules (CONFIG_IP_MULTIPLE_TABLES): health checks share the clients' queues, "+
				"and a flood can fail them", "ipv6", ipv6)
		}
	}
	return nil
}

// stop ends the workers and relays. Each worker forwards the packets that it has read. Those that come later stay in
// the devices until close.
func (p *dataPlane) stop() error {
	var errs []error
	for _, d := range []*tundev.Device{p.device, p.local} {
		errs = append(errs, d.StopReading())
	}
	for _, r := range p.receivers {
		errs = append(errs, r.Close())
	}
	p.receivers = nil
	return errors.Join(errs...)
}

// close closes what open has opened. Workers that have not ended lose packets.
func (p *dataPlane) close() error {
	var errs []error
	for _, d := range []*tundev.Device{p.device, p.local} {
		if d != nil {
			errs = append(errs, d.Close())
		}
	}
	errs = append(errs, p.tunnels.close(), p.sealed.close())
	for _, s := range p.senders {
		errs = append(errs, s.Close())
	}
	p.senders = nil
	for _, r := range p.receivers {
		errs = append(errs, r.Close())
	}
	p.receivers = nil
	return errors.Join(errs...)
}

// now is the time in the connection table's unit.
func (p *dataPlane) now() conntab.Ticks { return ticks(time.Since(p.start)) }

// ticks converts the time of a clock. It wraps, as Ticks do.
func ticks(d time.Duration) conntab.Ticks {
	return conntab.Ticks(d / (time.Second / conntab.PerSecond))
}

// tally adds the counts of all workers and relays to t.
func (p *dataPlane) tally(t *stats.Tally) {
	for _, w := range p.workers {
		w.Read(t)
	}
	for _, r := range p.relays {
		r.Read(t)
	}
	p.shared.Read(t)
	p.fast.read(t)
	p.sealed.read(t)
	p.tunnels.read(t)
	if p.ethernet != nil {
		p.ethernet.read(t)
	}
}

// usedVIPs returns the VIPs that have connections. It walks over the connection table.
func (p *dataPlane) usedVIPs() map[netip.Addr]bool {
	used := map[netip.Addr]bool{}
	for c := range p.table.All(p.now()) {
		used[c.Flow.Dst] = true
	}
	return used
}

// usedNAT returns the servers of VS/NAT that have connections, one for each port. It walks over the connection table.
func (p *dataPlane) usedNAT() map[plan.NATServer]bool {
	used := map[plan.NATServer]bool{}
	for c := range p.balancer.Connections(p.now()) {
		if c.Forward == method.NAT && !c.Template {
			port := c.RealserverPort()
			used[plan.NATServer{Address: c.Realserver.Addr(), Protocol: c.Flow.Proto,
				Ports: config.PortRange{First: port, Last: port}}] = true
		}
	}
	return used
}

// retired returns the retired realservers that have connections, and those of VS/DR, in ascending order.
func (p *dataPlane) retired() (all, direct []netip.Addr) {
	for _, l := range p.balancer.Leaving() {
		all = append(all, l.Address)
		if l.Kind == method.DR {
			direct = append(direct, l.Address)
		}
	}
	for _, list := range []*[]netip.Addr{&all, &direct} {
		slices.SortFunc(*list, netip.Addr.Compare)
		*list = slices.Compact(*list)
	}
	return all, direct
}

// overruns returns the number of packets that the kernel dropped because no worker took them.
func (p *dataPlane) overruns() (n uint64) {
	for _, device := range []*tundev.Device{p.device, p.local} {
		if dropped, err := query.Dropped(device.Name()); err == nil {
			n += dropped
		}
	}
	return n + p.sealed.overruns()
}

// loops returns the workers' loops.
func (p *dataPlane) loops() (all []daemon.Loop) {
	for _, w := range p.workers {
		all = append(all, w.Batches())
	}
	return all
}
