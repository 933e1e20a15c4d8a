package fastpath

import (
	"errors"
	"maps"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/balancer/method"
	"vstun/encap"
	"vstun/encap/bpf"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/testdata/testkit"
)

// kernel is the real program's maps. Their counts come from the test: no packet passes.
type kernel struct {
	*bpf.Director
	counts map[packet.Flow]bpf.State
	behind func() // called once, when flows have been read and before they are given out
	sets   int    // calls of Set
	most   int    // flows in one call of Delete
	broken error  // of Add
}

func (k *kernel) Add(p bpf.Path) (bpf.Ref, error) {
	if k.broken != nil {
		return bpf.Ref{}, k.broken
	}
	return k.Director.Add(p)
}

func (k *kernel) Set(flows []bpf.Flow) (int, error) {
	k.sets++
	return k.Director.Set(flows)
}

// pass adds packets of 100 bytes to a flow's counts.
func (k *kernel) pass(f packet.Flow, packets int, idle time.Duration) {
	s := k.counts[f]
	s.Count += bpf.Count(packets + packets*100<<26)
	s.Idle = idle
	k.counts[f] = s
}

func (k *kernel) Read(fn func(packet.Flow, bpf.State, bool)) error {
	read := maps.Clone(k.counts)
	return k.Director.Read(func(f packet.Flow, _ bpf.State, live bool) {
		if behind := k.behind; behind != nil {
			k.behind = nil
			behind()
		}
		fn(f, read[f], live)
	})
}

func (k *kernel) Delete(flows []packet.Flow, fn func(packet.Flow, bpf.State)) error {
	k.most = max(k.most, len(flows))
	return k.Director.Delete(flows, func(f packet.Flow, _ bpf.State) {
		fn(f, k.counts[f])
		delete(k.counts, f)
	})
}

// has returns the flows in the kernel, and whether their paths are.
func (k *kernel) has(t *testing.T) map[packet.Flow]bool {
	t.Helper()
	all := map[packet.Flow]bool{}
	if err := k.Director.Read(func(f packet.Flow, _ bpf.State, live bool) { all[f] = live }); err != nil {
		t.Fatal(err)
	}
	return all
}

// world is a cache with its surroundings.
type world struct {
	*Cache
	t        *testing.T
	kernel   *kernel
	table    *conntab.Table
	balancer *balancer.Balancer
	now      conntab.Ticks
	noPath   chan error // of NoPath
	tracked  bool
	asked    int // calls of Tracked
}

var (
	vip   = netip.MustParseAddr("198.51.100.80")
	realA = netip.MustParseAddr("10.0.11.2")
	realB = netip.MustParseAddr("10.0.11.3")
)

func newWorld(t *testing.T, room int) *world {
	t.Helper()
	return newWorldOf(t, bpf.DirectorConfig{Flows4: room, Flows6: 64, Paths: 64})
}

func newWorldOf(t *testing.T, c bpf.DirectorConfig) *world {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: it needs root")
	}
	d, err := bpf.LoadDirector(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	w := &world{t: t, kernel: &kernel{Director: d, counts: map[packet.Flow]bpf.State{}}, now: 100,
		noPath: make(chan error, 16)}
	w.table = conntab.New(conntab.Config{Max: 4096})
	w.balancer = balancer.New(w.table, 2)
	w.Cache = New(Config{Kernel: w.kernel, Table: w.table, Clock: func() conntab.Ticks { return w.now }, Worker: 1,
		Ports: []uint16{40000}, Device: 1, Failed: func(err error) { t.Error(err) },
		Tracked: func() bool {
			w.asked++
			return w.tracked
		},
		NoPath: func(err error) { w.noPath <- err }})
	w.SetWays(Ways{realA: {Device: 1, Source: netip.MustParseAddr("10.0.2.2"), MTU: 1500},
		realB: {Device: 1, Source: netip.MustParseAddr("10.0.2.2"), MTU: 1500}})
	return w
}

// real is a realserver.
func real(a netip.Addr, kind method.Kind) balancer.Realserver {
	return balancer.Realserver{Address: a, Weight: 1, Config: method.Config{Kind: kind, MTU: 1500}}
}

