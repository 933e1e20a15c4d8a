package vrrp

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// world is routers on one link per device name, with a clock that moves only in run. A packet takes a millisecond.
type world struct {
	t       *testing.T
	now     time.Duration
	nodes   []*node
	transit []transit
	heard   []Packet // every packet that was sent
	lossy   func(from, to *node, p Packet) bool
}

type transit struct {
	at   time.Duration
	to   *node
	from *node
	p    Packet
}

// node is a router.
type node struct {
	*Election
	w        *world
	name     string
	paused   bool
	waiting  []Packet     // while it is paused
	log      []string     // "VI_1 backup→master", and other events
	moved    []netip.Addr // by the last change of a role
	refused  map[Refusal]int
	skewWall time.Duration
}

const delay = time.Millisecond

var wallStart = time.Unix(1_800_000_000, 0)

func newWorld(t *testing.T) *world { return &world{t: t, now: time.Hour} }

func (n *node) moment() Moment {
	return Moment{Boot: n.w.now, Wall: wallStart.Add(n.w.now + n.skewWall)}
}

// add adds a router with devices eth0 and eth1, whose addresses end in number.
func (w *world) add(number int, all ...Instance) *node {
	n := &node{Election: &Election{}, w: w, name: fmt.Sprint("router", number), refused: map[Refusal]int{}}
	w.nodes = append(w.nodes, n)
	n.setDevices(number, true, true)
	n.Set(n.moment(), all)
	w.collect(n)
	return n
}

// setDevices sets the links of both devices.
func (n *node) setDevices(number int, eth0, eth1 bool) {
	device := func(i int, running bool) Device {
		return Device{Name: fmt.Sprint("eth", i), Index: i + 1, Running: running, Addrs: []netip.Prefix{
			netip.MustParsePrefix(fmt.Sprintf("10.0.%d.%d/24", i, number)),
			netip.MustParsePrefix(fmt.Sprintf("2001:db8:%d::%d/64", i, number)),
			netip.MustParsePrefix(fmt.Sprintf("fe80::%d:%d/64", i, number)),
		}}
	}
	n.SetDevices(n.moment(), []Device{device(0, eth0), device(1, eth1)})
	n.w.collect(n)
}

// do calls fn and delivers what n sends.
func (n *node) do(fn func(now Moment)) {
	fn(n.moment())
	n.w.collect(n)
}

// collect takes what a router has done.
func (w *world) collect(n *node) {
	packets, events := n.Take()
	for _, p := range packets {
		w.heard = append(w.heard, p)
		for _, to := range w.nodes {
			if to != n && to.reached(p.Dst) && (w.lossy == nil || !w.lossy(n, to, p)) {
				w.transit = append(w.transit, transit{at: w.now + delay, to: to, from: n, p: p})
			}
		}
	}
	for _, v := range events {
		if v.Kind == RoleChanged {
			n.log, n.moved = append(n.log, fmt.Sprintf("%s %v→%v", v.Instance, v.Old, v.New)), v.Addrs
		} else {
			n.log = append(n.log, fmt.Sprintf("%s %s %v", v.Instance, kindNames[v.Kind], v.Peer))
		}
	}
}

var kindNames = map[EventKind]string{Reannounce: "reannounce", TwoMasters: "two masters", OneMaster: "one master",
	Differs: "differs", Ignored: "ignored"}

func (n *node) reached(dst netip.Addr) bool { return dst.IsMulticast() || n.own(dst) }

// run lets d pass.
func (w *world) run(d time.Duration) {
	w.t.Helper()
	for end := w.now + d; ; {
		next := end
		for _, n := range w.nodes {
			if at, ok := n.Next(); ok && !n.paused {
				next = min(next, max(at, w.now))
			}
		}
		for _, p := range w.transit {
			next = min(next, p.at)
		}
		w.now = next
		slices.SortStableFunc(w.transit, func(a, b transit) int { return cmp.Compare(a.at, b.at) })
		for len(w.transit) > 0 && w.transit[0].at <= w.now {
			p := w.transit[0]
			w.transit = w.transit[1:]
			p.to.deliver(p.p)
		}
		for _, n := range w.nodes {
			if !n.paused {
				n.do(n.Tick)
			}
		}
		if w.now == end {
			return
		}
	}
}

func (n *node) deliver(p Packet) {
	if n.paused {
		n.waiting = append(n.waiting, p)
		return
	}
	n.refused[n.Receive(n.moment(), p)]++
	n.w.collect(n)
}

// resume ends a pause: either the timer or a waiting packet comes first.
func (n *node) resume(timerFirst bool) {
	n.paused = false
	if timerFirst {
		n.do(n.Tick)
	}
	for _, p := range n.waiting {
		n.deliver(p)
	}
	n.waiting = nil
	n.do(n.Tick)
}

// claims returns the number of advertisements by which n is master.
func (n *node) claims() uint64 { return n.all[0].counts.Sent - n.all[0].counts.Resigned }

func (n *node) status(name string) Status {
	for _, s := range n.Status(n.moment()) {
		if s.Name == name {
			return s
		}
	}
	n.w.t.Fatalf("%s has no %s", n.name, name)
	panic("unreachable")
}

// expect fails unless the roles of VI are these.
func (w *world) expect(what string, roles ...Role) {
	w.t.Helper()
	for i, r := range roles {
		for _, c := range w.nodes[i].all {
			if c.role != r {
				w.t.Fatalf("%s, at %v: %s is %v in %s, want %v; log %q", what, w.now-time.Hour, w.nodes[i].name, c.role,
					c.Name, r, w.nodes[i].log)
			}
		}
	}
}

// until runs until a router has a role, and returns how long that took.
func (w *world) until(n *node, r Role, limit time.Duration) time.Duration {
	w.t.Helper()
	for begin := w.now; ; w.run(delay) {
		if n.all[0].role == r {
			return w.now - begin
		}
		if w.now-begin > limit {
			w.t.Fatalf("%s is not %v within %v; log %q", n.name, r, limit, n.log)
		}
	}
}

// vi returns an instance of version 3 over IPv4 at eth0, with changes.
func vi(priority uint8, changes ...func(*Instance)) Instance {
	i := Instance{Name: "VI", Device: "eth0", RouterID: 51, Version: Version3, Priority: priority,
		Interval: time.Second, Addrs: addrs("10.0.0.80"), Preempt: true}
	for _, fn := range changes {
		fn(&i)
	}
	return i
}

func nopreempt(i *Instance) { i.Preempt = false }

func version2(i *Instance) { i.Version = Version2 }

func every(d time.Duration) func(*Instance) { return func(i *Instance) { i.Interval = d } }
