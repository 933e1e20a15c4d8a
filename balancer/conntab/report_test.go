package conntab

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"vstun/encap/packet"
)

// reportOf returns a connection in state st to dest, always of the same flow.
func reportOf(st State, dest uint32) Conn {
	return Conn{Flow: tcp(1, 1, 0).Flow, State: st, Dest: dest, Expires: 900 * time.Second, Packets: 3}
}

// TestReport: the state and destination that a connection has after a report.
func TestReport(t *testing.T) {
	p := tcp(1, 1, packet.FlagSYN)
	atOne, atTwo := []Conn{reportOf(Established, 1)}, []Conn{reportOf(Established, 2)}
	ended := []Conn{reportOf(FinWait, 1)}
	for name, c := range map[string]struct {
		before []Conn // reported in order
		own    bool   // the last of them has then had a packet here
		age    Ticks  // since
		state  State
		dest   uint32
		how    Report
		want   Result
		is     State
		to     uint32
	}{
		"new":                        {nil, false, 0, Established, 1, Unordered, Inserted, Established, 1},
		"new hearsay":                {nil, false, 0, Established, 1, Hearsay, Inserted, Established, 1},
		"state":                      {atOne, false, 0, FinWait, 1, Unordered, Hit, FinWait, 1},
		"hearsay changes nothing":    {atOne, false, 0, FinWait, 1, Hearsay, Hit, Established, 1},
		"hearsay replaces nothing":   {ended, false, 0, Established, 2, Hearsay, Hit, FinWait, 1},
		"active replaces":            {ended, false, 0, Established, 2, Unordered, Inserted, Established, 2},
		"late end of the former one": {atTwo, false, 0, FinWait, 1, Unordered, Hit, Established, 2},
		"ordered end of a new one":   {atOne, false, 0, FinWait, 2, Ordered, Inserted, FinWait, 2},
		"own, at another":            {atOne, true, 50, Established, 2, Ordered, Hit, Established, 1},
		"own, at another, silent":    {atOne, true, 200, Established, 2, Ordered, Inserted, Established, 2},
		"own that ends":              {atOne, true, 50, FinWait, 1, Ordered, Hit, FinWait, 1},
		"own that has ended":         {ended, true, 50, Established, 1, Ordered, Hit, FinWait, 1},
		"own, silent":                {atOne, true, 200, FinWait, 1, Ordered, Hit, FinWait, 1},
	} {
		t.Run(name, func(t *testing.T) {
			table := newSmall(Config{})
			for _, b := range c.before {
				table.Report(b, Unordered, 0)
			}
			if c.own {
				ack := p
				ack.TCPFlags = packet.FlagACK
				table.View().Packet(&ack, FromClient, 0)
			}
			if got := table.Report(reportOf(c.state, c.dest), c.how, c.age); got != c.want {
				t.Errorf("result %d, want %d", got, c.want)
			}
			got, known := table.Lookup(p.Flow, c.age)
			if !known || got.State != c.is || got.Dest != c.to {
				t.Errorf("connection %+v, want state %v, destination %d", got, c.is, c.to)
			}
			if n := table.Counts(c.to).Active() + table.Counts(c.to).Inactive(); n != 1 || table.Len() != 1 {
				t.Errorf("%d connections at %d, %d in all, want 1", n, c.to, table.Len())
			}
		})
	}
}

// TestEarlierReport: a report of what was before the last packet here changes nothing, whatever it says. One of what
// came later does.
func TestEarlierReport(t *testing.T) {
	const now = 20 * PerSecond // the last packet came 5 s before
	for name, c := range map[string]struct {
		flags uint8 // of the last packet
		of    Conn
		is    State
		to    uint32
	}{
		"former connection":   {packet.FlagACK, reportOf(Established, 2), Established, 1},
		"one that ended here": {packet.FlagFIN, reportOf(Established, 1), FinWait, 1},
		"its former end":      {packet.FlagACK, reportOf(FinWait, 1), Established, 1},
	} {
		for age, earlier := range map[time.Duration]bool{3 * time.Second: false, 7 * time.Second: true} {
			table := newSmall(Config{})
			p := tcp(1, 1, packet.FlagSYN)
			table.View().Insert(&p, 1, 0, now-6*PerSecond)
			for _, p.TCPFlags = range []uint8{packet.FlagACK, c.flags} {
				table.View().Packet(&p, FromClient, now-5*PerSecond)
			}
			c.of.Age = age
			table.Report(c.of, Ordered, now)
			got, known := table.Lookup(p.Flow, now)
			if same := got.State == c.is && got.Dest == c.to && !got.Reported; !known || same != earlier {
				t.Errorf("%s, %v old: %+v", name, age, got)
			}
		}
	}
	client := netip.MustParseAddr("192.0.2.1")
	for age, want := range map[time.Duration]uint32{3 * time.Second: 2, 7 * time.Second: 1} {
		table := newSmall(Config{})
		_, number, _ := table.PutTemplate(client, 7, 1, time.Minute, 0, now-5*PerSecond)
		table.Release(number)
		table.Report(Conn{Flow: packet.Flow{Src: client}, Template: true, Service: 7, Dest: 2, Timeout: time.Minute,
			Expires: time.Minute - age, Age: age}, Ordered, now)
		if got, ok := table.LookupTemplate(client, 7, now); !ok || got.Dest != want {
			t.Errorf("template, %v old: %+v, want destination %d", age, got, want)
		}
	}
}