// apply puts a service at port 80 with these realservers in force.
func (w *world) apply(list ...balancer.Realserver) {
	w.t.Helper()
	if err := w.balancer.Apply(balancer.Config{Services: []balancer.Service{{Name: "web", VIPs: []netip.Addr{vip},
		Protocol: packet.ProtoTCP, Ports: []balancer.PortRange{{First: 80, Last: 80}}, Scheduler: "rr",
		Realservers: list}}}); err != nil {
		w.t.Fatal(err)
	}
	w.Follow(w.balancer.Snapshot())
}

func client(port uint16) packet.Flow {
	return packet.Flow{Src: netip.MustParseAddr("192.0.2.1"), Dst: vip, SrcPort: port, DstPort: 80,
		Proto: packet.ProtoTCP}
}

// send sends n packets of a connection through the balancer.
func (w *world) send(port uint16, flags uint8, n int) {
	w.t.Helper()
	for range n {
		p := packet.Info{Flow: client(port), TCPFlags: flags, Len: 60}
		if _, reason := w.balancer.Snapshot().Decide(&p, w.now); reason != drop.Accept {
			w.t.Fatal(reason)
		}
	}
}

// open opens a connection that is busy, and lets the cache look.
func (w *world) open(port uint16) {
	w.t.Helper()
	w.send(port, packet.FlagSYN, 1)
	w.send(port, packet.FlagACK, 20)
	w.lookNow()
}

// answer lets the kernel forward a reply of realA, and takes that to account.
func (w *world) answer(port uint16) {
	w.kernel.pass(packet.Flow{Src: realA, Dst: client(port).Src, SrcPort: 80, DstPort: port, Proto: packet.ProtoTCP},
		1, 0)
	w.account()
}

func (w *world) lookNow() { w.look(make([]conntab.Change, 64)) }

// mustHave fails the test unless the kernel has the connection, or does not, and so do Has and Stats.
func (w *world) mustHave(when string, port uint16, want bool) {
	w.t.Helper()
	if live := w.kernel.has(w.t)[client(port)]; live != want || w.Has(client(port)) != want {
		w.t.Errorf("%s: the kernel has port %d: %v, Has %v, want %v", when, port, live, w.Has(client(port)), want)
	}
}

// TestPromotion: the kernel gets a connection when it has many packets, and loses it with its end.
func TestPromotion(t *testing.T) {
	for _, kind := range []method.Kind{method.TUN, method.DR, method.NAT} {
		t.Run(kind.String(), func(t *testing.T) {
			w := newWorld(t, 64)
			r := real(realA, kind)
			if kind == method.DR {
				r.Link = method.Link{Device: 1, MAC: [6]byte{2, 0, 0, 0, 0, 1}, OwnMAC: [6]byte{2, 0, 0, 0, 0, 2}}
			}
			w.apply(r)
			w.send(1, packet.FlagSYN, 1)
			w.send(1, packet.FlagACK, 5)
			w.lookNow()
			w.mustHave("after some packets", 1, false)
			w.send(1, packet.FlagACK, 15)
			w.lookNow()
			if kind == method.NAT {
				w.mustHave("before a reply", 1, false)
				w.answer(1)
			}
			w.mustHave("after many", 1, true)
			want := 1
			if kind == method.NAT {
				want = 2 // with the replies
			}
			if n := len(w.kernel.has(t)); n != want {
				t.Errorf("%d flows in the kernel, want %d", n, want)
			}
			w.send(1, packet.FlagFIN|packet.FlagACK, 1)
			w.lookNow()
			w.mustHave("after FIN", 1, false)
			if n := len(w.kernel.has(t)) + len(w.conns) + len(w.replies); n != 0 || w.Stats().Connections != 0 {
				t.Errorf("%d flows are left, %d counted", n, w.Stats().Connections)
			}
		})
	}
}

