package balancer

import (
	"net/netip"
	"slices"
	"testing"
	"time"
	"unsafe"

	"vstun/balancer/conntab"
	"vstun/balancer/method"
	"vstun/encap"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

// sections is a Memory, and what a process leaves there.
type sections map[string]struct {
	layout uint32
	bytes  []byte
}

func (m sections) Section(name string, layout uint32, size int) []byte {
	s := m[name]
	words := make([]uint64, (size+7)/8) // aligned
	s.layout, s.bytes = layout, unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(words))), size)
	m[name] = s
	return s.bytes
}

// left is what a process has left behind.
type left sections

func (m left) Section(name string, layout uint32) []byte {
	if s := m[name]; s.layout == layout {
		return s.bytes
	}
	return nil
}

// newIn returns a balancer in memory with these services.
func newIn(t *testing.T, m sections, services ...Service) *Balancer {
	t.Helper()
	b := NewIn(m, conntab.NewIn(m, conntab.Config{Max: 4096}), 2)
	apply(t, b, services...)
	return b
}

// opened opens n connections, and returns their realservers.
func opened(t *testing.T, b *Balancer, from, n int) (at []netip.Addr) {
	t.Helper()
	for i := range n {
		p := flow((from+i)<<16, packet.FlagSYN)
		d, reason := b.Snapshot().Decide(p, 0)
		if reason != drop.Accept {
			t.Fatal(reason)
		}
		at = append(at, d.Address)
		d.Count(1, 1, 100)
		p.TCPFlags = packet.FlagACK
		b.Snapshot().Decide(p, 0)
	}
	return at
}

// mustBeAt fails the test unless connections are at these realservers.
func mustBeAt(t *testing.T, b *Balancer, from int, at []netip.Addr) {
	t.Helper()
	for i, want := range at {
		if d, reason := b.Snapshot().Decide(flow((from+i)<<16, packet.FlagACK), 0); reason != drop.Accept ||
			d.Address != want {
			t.Fatalf("connection %d is at %v (%v), and was at %v", from+i, d, reason, want)
		}
	}
}

// TestAdopt: in the next process connections are at their realservers, whatever the order of the configuration is;
// counts go on, and so do turns.
func TestAdopt(t *testing.T) {
	for _, scheduler := range []string{"rr", "wrr", "wlc"} {
		t.Run(scheduler, func(t *testing.T) {
			memory := sections{}
			other := web(scheduler, rs(1, 1), rs(9, 1)) // one realserver has two numbers
			other.Name, other.Ports = "other", []PortRange{{81, 81}}
			b := newIn(t, memory, other, web(scheduler, rs(1, 1), rs(2, 2), rs(3, 3)))
			at := opened(t, b, 0, 20)
			b.Save()
			twin := newIn(t, sections{}, other, web(scheduler, rs(1, 1), rs(2, 2), rs(3, 3)))
			if want := opened(t, twin, 0, 20); !slices.Equal(at, want) {
				t.Fatalf("%v, want %v", at, want)
			}

			next := sections{}
			b2 := newIn(t, next, web(scheduler, rs(1, 1), rs(2, 2), rs(3, 3)), other)
			a := b2.Adopt(left(memory), 0, 0)
			if a.Connections != 20 || a.Unknown+a.Invalid+a.Expired+a.Full+a.Retired > 0 || a.Names != 5 {
				t.Errorf("%+v", a)
			}
			mustBeAt(t, b2, 0, at)
			if got, want := opened(t, b2, 20, 10), opened(t, twin, 20, 10); !slices.Equal(got, want) {
				t.Errorf("new connections go to %v, without a restart to %v", got, want)
			}
			for i, r := range b2.Snapshot().Status()[0].Realservers {
				want := twin.Snapshot().Status()[1].Realservers[i]
				if r.Connections != want.Connections || r.Packets != want.Packets || r.Bytes != want.Bytes ||
					r.Active != want.Active || r.Inactive != want.Inactive {
					t.Errorf("%+v, without a restart %+v", r, want)
				}
			}
		})
	}
}