// TestReportedUntilPacket: a report is no change of this director's own until a packet comes.
func TestReportedUntilPacket(t *testing.T) {
	table := newSmall(Config{})
	all, own := table.Changes(1000, lifeKinds...), table.OwnChanges(1000, Assured, Moved)
	p := tcp(1, 1, packet.FlagSYN)
	table.Report(reportOf(Established, 1), Ordered, 0)
	table.Report(reportOf(FinWait, 1), Ordered, 0)
	if got, _ := kinds(own, 0); len(got) > 0 {
		t.Errorf("own changes are %v, want none", got)
	}
	if got, conns := kinds(all, 0); !slices.Equal(got, []ChangeKind{Opened, Moved}) || !conns[0].Reported {
		t.Errorf("changes %v of %+v", got, conns)
	}
	p.TCPFlags = packet.FlagRST
	table.View().Packet(&p, FromClient, 0)
	if got, conns := kinds(own, 0); !slices.Equal(got, []ChangeKind{Moved}) || conns[0].Reported {
		t.Errorf("after a packet: %v of %+v", got, conns)
	}
}

// TestOwnChangesInFlood: connections of a flood do not displace the changes that a feed wants.
func TestOwnChangesInFlood(t *testing.T) {
	table := newSmall(Config{Max: 10_000})
	f := table.OwnChanges(1, Assured, Moved)
	p := tcp(0, 1, packet.FlagSYN)
	table.View().Insert(&p, 1, 0, 0)
	p.TCPFlags = packet.FlagACK
	table.View().Packet(&p, FromClient, 0)
	for i := range uint32(5000) {
		p := tcp(1+i, 1, packet.FlagSYN)
		table.View().Insert(&p, 1, 0, 0)
	}
	if got, _ := kinds(f, 0); !slices.Equal(got, []ChangeKind{Assured}) || f.Lost() > 0 {
		t.Errorf("changes %v, %d lost", got, f.Lost())
	}
}

// TestOwnChangesMerge: changes of some connections that alternate take one place each. Of their kinds, Assured stays.
func TestOwnChangesMerge(t *testing.T) {
	table := newSmall(Config{})
	f := table.OwnChanges(1000, Assured, Moved)
	defer f.Close()
	for i := range uint32(3) {
		p := tcp(i, 1, packet.FlagSYN)
		table.View().Insert(&p, 1, 0, 0)
	}
	for range 1000 {
		for _, flags := range []uint8{packet.FlagACK, packet.FlagFIN, packet.FlagSYN} {
			for i := range uint32(3) {
				p := tcp(i, 1, flags)
				table.View().Packet(&p, FromClient, 0)
			}
		}
	}
	got, conns := kinds(f, 0)
	if !slices.Equal(got, []ChangeKind{Assured, Assured, Assured}) || f.Lost() > 0 || conns[0].State != FinWait {
		t.Errorf("%v of %+v, %d lost", got, conns, f.Lost())
	}
	p := tcp(1, 1, packet.FlagACK)
	table.View().Packet(&p, FromClient, 0)
	f.Include(Opened, true)
	for _, p.TCPFlags = range []uint8{packet.FlagFIN, packet.FlagSYN} {
		table.View().Packet(&p, FromClient, 0)
	}
	if got, conns := kinds(f, 0); !slices.Equal(got, []ChangeKind{Assured}) || conns[0].State != SynRecv {
		t.Errorf("%v of %+v", got, conns)
	}
}

