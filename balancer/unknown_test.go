package balancer

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"vstun/balancer/conntab"
	"vstun/balancer/method"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

// hashing returns a balancer that lets hash schedulers decide for unknown connections.
func hashing(t testing.TB, services ...Service) *Balancer {
	t.Helper()
	b := New(conntab.New(conntab.Config{Max: 100_000}), 1)
	if err := b.Apply(Config{Services: services, Options: Options{HashUnknown: true}}); err != nil {
		t.Fatal(err)
	}
	return b
}

const ack, fin, rst = packet.FlagACK, packet.FlagFIN | packet.FlagACK, packet.FlagRST

// TestUnknownFlows: a second director without the connections of the first leads every packet of theirs to the same
// realserver, whatever their forwarding methods are, if the scheduler is a hash. It refuses packets that no connection
// has.
func TestUnknownFlows(t *testing.T) {
	mixed := []Realserver{rs(1, 3), rs(2, 1), nat(3, 0), nat(4, 8080), rs(5, 2)}
	mixed[4].Kind = method.DR
	hashes := 0
	for _, row := range schedulers {
		for _, flags := range []Flags{{}, {Port: true}, {Port: true, Fallback: true}} {
			if flags != (Flags{}) && !row.Flags {
				continue
			}
			svc := web(row.Name, mixed...)
			svc.Flags = flags
			first, second, refusing := newBalancer(t, svc), hashing(t, svc), newBalancer(t, svc)
			if row.Hash {
				hashes++
			}
			chosen := map[string]bool{}
			for n := range 300 {
				at := to(first, flow(n<<16|n+1, packet.FlagSYN))
				chosen[at] = true
				for _, last := range []uint8{ack, ack | packet.FlagPSH, fin, rst, rst | ack} {
					want := at
					if !row.Hash {
						want = "no_connection"
					}
					p := flow(n<<16|n+1, last)
					if got := to(second, p); got != want {
						t.Fatalf("%s %+v: flags %#x of flow %d go to %s, want %s", row.Name, flags, last, n, got, want)
					}
					if got := to(refusing, p); got != "no_connection" {
						t.Fatalf("%s: without the option flags %#x go to %s", row.Name, last, got)
					}
				}
				for _, none := range []uint8{0, packet.FlagFIN, packet.FlagPSH, packet.FlagSYN | packet.FlagRST} {
					if got := to(second, flow(1_000+n, none)); got != "no_connection" {
						t.Fatalf("%s: flags %#x go to %s", row.Name, none, got)
					}
				}
			}
			if row.Hash && len(chosen) < 4 && row.Name != "dh" { // the VIP is the same
				t.Errorf("%s %+v: only %v are chosen", row.Name, flags, chosen)
			}
		}
	}
	if hashes != 7 {
		t.Errorf("%d schedulers with flags are hashes, want dh, and three of sh and of mh", hashes)
	}
}

// TestUnknownFlowsStay: an ACK opens a connection that stays at its realserver when others come and go.
func TestUnknownFlowsStay(t *testing.T) {
	b := hashing(t, web("sh", rs(1, 1), rs(2, 1)))
	at := map[int]string{}
	for n := range 64 {
		at[n] = to(b, flow(n<<16|1, ack))
	}
	if err := b.Apply(Config{Services: []Service{web("sh", rs(1, 1), rs(2, 1), rs(3, 1), rs(4, 1))},
		Options: Options{HashUnknown: true}}); err != nil {
		t.Fatal(err)
	}
	moved := 0
	for n, was := range at {
		if got := to(b, flow(n<<16|1, ack)); got != was {
			t.Errorf("flow %d is at %s now, was at %s", n, got, was)
		}
		if to(b, flow(n<<16|2, ack)) != was {
			moved++
		}
	}
	if moved == 0 {
		t.Error("the new realservers change no choice, so that the test shows nothing")
	}
}