// TestCounts: what the kernel has forwarded counts as if a worker had forwarded it, and keeps the connection.
func TestCounts(t *testing.T) {
	w := newWorld(t, 64)
	w.apply(real(realA, method.NAT))
	w.open(1)
	w.answer(1)
	reply := packet.Flow{Src: realA, Dst: client(1).Src, SrcPort: 80, DstPort: 1, Proto: packet.ProtoTCP}
	w.now += 800 * conntab.PerSecond
	w.kernel.pass(client(1), 1000, time.Second)
	w.kernel.pass(reply, 500, 10*time.Second)
	w.account()
	w.account() // counts nothing twice
	r := w.balancer.Snapshot().Status()[0].Realservers[0]
	if r.Packets != 1000 || r.Bytes != 100_000 || r.Replies != 501 || r.ReplyBytes != 50_100 {
		t.Errorf("counted: %+v", r)
	}
	c, ok := w.table.Lookup(client(1), w.now)
	if !ok || c.Packets != 1021 || c.Expires != 899*time.Second {
		t.Errorf("%+v, %v", c, ok)
	}
	w.now += conntab.PerSecond
	w.kernel.pass(client(1), 7, 0)
	w.send(1, packet.FlagRST, 1) // the last counts come with the end
	w.lookNow()
	if r := w.balancer.Snapshot().Status()[0].Realservers[0]; r.Packets != 1007 {
		t.Errorf("counted at the end: %+v", r)
	}
	if s := w.Stats(); s.InPackets != 1508 || s.OutBytes != 150_800 || s.Promoted != 1 {
		t.Errorf("%+v", s)
	}
}

// TestCountsOfPortUsedAgain: a connection ends and its client's port is used again, all between the kernel's answer and
// its evaluation. The counts of the first one are not counted as the second one's.
func TestCountsOfPortUsedAgain(t *testing.T) {
	w := newWorld(t, 64)
	w.apply(real(realA, method.TUN))
	w.open(1)
	w.kernel.pass(client(1), 1000, 0)
	w.kernel.behind = func() {
		w.send(1, packet.FlagRST, 1)
		w.lookNow()
		w.open(1)
		if !w.Has(client(1)) {
			t.Error("the second connection is not in the kernel")
		}
	}
	w.account()
	w.mustHave("after the account", 1, true)
	w.kernel.pass(client(1), 7, 0)
	w.account()
	if r := w.balancer.Snapshot().Status()[0].Realservers[0]; r.Packets != 1007 {
		t.Errorf("counted: %+v", r)
	}
}

// TestPause: an account comes before the end of any connection in the fast path, however long it takes.
func TestPause(t *testing.T) {
	for took, want := range map[time.Duration]time.Duration{time.Millisecond: time.Second,
		100 * time.Millisecond: 2 * time.Second, 3 * time.Second: 5 * time.Second} {
		if got := pause(took); got != want {
			t.Errorf("an account of %v: pause %v, want %v", took, got, want)
		}
	}
}

// TestChanges: after any change of how its packets get to their realserver, no connection is in the kernel with the old
// one. Where the change leaves a way, the kernel gets it again.
func TestChanges(t *testing.T) {
	other := netip.MustParseAddr("10.0.2.1")
	for name, row := range map[string]struct {
		change func(w *world)
		again  bool
	}{
		"another weight": {func(w *world) {
			r := real(realA, method.TUN)
			r.Weight = 0
			w.apply(r)
		}, true},
		"another MTU": {func(w *world) {
			r := real(realA, method.TUN)
			r.MTU = 1400
			w.apply(r)
		}, true},
		"another tunnel": {func(w *world) {
			r := real(realA, method.TUN)
			r.Checksum, r.Encap, r.EncapPort, r.Source = true, 3, 6080, other
			w.apply(r)
		}, false},
		"encrypted": {func(w *world) {
			r := real(realA, method.TUN)
			r.Encap, r.Source = encap.KindWireGuard, other
			w.apply(r)
		}, false},
		"down": {func(w *world) {
			r := real(realA, method.TUN)
			r.Down = true
			w.apply(r)
		}, false},
		"removed": {func(w *world) { w.apply(real(realB, method.TUN)) }, false},
		"another next hop": {func(w *world) {
			w.SetWays(Ways{realA: {Device: 1, NextHop: other, Source: other, MTU: 1500}})
		}, true},
		"paused":         {func(w *world) { w.Pause(true) }, false},
		"paused and not": {func(w *world) { w.Pause(true); w.Pause(false) }, true},
		"no way":         {func(w *world) { w.SetWays(nil) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 64)
			w.apply(real(realA, method.TUN))
			w.open(1)
			w.mustHave("before", 1, true)
			row.change(w)
			w.mustHave("after the change", 1, name == "another weight")
			w.send(1, packet.FlagACK, 20)
			w.lookNow() // if it is not in the kernel any more, the table does not know yet
			w.account()
			w.send(1, packet.FlagACK, 20)
			w.lookNow()
			w.mustHave("later", 1, row.again)
		})
	}
}