// TestNotesAllocateNothing: packets allocate nothing while their changes are noted.
func TestNotesAllocateNothing(t *testing.T) {
	table := newSmall(Config{Max: 10_000})
	f := table.OwnChanges(1000, Assured, Moved, Repeated)
	defer f.Close()
	view, n := table.View(), uint32(0)
	p := tcp(0, 1, packet.FlagSYN)
	if allocs := testing.AllocsPerRun(500, func() {
		n++
		scatter(&p, n)
		for _, flags := range []uint8{packet.FlagSYN, packet.FlagACK, packet.FlagFIN} {
			if p.TCPFlags, p.Hash = flags, 0; flags == packet.FlagSYN {
				view.Insert(&p, 1, 0, 0)
			} else {
				view.Packet(&p, FromClient, 0)
			}
		}
	}); allocs > 0 {
		t.Errorf("%v allocations", allocs)
	}
}

// TestRepeated: the third datagram of a client is a change.
func TestRepeated(t *testing.T) {
	table := newSmall(Config{})
	f := table.OwnChanges(100, Repeated)
	p := tcp(1, 1, 0)
	p.Flow.Proto = packet.ProtoUDP
	table.View().Insert(&p, 1, 0, 0)
	for n := 2; n <= 10; n++ {
		table.View().Packet(&p, FromClient, 0)
		got, conns := kinds(f, 0)
		if len(got) > 0 != (n == repeatedAt) {
			t.Errorf("datagram %d: %v of %+v", n, got, conns)
		}
	}
}

// TestReportTemplate: a persistent client goes where the newest report says.
func TestReportTemplate(t *testing.T) {
	client := netip.MustParseAddr("192.0.2.1")
	template := func(dest uint32) Conn {
		return Conn{Flow: packet.Flow{Src: client}, Template: true, Service: 7, Dest: dest, Timeout: time.Minute,
			Expires: time.Minute}
	}
	for name, c := range map[string]struct {
		how  Report
		hold bool // a connection has been made here
		age  Ticks
		want uint32
	}{
		"unordered":     {Unordered, false, 0, 2},
		"unordered own": {Unordered, true, 200, 1},
		"ordered":       {Ordered, false, 0, 2},
		"hearsay":       {Hearsay, false, 0, 1},
		"used here":     {Ordered, true, 50, 1},
		"not used long": {Ordered, true, 200, 2},
	} {
		t.Run(name, func(t *testing.T) {
			table := newSmall(Config{HalfOpenMax: 4})
			if r := table.Report(template(1), c.how, 0); r != Inserted {
				t.Fatalf("result %d", r)
			}
			if c.hold {
				_, number, _ := table.Template(client, 7, 0)
				table.Release(number)
			}
			table.Report(template(2), c.how, c.age)
			dest, number, r := table.Template(client, 7, c.age)
			if r != Hit || dest != c.want {
				t.Errorf("destination %d, %d; want %d", dest, r, c.want)
			}
			table.Release(number)
			if table.HalfOpen() != 0 || table.Len() != 1 || table.Counts(c.want).Templates() != 1 {
				t.Errorf("%d half-open, %d in all, %d at the destination", table.HalfOpen(), table.Len(),
					table.Counts(c.want).Templates())
			}
		})
	}
}

// TestWalker: a pass has every entry of both families once.
func TestWalker(t *testing.T) {
	table := newSmall(Config{Max: 20_000})
	for i := range uint32(3000) {
		p := tcp(i, 1, packet.FlagSYN)
		table.View().Insert(&p, 1, 0, 0)
	}
	for i := range uint16(100) {
		p := tcp6(i, packet.FlagSYN)
		table.View().Insert(&p, 1, 0, 0)
	}
	w := table.NewWalker()
	for pass := range 3 {
		seen, slots := map[packet.Flow]int{}, 0
		for {
			entries, n, more := w.Next(0)
			for _, c := range entries {
				seen[c.Flow]++
			}
			if slots += n; !more {
				break
			}
		}
		if len(seen) != 3100 || slots != 2*table.Slots() {
			t.Fatalf("pass %d: %d entries in %d slots, want 3100 in %d", pass, len(seen), slots, 2*table.Slots())
		}
		for f, n := range seen {
			if n != 1 {
				t.Fatalf("%v is there %d times", f, n)
			}
		}
	}
}