// TestAdoptRetired: connections to realservers that have left the configuration, or have another method now, go on by
// the way that they had, and end as those of a retired realserver do.
func TestAdoptRetired(t *testing.T) {
	memory := sections{}
	gre := rs(2, 1)
	gre.Encap, gre.Key, gre.HasKey, gre.Checksum = encap.KindGRE, 7, true, true
	nat := rs(3, 1)
	nat.Kind, nat.Port = method.NAT, 8080
	direct := rs(4, 1)
	direct.Kind, direct.Link = method.DR, method.Link{Device: 7, MAC: [6]byte{2, 7}}
	b := newIn(t, memory, web("rr", rs(1, 1), gre, nat, direct))
	at := opened(t, b, 0, 8)

	b2 := newIn(t, sections{}, web("rr", rs(1, 1), rs(4, 1)))
	a := b2.Adopt(left(memory), 0, 0)
	if a.Connections != 8 || a.Retired != 3 || a.Unknown > 0 {
		t.Errorf("%+v", a)
	}
	for i, want := range at {
		d := b2.Snapshot().Find(flow(i<<16, 0).Flow, 0)
		if want == direct.Address {
			if n := b2.Snapshot().DestsByAddr(want); len(n) != 2 {
				t.Errorf("%s has %d methods", want, len(n))
			}
			continue
		}
		if d == nil || d.Address != want {
			t.Fatalf("connection %d is at %v, and was at %v", i, d, want)
		}
		switch want {
		case gre.Address:
			if d.Target() != (Target{gre.Address, method.Config{Encap: encap.KindGRE, Key: 7, HasKey: true,
				Checksum: true, MTU: unknownMTU}}) {
				t.Errorf("%+v", d.Target())
			}
		case nat.Address:
			reply := flow(i<<16, packet.FlagACK)
			reply.Flow = d.Real(reply.Flow).Reverse()
			k := b2.Snapshot().Backend(reply)
			if k == nil || b2.Snapshot().Reply(reply, k, 0) != d {
				t.Errorf("the reply of %v has no connection", d)
			}
		}
	}
	if l := b2.Leaving(); len(l) != 3 {
		t.Errorf("leaving are %+v", l)
	}
	if d, _ := b2.Snapshot().Decide(flow(100<<16, packet.FlagSYN), 0); d == nil || d.Address == gre.Address ||
		d.Address == nat.Address {
		t.Errorf("a new connection goes to %v", d)
	}
}

// TestAdoptMovedFrontend: a connection of VS/NAT whose VIP or port does not lead to its realserver any more goes on, as
// after a reload: its replies are translated until it has ended.
func TestAdoptMovedFrontend(t *testing.T) {
	nat := rs(3, 1)
	nat.Kind, nat.Port = method.NAT, 8080
	other := netip.MustParseAddr("198.51.100.99")
	for name, move := range map[string]func(s *Service){
		"port": func(s *Service) { s.Ports = []PortRange{{81, 81}} },
		"VIP":  func(s *Service) { s.VIPs = []netip.Addr{other} },
		"none": func(*Service) {},
	} {
		t.Run(name, func(t *testing.T) {
			memory, next := sections{}, sections{}
			opened(t, newIn(t, memory, web("rr", nat)), 0, 2)
			moved := web("rr", nat)
			move(&moved)
			translated := func(b *Balancer, i int) bool {
				p := flow(i<<16, packet.FlagACK)
				d := b.Snapshot().Find(p.Flow, 0)
				if d == nil {
					return false
				}
				p.Flow = d.Real(p.Flow).Reverse()
				k := b.Snapshot().Backend(p)
				return k != nil && b.Snapshot().Reply(p, k, 0) == d
			}
			b := newIn(t, next, moved)
			if a := b.Adopt(left(memory), 0, 0); a.Connections != 2 || a.Retired > 0 {
				t.Errorf("%+v", a)
			}
			third := newIn(t, sections{}, moved)
			third.Adopt(left(next), 0, 0)
			for i := range 2 {
				if !translated(b, i) || !translated(third, i) {
					t.Errorf("connection %d: the reply is translated: %v, after another restart %v", i,
						translated(b, i), translated(third, i))
				}
			}
			apply(t, b, moved, Service{Name: "other", VIPs: []netip.Addr{other}, Protocol: packet.ProtoTCP,
				Ports: []PortRange{{9, 9}}, Scheduler: "rr"})
			if !translated(b, 0) {
				t.Error("a reload has ended the connection")
			}
			b.table.Sweep(1 << 30)
			b.forget(time.Now().Add(2 * forgetAfter))
			if n := len(b.left); n > 0 {
				t.Errorf("%d mappings stay without a connection", n)
			}
		})
	}
}