// TestNoNAT: on a way that is not for packets of VS/NAT, those of tunnels are in the kernel alone, and stay there.
func TestNoNAT(t *testing.T) {
	for _, kind := range []method.Kind{method.TUN, method.NAT} {
		w := newWorld(t, 64)
		w.apply(real(realA, kind))
		w.open(1)
		w.answer(1)
		w.mustHave("before", 1, true)
		w.SetWays(Ways{realA: {Device: 1, Source: netip.MustParseAddr("10.0.2.2"), MTU: 1500, NoNAT: true}})
		w.mustHave(kind.String()+" at once", 1, kind == method.TUN)
		w.account()
		w.send(1, packet.FlagACK, 40)
		w.lookNow()
		w.answer(1)
		w.mustHave(kind.String(), 1, kind == method.TUN)
	}
}

// TestTracked: on a host that tracks connections, those of VS/NAT do not get to the kernel. It is asked once for many,
// and for none of a tunnel.
func TestTracked(t *testing.T) {
	for _, kind := range []method.Kind{method.TUN, method.NAT} {
		w := newWorld(t, 64)
		w.apply(real(realA, kind))
		w.tracked = true
		for port := range uint16(5) {
			w.send(1+port, packet.FlagSYN, 1)
			w.send(1+port, packet.FlagACK, 20)
		}
		w.lookNow()
		asked := w.asked
		w.answer(1)
		w.mustHave(kind.String(), 1, kind == method.TUN)
		n := len(w.kernel.has(t))
		if kind == method.TUN && (n != 5 || asked != 0) || kind == method.NAT && (n != 0 || asked != 1) {
			t.Errorf("%v: %d flows in the kernel; asked %d times", kind, n, asked)
		}
		w.tracked = false
		w.open(1)
		w.answer(1)
		w.mustHave(kind.String()+" without tracking", 1, true)
	}
}

// TestFull: when there is no room, quiet connections make place for busy ones.
func TestFull(t *testing.T) {
	w := newWorld(t, 8)
	w.apply(real(realA, method.TUN))
	for port := range uint16(16) {
		w.open(port + 1)
	}
	if n := w.Stats().Connections; n == 0 || n > 8 {
		t.Fatalf("%d connections in a map for 8", n)
	}
	quiet := 0
	for f := range w.kernel.has(t) {
		if n := 1000; f.SrcPort%2 == 0 {
			w.kernel.pass(f, n, 0)
		} else {
			quiet++
		}
	}
	sets := w.kernel.sets
	w.send(16, packet.FlagACK, 40)
	w.lookNow()
	if w.kernel.sets != sets {
		t.Error("the kernel is asked again for room that it does not have")
	}
	if n := w.Stats().Refused[ConnectionsFull]; n < 8 {
		t.Errorf("%d refused", n)
	}
	w.account()
	for f := range w.kernel.has(t) {
		if f.SrcPort%2 != 0 {
			t.Errorf("quiet port %d is still there", f.SrcPort)
		}
	}
	if quiet == 0 {
		t.Error("no quiet connection was there")
	}
	w.send(16, packet.FlagACK, 20)
	w.lookNow()
	w.mustHave("a busy one", 16, true)
}

// TestFullForThoseThatStayOut: connections that the kernel never gets, as those of a tunnel with checksum, ask for no
// room: they are not counted as refused, and no quiet connection makes place for them.
func TestFullForThoseThatStayOut(t *testing.T) {
	w := newWorld(t, 8)
	out := real(realB, method.TUN)
	out.Checksum, out.Encap, out.EncapPort, out.Source = true, encap.KindGUE, 6080, netip.MustParseAddr("10.0.2.2")
	w.apply(real(realA, method.TUN), out)
	const n = 32 // half of them for each realserver
	for port := range uint16(n) {
		w.open(port + 1)
	}
	s := w.Stats()
	if s.Connections == 0 || s.Refused[ConnectionsFull] == 0 {
		t.Fatalf("the map for 8 is not full: %+v", s)
	}
	if all := s.Connections + int(s.Refused[ConnectionsFull]); all != n/2 || w.wanting[0] != all-s.Connections {
		t.Errorf("%d connections in the kernel, %d refused, %d want to get there: want %d in all", s.Connections,
			s.Refused[ConnectionsFull], w.wanting[0], n/2)
	}
}

