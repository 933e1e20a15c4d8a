package balancer

import (
	"fmt"
	"hash/maphash"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"vstun/balancer/conntab"
	"vstun/balancer/method"
)

// Balancer holds the configuration in force, as a snapshot that packets read without a lock, and replaces it in one
// step.
type Balancer struct {
	table   *conntab.Table
	workers int
	current atomic.Pointer[Snapshot]

	mu       sync.Mutex // held by Apply; guards the fields below
	numbers  []*Dest    // by number; nil: free
	free     []uint32   // numbers
	retired  map[realserverID]*retired
	probed   map[Target]*probed // by Target.key
	services map[string]*service
	last     uint32 // the highest service number in use so far

	mappings map[uint32][]mapping    // of VS/NAT, by the number of the realserver
	left     map[mappingID]time.Time // when mappings left the configuration whose realservers stay
	seed     maphash.Seed            // of frontend.tag
	hints    *hints                  // nil: not made yet
	kept     kept
	former   map[string]*atomic.Pointer[Former] // by service
}

// Snapshot is one configuration. It doesn't change.
type Snapshot struct {
	balancer *Balancer
	table    conntab.View
	options  Options
	list     []*service // in the order of the configuration
	vips     map[netip.Addr]*ports
	leftVIPs []netip.Addr
	dests    []*Dest // by number; retired ones included
	backends *backends
	hints    *hints // nil: no Backend has several frontends

	byAddr     map[netip.Addr][]*Dest // dests by address, made at the first call of DestsByAddr
	indexDests sync.Once
	directory  directory
}

// service is a Service of a snapshot. Its list is in the kernel's order.
type service struct {
	config Service
	number uint32 // from 1; unique to the service's name, never used again
	hash   bool   // its Scheduler.Hash
	sched  scheduler
	list   []*Dest
	down   []*Dest // realservers that have failed
}

// Dest is a realserver of a service: how packets are sent to it, and counts of sent packets. It is immutable except for
// its counts. Dests for the same realserver in several snapshots share these counts.
type Dest struct {
	Realserver
	Via      method.Method           // how packets get to it; nil: it is unreachable, see Reachable
	Back     method.Returner         // of VS/NAT: how its replies get to clients; nil: past the director
	Hops     method.Hopper           // Via, if its packets may name another realserver; else nil
	former   *atomic.Pointer[Former] // of its service, with Hops
	overhead int                     // Via's
	number   uint32                  // in the connection table
	counts   *conntab.Counts
	stats    *destStats
}

// CountReplies counts replies of d, whose replies pass the director.
func (d *Dest) CountReplies(worker int, packets, bytes uint64) {
	t := &d.stats.workers[worker]
	t.replies.Add(packets)
	t.replyBytes.Add(bytes)
}

// destStats has a realserver's counts. They run from its first snapshot to its last.
type destStats struct {
	service     string
	connections atomic.Uint64
	overloaded  atomic.Bool // since Upper was reached; see Dest.overloaded
	workers     []traffic
}

// traffic is what one worker has sent to a realserver, and the replies that it has sent on from there.
type traffic struct {
	packets, bytes      atomic.Uint64
	replies, replyBytes atomic.Uint64
	_                   [32]byte // no two workers in a cache line
}

// Count counts packets that worker sends to d.
func (d *Dest) Count(worker int, packets, bytes uint64) {
	t := &d.stats.workers[worker]
	t.packets.Add(packets)
	t.bytes.Add(bytes)
}

// connOverhead is what the least-connection schedulers compare (Linux ip_vs_wlc.c).
func (d *Dest) connOverhead() int64 { return int64(d.counts.Active())<<8 + int64(d.counts.Inactive()) }

// forgetAfter is how long a retired realserver keeps its number after its last connection. A worker processes a packet
// under one snapshot; forgetAfter is far longer than that takes.
const forgetAfter = time.Minute

// New returns a Balancer without services. Its connections are in table. workers is the number of workers.
func New(table *conntab.Table, workers int) *Balancer {
	b := &Balancer{table: table, workers: workers, seed: maphash.MakeSeed(),
		retired: map[realserverID]*retired{}, probed: map[Target]*probed{}, services: map[string]*service{},
		left: map[mappingID]time.Time{}, former: map[string]*atomic.Pointer[Former]{}}
	b.current.Store(&Snapshot{balancer: b, table: table.View()})
	return b
}

// Snapshot returns the configuration in force.
func (b *Balancer) Snapshot() *Snapshot { return b.current.Load() }