// TestUnknownFlowsLeaveNothing: a RST opens no connection and no template. A FIN's connection ends within ten seconds.
// One ACK opens a half-open connection, which a second one establishes, and a flood of ACKs stays within the bound of
// half-open connections.
func TestUnknownFlowsLeaveNothing(t *testing.T) {
	svc := web("mh", rs(1, 1), rs(2, 1))
	persistent := svc
	persistent.Persistence = Persistence{Timeout: time.Hour, Mask4: 32, Mask6: 128}
	for _, s := range []Service{svc, persistent} {
		b := hashing(t, s)
		for n := range 100 {
			to(b, flow(n<<16|1, rst))
		}
		if n := b.table.Len(); n != 0 {
			t.Errorf("RSTs open %d entries", n)
		}
	}
	b := hashing(t, svc)
	to(b, flow(1, fin))
	c, known := b.table.Lookup(flow(1, fin).Flow, 0)
	if !known || c.State != conntab.Close || c.Expires > 10*time.Second {
		t.Errorf("after a FIN: %+v, %v", c, known)
	}
	to(b, flow(2, ack))
	if c, _ := b.table.Lookup(flow(2, ack).Flow, 0); c.State != conntab.SynRecv || b.table.HalfOpen() != 1 {
		t.Errorf("after an ACK: %+v", c)
	}
	to(b, flow(2, ack))
	if c, _ := b.table.Lookup(flow(2, ack).Flow, 0); c.State != conntab.Established || b.table.HalfOpen() != 0 {
		t.Errorf("after a second ACK: %+v", c)
	}

	flooded := New(conntab.New(conntab.Config{Max: 20_000, HalfOpenMax: 4_000}), 1)
	if err := flooded.Apply(Config{Services: []Service{svc}, Options: Options{HashUnknown: true}}); err != nil {
		t.Fatal(err)
	}
	for n := range 60_000 {
		to(flooded, flow(n<<16|n%1000, ack))
	}
	if n := flooded.table.Len(); n > 4_000 {
		t.Errorf("a flood of ACKs leaves %d connections", n)
	}
}

// TestUnknownFlowsWithoutRealserver: if the scheduler finds no realserver, the packet is one of no connection.
func TestUnknownFlowsWithoutRealserver(t *testing.T) {
	b := hashing(t, web("sh", rs(1, 0), rs(2, 0)))
	for _, flags := range []uint8{ack, fin, rst} {
		if got := to(b, flow(1, flags)); got != "no_connection" {
			t.Errorf("flags %#x: %s", flags, got)
		}
	}
	p := flow(1, ack)
	p.Flow.DstPort = 81
	if got := to(b, p); got != "no_service" {
		t.Errorf("without a service: %s", got)
	}
	sctp := web("sh", rs(1, 1))
	sctp.Protocol = packet.ProtoSCTP
	p = flow(1, 0)
	p.Flow.Proto, p.SCTPChunk = packet.ProtoSCTP, packet.ChunkInit+2
	if got := to(hashing(t, sctp), p); got != "no_connection" {
		t.Errorf("SCTP: %s", got)
	}
}

// TestUnknownFlowsOfPersistentClients: a template leads a RST and an ACK, though the hash leads elsewhere.
func TestUnknownFlowsOfPersistentClients(t *testing.T) {
	svc := web("sh", rs(1, 1))
	svc.Persistence = Persistence{Timeout: time.Hour, Mask4: 32, Mask6: 128}
	b := hashing(t, svc)
	for n := range 20 {
		to(b, flow(n<<16|1, packet.FlagSYN))
	}
	svc.Realservers = append(svc.Realservers, rs(2, 1), rs(3, 1))
	if err := b.Apply(Config{Services: []Service{svc}, Options: Options{HashUnknown: true}}); err != nil {
		t.Fatal(err)
	}
	for n := range 20 {
		for _, flags := range []uint8{rst, fin, ack} {
			if got := to(b, flow(n<<16|2, flags)); got != "1" {
				t.Errorf("client %d, flags %#x: to %s", n, flags, got)
			}
		}
	}
}