// TestNoPath: connections of a realserver whose path the kernel does not take stay out and are counted. NoPath is
// called once. They get there when a change makes room, or the kernel takes the path.
func TestNoPath(t *testing.T) {
	for name, row := range map[string]struct {
		paths  int // for which there is room
		broken error
		reason Refusal
		is     error
	}{
		"full":  {1, nil, PathsFull, bpf.ErrPathsFull},
		"error": {64, unix.EPERM, PathError, unix.EPERM},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorldOf(t, bpf.DirectorConfig{Flows4: 64, Flows6: 64, Paths: row.paths})
			w.apply(real(realA, method.TUN), real(realB, method.TUN))
			w.open(1)
			w.kernel.broken = row.broken
			w.open(2)
			w.send(2, packet.FlagACK, 40)
			w.lookNow()
			w.mustHave("the first", 1, true)
			w.mustHave("the second", 2, false)
			c, _ := w.table.Lookup(client(2), w.now)
			second := w.snapshot.Dest(c.Dest).Address
			named := func(err error) bool { // by an error that concerns one realserver
				return strings.Contains(err.Error(), "realserver "+second.String()+": ") == (row.reason == PathError)
			}
			if err := testkit.Receive(t, "an error", w.noPath); !errors.Is(err, row.is) || !named(err) {
				t.Errorf("NoPath: %v", err)
			}
			n, err := w.PathFaults()
			if count := w.Stats().Refused[row.reason]; count < 2 || n != 1 || !errors.Is(err, row.is) || !named(err) {
				t.Errorf("%d refused; %d realservers without a path: %v", count, n, err)
			}
			w.kernel.broken = nil
			w.apply(real(second, method.TUN))
			w.send(2, packet.FlagACK, 20)
			w.lookNow()
			w.mustHave("the second, later", 2, true)
			if n, err := w.PathFaults(); n != 0 || err != nil || len(w.noPath) != 0 {
				t.Errorf("%d realservers without a path: %v; %d more errors", n, err, len(w.noPath))
			}
		})
	}
}

// TestHops: connections whose packets may name another realserver stay out of the kernel, also those that were there
// before, and are counted.
func TestHops(t *testing.T) {
	w := newWorld(t, 64)
	gue := real(realA, method.TUN)
	gue.Encap, gue.EncapPort = encap.KindGUE, 6080
	w.apply(gue)
	w.open(1)
	w.mustHave("a plain one", 1, true)
	gue.Hop = true
	w.apply(gue)
	w.mustHave("one with a hop", 1, false)
	w.account()
	w.send(1, packet.FlagACK, 40)
	w.lookNow()
	w.mustHave("one with a hop, later", 1, false)
	if n := w.Stats().Refused[SecondChance]; n == 0 {
		t.Error("it is not counted")
	}
}

// TestFullOfQuiet: where a map is full of connections that have no packets just now, no more of them make place than
// there are others that want it.
func TestFullOfQuiet(t *testing.T) {
	w := newWorld(t, 64)
	w.apply(real(realA, method.TUN))
	for port := range uint16(80) {
		w.open(port + 1)
	}
	before, wanting := w.Stats().Connections, w.wanting[0]
	if before < 32 || wanting == 0 || wanting >= before {
		t.Fatalf("%d connections in a map for 64, and %d want to get there", before, wanting)
	}
	w.account()
	if n := w.Stats().Connections; n < before-wanting || n == before {
		t.Errorf("%d connections are there of %d, and %d want to get there", n, before, wanting)
	}
}