// Apply puts cfg in force. A realserver that stays keeps its connections and counts. An unchanged service keeps its
// scheduler's position. Realservers that are not in cfg keep their connections until those end. A realserver that is
// configured again gets its old connections and counts back. After an error the former configuration stays in force.
func (b *Balancer) Apply(cfg Config) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range cfg.Services {
		if _, ok := LookupScheduler(cfg.Services[i].Scheduler); !ok {
			return fmt.Errorf("service %q: there is no scheduler %q", cfg.Services[i].Name, cfg.Services[i].Scheduler)
		}
	}
	b.forget(time.Now())
	if b.unchanged(cfg) {
		return nil
	}
	if n := b.needs(cfg); n > conntab.MaxDests {
		return fmt.Errorf("%d realservers, those that still have connections included: at most %d", n, conntab.MaxDests)
	}

	if cfg.hasIPv6() {
		b.table.PrepareIPv6()
	}
	next := &Snapshot{balancer: b, table: b.current.Load().table, options: cfg.Options, vips: map[netip.Addr]*ports{},
		leftVIPs: slices.Clone(cfg.LeftVIPs)}
	former := b.services
	b.services = make(map[string]*service, len(cfg.Services))
	for _, c := range cfg.Services {
		s := b.service(former[c.Name], c)
		b.services[c.Name] = s
		next.add(s)
	}
	for name, s := range former {
		if b.services[name] == nil {
			b.kept.forgetService(name)
			if p := b.former[name]; p != nil {
				p.Store(nil)
				delete(b.former, name)
			}
			for _, d := range slices.Concat(s.list, s.down) {
				b.retire(d)
			}
		}
	}
	b.probe(cfg.Probed)
	next.dests = append(next.dests, b.numbers...)
	next.backends = b.backends(next.list)
	if next.backends.several() {
		if b.hints == nil {
			b.hints = new(hints)
		}
		next.hints = b.hints
	}
	if cfg.Table != nil {
		next.table = b.table.Configure(*cfg.Table)
	}
	b.current.Store(next)
	return nil
}

// unchanged reports whether cfg equals the configuration in force.
func (b *Balancer) unchanged(cfg Config) bool {
	s := b.current.Load()
	if s.options != cfg.Options || cfg.Table != nil && !s.table.Follows(*cfg.Table) {
		return false
	}
	same := func(s *service, c Service) bool { return s.config.equal(&c) }
	return slices.EqualFunc(s.list, cfg.Services, same) && b.probes(cfg.Probed) &&
		slices.Equal(s.leftVIPs, cfg.LeftVIPs)
}

// needs returns the most numbers that cfg can take, the numbers of retired realservers included.
func (b *Balancer) needs(cfg Config) int {
	n := len(b.retired) + len(b.probed) + len(cfg.Probed)
	for i := range b.services {
		n += len(b.services[i].list) + len(b.services[i].down)
	}
	for i := range cfg.Services {
		n += len(cfg.Services[i].Realservers)
	}
	return n
}

func (s *Snapshot) add(svc *service) {
	s.list = append(s.list, svc)
	for _, vip := range svc.config.VIPs {
		p := s.vips[vip]
		if p == nil {
			p = newPorts()
			s.vips[vip] = p
		}
		for _, r := range svc.config.Ports {
			p.add(svc, r)
		}
	}
}

// byState returns the realservers that are up and the realservers that are down, by key.
func (s *Service) byState() (up, down map[realserverKey]Realserver) {
	up, down = make(map[realserverKey]Realserver, len(s.Realservers)), make(map[realserverKey]Realserver)
	for _, r := range s.Realservers {
		if r.Down {
			down[r.key()] = r
		} else {
			up[r.key()] = r
		}
	}
	return up, down
}

// service makes the service that c describes. former is the service of the same name in force, nil for none. The
// changes come in the order of an administrator's ipvsadm commands: remove, edit, add.
func (b *Balancer) service(former *service, c Service) *service {
	if former != nil && former.config.equal(&c) {
		return former // with its scheduler: a copy could repeat a choice
	}
	row, _ := LookupScheduler(c.Scheduler)
	s := &service{config: c, hash: row.Hash}
	if former != nil {
		s.number = former.number
		s.list = append(s.list, former.list...)
		s.down = append(s.down, former.down...)
	} else {
		b.last++
		s.number = b.last
	}
	s.sched = newScheduler(s, former)
	if t, ok := s.sched.(turning); ok {
		t.notes(b.kept.cursor(c.Name))
	}
	want, fail := c.byState()
	s.down = slices.DeleteFunc(s.down, func(d *Dest) bool {
		if _, stays := fail[d.key()]; stays {
			return false
		}
		b.retire(d) // and comes back at once if it is up again
		return true
	})
	for i := len(s.list) - 1; i >= 0; i-- {
		d := s.list[i]
		if _, stays := want[d.key()]; !stays {
			s.list = append(s.list[:i:i], s.list[i+1:]...)
			s.sched.changed(s.list, change{changeRemoved, i})
			b.retire(d)
		}
	}
	for i, d := range s.list {
		r := want[d.key()]
		delete(want, d.key())
		if r != d.Realserver {
			s.list[i] = b.replace(d, r)
			if r.Weight != d.Weight {
				s.sched.changed(s.list, change{kind: changeWeight})
			}
		}
	}
	for i, d := range s.down {
		if r := fail[d.key()]; r != d.Realserver {
			s.down[i] = b.replace(d, r)
		}
		delete(fail, d.key())
	}
	for _, r := range c.Realservers {
		if _, isNew := fail[r.key()]; isNew {
			s.down = append(s.down, b.enter(c.Name, r))
		}
	}
	for _, r := range c.Realservers {
		if _, isNew := want[r.key()]; isNew {
			s.list = append([]*Dest{b.enter(c.Name, r)}, s.list...)
			s.sched.changed(s.list, change{kind: changeAdded})
		}
	}
	settle(s.sched, s.list)
	return s
}

// newScheduler returns a scheduler for s, whose list is former's. It is a copy of former's scheduler if that has the
// same kind.
func newScheduler(s, former *service) scheduler {
	k := s.config.kind()
	if former != nil && former.config.kind() == k {
		return former.sched.clone()
	}
	row, _ := LookupScheduler(k.name)
	sched := row.make(k)
	sched.changed(s.list, change{kind: changeWeight})
	return sched
}