// TestAdoptAfterChanges: a number that one realserver had after another means the last one.
func TestAdoptAfterChanges(t *testing.T) {
	memory := sections{}
	b := newIn(t, memory, web("rr", rs(1, 1), rs(2, 1)))
	apply(t, b, web("rr", rs(2, 1)))
	b.forget(time.Now().Add(2 * forgetAfter)) // number of 1 is free
	apply(t, b, web("rr", rs(2, 1), rs(3, 1)))
	changed := rs(3, 1)
	changed.Encap = encap.KindGRE
	apply(t, b, web("rr", rs(2, 1), changed))
	at := opened(t, b, 0, 4)
	b2 := newIn(t, sections{}, web("rr", rs(5, 1)))
	if a := b2.Adopt(left(memory), 0, 0); a.Connections != 4 || a.Retired != 2 {
		t.Errorf("%+v", a)
	}
	mustBeAt(t, b2, 0, at)
	if d := b2.Snapshot().DestsByAddr(changed.Address); len(d) != 1 || d[0].Encap != encap.KindGRE {
		t.Errorf("%v", d)
	}
}

// TestAdoptPersistence: a client's persistence goes on under the new number of its service.
func TestAdoptPersistence(t *testing.T) {
	memory := sections{}
	p := web("rr", rs(1, 1), rs(2, 1), rs(3, 1))
	p.Persistence = Persistence{Timeout: time.Hour, Mask4: 32}
	first := web("rr", rs(7, 1))
	first.Name, first.Ports = "first", []PortRange{{81, 81}}
	b := newIn(t, memory, first, p)
	at := opened(t, b, 0, 6)
	b2 := newIn(t, sections{}, p)
	if a := b2.Adopt(left(memory), 0, 0); a.Connections != 6 || a.Templates != 6 {
		t.Errorf("%+v", a)
	}
	for i, want := range at {
		again := flow(i<<16|1, packet.FlagSYN) // another port
		if d, reason := b2.Snapshot().Decide(again, 0); d == nil || d.Address != want {
			t.Errorf("client %d goes to %v (%v), and was at %v", i, d, reason, want)
		}
	}
}

// TestAdoptNonsense: damaged records are no names.
func TestAdoptNonsense(t *testing.T) {
	memory := sections{}
	b := newIn(t, memory, web("rr", rs(1, 1), rs(2, 1)))
	opened(t, b, 0, 4)
	list := records[keptRealserver](memory[realserversSection(0)].bytes)
	list[0].valid.Store(9)
	n := &list[1].names[list[1].valid.Load()-1]
	n.length = 1 << 30
	copy(n.text[:], "{ nonsense")
	if a := newIn(t, sections{}, web("rr", rs(1, 1))).Adopt(left(memory), 0, 0); a.Connections != 0 || a.Unknown != 4 {
		t.Errorf("%+v", a)
	}
}