// TestIdle: a connection without packets leaves the kernel, and stays in the table.
func TestIdle(t *testing.T) {
	w := newWorld(t, 64)
	w.apply(real(realA, method.TUN))
	w.open(1)
	w.now += idle
	w.account()
	w.mustHave("idle", 1, false)
	if _, ok := w.table.Lookup(client(1), w.now); !ok {
		t.Error("it has left the table")
	}
	w.send(1, packet.FlagACK, 20)
	w.lookNow()
	w.mustHave("busy again", 1, true)
}

// TestManyAtOnce: where many connections leave the kernel at once, since they are idle or captured, a change of
// realservers does not wait for all of them.
func TestManyAtOnce(t *testing.T) {
	const n = 2*releaseAtOnce + 100
	w := newWorld(t, n)
	w.apply(real(realA, method.TUN))
	all := func(packet.Flow, *balancer.Dest) bool { return true }
	for what, out := range map[string]func(){
		"idle":     func() { w.now += idle; w.account() },
		"captured": func() { w.Exclude(all) },
	} {
		w.Exclude(nil)
		for port := range uint16(n) {
			w.open(port + 1)
		}
		if n := w.Stats().Connections; n <= 2*releaseAtOnce {
			t.Fatalf("%s: only %d connections in the kernel", what, n)
		}
		w.kernel.most = 0
		out()
		if left := len(w.kernel.has(t)); left != 0 || w.Stats().Connections != 0 {
			t.Errorf("%s: %d connections are left, %d counted", what, left, w.Stats().Connections)
		}
		if w.kernel.most > releaseAtOnce {
			t.Errorf("%s: %d connections left while a change had to wait", what, w.kernel.most)
		}
	}
}

// TestExclude: a connection that is captured takes the TUN device until the capture ends.
func TestExclude(t *testing.T) {
	w := newWorld(t, 64)
	w.apply(real(realA, method.TUN))
	w.open(1)
	w.open(2)
	only := func(port uint16) (end func()) {
		return w.Exclude(func(f packet.Flow, d *balancer.Dest) bool { return f.SrcPort == port && d.Address == realA })
	}
	first := only(1)
	w.send(1, packet.FlagACK, 40)
	w.lookNow()
	w.mustHave("excluded", 1, false)
	w.mustHave("excluded another", 2, true)
	second := only(2)
	first() // late: it must not end the second one
	for port := range uint16(2) {
		w.send(port+1, packet.FlagACK, 40)
	}
	w.lookNow()
	w.mustHave("excluded no more", 1, true)
	w.mustHave("excluded by the second one", 2, false)
	second()
	w.send(2, packet.FlagACK, 40)
	w.lookNow()
	w.mustHave("after it", 2, true)
}

// TestSharedServer: replies of a server that two VIPs lead to do not say which of them they come from. Their
// connections stay out.
func TestSharedServer(t *testing.T) {
	w := newWorld(t, 64)
	one := balancer.Service{Name: "one", VIPs: []netip.Addr{vip, netip.MustParseAddr("198.51.100.81")},
		Protocol: packet.ProtoTCP, Ports: []balancer.PortRange{{First: 80, Last: 80}}, Scheduler: "rr",
		Realservers: []balancer.Realserver{real(realA, method.NAT)}}
	if err := w.balancer.Apply(balancer.Config{Services: []balancer.Service{one}}); err != nil {
		t.Fatal(err)
	}
	w.Follow(w.balancer.Snapshot())
	w.open(1)
	w.mustHave("shared", 1, false)
}

// TestSharedLater: a connection by VS/NAT leaves the kernel when another VIP leads to its server, too.
func TestSharedLater(t *testing.T) {
	w := newWorld(t, 64)
	w.apply(real(realA, method.NAT))
	w.open(1)
	w.answer(1)
	w.mustHave("its only VIP", 1, true)
	if err := w.balancer.Apply(balancer.Config{Services: []balancer.Service{{Name: "web",
		VIPs: []netip.Addr{vip, netip.MustParseAddr("198.51.100.81")}, Protocol: packet.ProtoTCP,
		Ports: []balancer.PortRange{{First: 80, Last: 80}}, Scheduler: "rr",
		Realservers: []balancer.Realserver{real(realA, method.NAT)}}}}); err != nil {
		t.Fatal(err)
	}
	w.Follow(w.balancer.Snapshot())
	w.account()
	w.mustHave("one of two VIPs", 1, false)
}