// TestNewReport adds a connection of another director. It has the reported destination, state and time.
func TestNewReport(t *testing.T) {
	for name, p := range map[string]packet.Info{"IPv4": tcp(1, 1, packet.FlagACK), "IPv6": tcp6(1, packet.FlagACK)} {
		t.Run(name, func(t *testing.T) {
			table := newSmall(Config{})
			c := Conn{Flow: p.Flow, State: Established, Dest: 7, Expires: 100 * time.Second, Packets: 41,
				Reported: true}
			if r := table.Report(c, Ordered, 1000); r != Inserted {
				t.Fatalf("result %d", r)
			}
			if got, ok := table.Lookup(p.Flow, 1000); !ok || got != c {
				t.Errorf("%+v, want %+v", got, c)
			}
			if n := table.Counts(7); n.Active() != 1 || table.HalfOpen() != 0 || table.Len() != 1 {
				t.Errorf("%d active, %d half-open, %d in all", n.Active(), table.HalfOpen(), table.Len())
			}
			if dest, r := table.Packet(&p, FromClient, 1000); dest != 7 || r != Hit {
				t.Errorf("its packet: %d, result %d", dest, r)
			}
			c.State, c.Expires, c.Packets = FinWait, 50*time.Second, 43
			if r := table.Report(c, Ordered, 1000); r != Hit {
				t.Errorf("an update: result %d", r)
			}
			if got, _ := table.Lookup(p.Flow, 1000); got != c || table.Counts(7).Inactive() != 1 ||
				table.Counts(7).Active() != 0 {
				t.Errorf("updated: %+v", got)
			}
			table.Sweep(1000 + 51*PerSecond)
			empty(t, table)
		})
	}
}

// TestReportNonsense: Report refuses impossible states and destinations, and bounds times.
func TestReportNonsense(t *testing.T) {
	table := newSmall(Config{})
	flow := tcp(1, 1, 0).Flow
	for name, c := range map[string]Conn{
		"UDP's state": {Flow: flow, State: UDP}, "template": {Flow: flow, State: TemplateState},
		"no state": {Flow: flow, State: numStates}, "empty": {Flow: flow}, "pinned": {Flow: flow, State: Pinned},
		"destination": {Flow: flow, State: Established, Dest: MaxDests}, "no timeout": {Flow: flow, Template: true},
	} {
		if r := table.Report(c, Ordered, 0); r != Refused || table.Len() != 0 {
			t.Errorf("%s: result %d", name, r)
		}
	}
	table.Report(Conn{Flow: flow, State: Close, Expires: 1000 * time.Hour}, Ordered, 0)
	if got, ok := table.Lookup(flow, 0); !ok || got.Expires != 10*time.Second {
		t.Errorf("a long time: %+v", got)
	}
	check := tcp(2, 1, 0).Flow
	table.Pin(check, 3, false, 0)
	if r := table.Report(Conn{Flow: check, State: Established, Dest: 4}, Ordered, 0); r != Hit ||
		table.Counts(4).Active() != 0 {
		t.Errorf("a check's flow: result %d", r)
	}
}

// TestNewTemplateReport adds a client's persistence.
func TestNewTemplateReport(t *testing.T) {
	for name, p := range map[string]packet.Info{"IPv4": tcp(1, 1, packet.FlagSYN), "IPv6": tcp6(1, packet.FlagSYN)} {
		t.Run(name, func(t *testing.T) {
			table := newSmall(Config{})
			c := Conn{Flow: packet.Flow{Src: p.Flow.Src}, Template: true, State: TemplateState, Service: 70_000,
				Dest:    7,
				Timeout: time.Minute, Expires: 20 * time.Second, Reported: true}
			if r := table.Report(c, Ordered, 0); r != Inserted || table.HalfOpen() != 0 {
				t.Fatalf("result %d, %d half-open", r, table.HalfOpen())
			}
			if got, ok := table.LookupTemplate(p.Flow.Src, 70_000, 0); !ok || got != c {
				t.Errorf("%+v, want %+v", got, c)
			}
			dest, number, r := table.Template(p.Flow.Src, 70_000, 0)
			if dest != 7 || r != Hit {
				t.Errorf("a client's connection: %d, result %d", dest, r)
			}
			table.Release(number)
			for n := range Ticks(3) {
				table.Sweep(n * 61 * PerSecond)
			}
			empty(t, table)
		})
	}
}

// TestReportEndedTemplate: a template without time left gets no new timeout, and the feed has the time that it gets.
func TestReportEndedTemplate(t *testing.T) {
	table := newSmall(Config{})
	f := table.Changes(1000, lifeKinds...)
	c := Conn{Flow: packet.Flow{Src: tcp(1, 1, 0).Flow.Src}, Template: true, State: TemplateState, Service: 1,
		Timeout: 300 * time.Second, Expires: -time.Second}
	table.Report(c, Ordered, 0)
	got, ok := table.LookupTemplate(c.Flow.Src, 1, 0)
	if _, conns := kinds(f, 0); !ok || got.Expires > time.Second || len(conns) != 1 || conns[0].Expires != got.Expires {
		t.Errorf("%+v, %v; in the feed %+v", got, ok, conns)
	}
	c.Timeout, c.Service = time.Millisecond, 2
	if r := table.Report(c, Ordered, 0); r != Refused {
		t.Errorf("a timeout of less than a tick: result %d", r)
	}
}