// TestUnknownReplies: a reply of VS/NAT belongs to the connection that the scheduler would lead to its sender. Replies
// of other realservers, of services without a hash, and those that may belong to several connections belong to none.
func TestUnknownReplies(t *testing.T) {
	services := func(scheduler string, ports ...PortRange) Service {
		s := natService("web", packet.ProtoTCP, []netip.Addr{vip}, ports, nat(1, 8080), nat(2, 8080))
		s.Scheduler, s.Flags.Port = scheduler, true
		return s
	}
	reply := func(b *Balancer, real packet.Flow, flags uint8) *Dest {
		p := &packet.Info{Len: 40, Flow: real.Reverse(), TCPFlags: flags}
		s := b.Snapshot()
		d := s.Reply(p, s.Backend(p), 0)
		if d == nil && p.Flow != real.Reverse() {
			t.Errorf("the flow of a packet of no connection is %v, was %v", p.Flow, real.Reverse())
		}
		if d != nil && d.Real(p.Flow) != real {
			t.Errorf("the reply to %v belongs to %v", real, p.Flow)
		}
		return d
	}
	for _, c := range []struct {
		name  string
		svc   Service
		found bool
	}{
		{"sh", services("sh", PortRange{80, 80}), true},
		{"mh", services("mh", PortRange{80, 80}), true},
		{"wlc", services("wlc", PortRange{80, 80}), false},
		{"two frontends", services("sh", PortRange{80, 80}, PortRange{443, 443}), false},
	} {
		first, second := newBalancer(t, c.svc), hashing(t, c.svc)
		for port := range uint16(40) {
			real := ask(t, first, from(port+1, packet.ProtoTCP, vip, 80))
			other := real
			other.Dst = netip.AddrFrom4([4]byte{10, 0, 0, 3 - real.Dst.As4()[3]})
			for _, flags := range []uint8{packet.FlagSYN | ack, rst, 0} {
				if reply(second, real, flags) != nil {
					t.Errorf("%s: a reply with flags %#x begins a connection", c.name, flags)
				}
			}
			if reply(second, other, ack) != nil {
				t.Errorf("%s: a packet of %v belongs to a connection to %v", c.name, other.Dst, real.Dst)
			}
			if d := reply(second, real, ack); (d != nil) != c.found {
				t.Errorf("%s: the sender of a reply is %+v", c.name, d)
			}
		}
		if n := second.table.Len(); (n == 40) != c.found {
			t.Errorf("%s: %d connections", c.name, n)
		}
	}
	every := services("sh", EveryPort)
	every.Realservers = []Realserver{nat(1, 0), nat(2, 0)}
	first, second := newBalancer(t, every), hashing(t, every)
	if real := ask(t, first, from(1, packet.ProtoTCP, vip, 80)); reply(second, real, ack) != nil {
		t.Error("a realserver's own connection, from any port, is taken for a client's")
	}
}

// TestUnknownFlowsAllocateNothing: nor do replies.
func TestUnknownFlowsAllocateNothing(t *testing.T) {
	for _, name := range []string{"dh", "sh", "mh"} {
		svc := natService("web", packet.ProtoTCP, []netip.Addr{vip, vip2}, []PortRange{{80, 80}}, nat(1, 8080),
			nat(2, 8080))
		svc.Scheduler = name
		svc.Persistence = Persistence{Timeout: time.Hour, Mask4: 32, Mask6: 128}
		s := hashing(t, svc).Snapshot()
		p, n := &packet.Info{Len: 40}, uint16(0)
		for _, flags := range []uint8{ack, fin, rst} {
			if allocs := testing.AllocsPerRun(1000, func() {
				n++
				p.Flow, p.TCPFlags, p.Hash = from(n, packet.ProtoTCP, vip, 80), flags, 0
				if _, reason := s.Decide(p, 0); reason != drop.Accept {
					t.Fatal(reason)
				}
				p.Flow = packet.Flow{Src: rs(1, 1).Address, SrcPort: 8080, Dst: p.Flow.Src, DstPort: 1000 + n,
					Proto: packet.ProtoTCP}
				s.Reply(p, s.Backend(p), 0)
			}); allocs != 0 {
				t.Errorf("%s, flags %#x: %v allocations", name, flags, allocs)
			}
		}
	}
}

// TestExplainUnknown: Explain foresees the decision for each packet of an unknown connection and changes nothing.
func TestExplainUnknown(t *testing.T) {
	for _, name := range Schedulers() {
		svc := web(name, rs(1, 1), rs(2, 2), rs(3, 0))
		b := hashing(t, svc)
		for n := range 50 {
			for _, flags := range []uint8{rst, fin, ack} {
				p := flow(n<<16|int(flags), flags)
				before := b.table.Len()
				e := b.Snapshot().Explain(p, 0)
				if n := b.table.Len(); n != before {
					t.Fatalf("%s, flags %#x: Explain leaves %d entries of %d", name, flags, n, before)
				}
				d, reason := b.Snapshot().Decide(p, 0)
				if got := fmt.Sprint(reason); got != fmt.Sprint(e.Drop) || d != nil && d.ID() != e.Chosen {
					t.Fatalf("%s, flags %#x: %+v, and %v is foreseen", name, flags, d, e.Chosen)
				}
			}
		}
	}
}
