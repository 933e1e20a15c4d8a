package conntab

import (
	"testing"
	"time"

	"vstun/encap/packet"
)

// TestAdopt: entries go on in the next table with their state, packets and remaining time, on another clock.
func TestAdopt(t *testing.T) {
	memory := sections{}
	v := NewIn(memory, Config{Max: 1024}).View()
	v.ipv6(true)
	const then, now = 50_000, 4_000_000_000
	for n, p := range []packet.Info{tcp(1, 1, packet.FlagSYN), tcp(2, 1, packet.FlagSYN), tcp6(1, packet.FlagSYN)} {
		v.Insert(&p, uint32(n+1), 0, then-100*PerSecond)
		p.TCPFlags = packet.FlagACK
		v.Packet(&p, FromClient, then-100*PerSecond)
	}
	half := tcp(3, 1, packet.FlagSYN)
	v.Insert(&half, 1, 0, then-20*PerSecond)
	ended := tcp(4, 1, packet.FlagSYN)
	v.Insert(&ended, 1, 0, then-60*PerSecond)
	gone := tcp(5, 1, packet.FlagSYN)
	v.Insert(&gone, 77, 0, then)
	v.Pin(tcp(6, 1, 0).Flow, 1, false, then)
	client := tcp(7, 1, packet.FlagSYN)
	_, number, _ := v.PutTemplate(client.Flow.Src, 9, 2, time.Hour, 0, then)
	v.Insert(&client, 2, number, then)
	_, number, _ = v.PutTemplate(tcp(8, 1, 0).Flow.Src, 9, 77, time.Hour, 0, then)
	v.Release(number)

	next := sections{}
	table := NewIn(next, Config{Max: 1024})
	a := table.Adopt(left(memory), then, now, func(dest, service uint32) Heir {
		return Heir{Dest: dest + 10, Service: service * 3, Known: dest != 77}
	})
	if a.Connections != 5 || a.Templates != 1 || a.Expired != 1 || a.Unknown != 2 || a.Invalid+a.Full > 0 {
		t.Errorf("%+v", a)
	}
	mustAgree(t, table)
	p := tcp(2, 1, 0)
	if c, _ := table.Lookup(p.Flow, now); c.Dest != 12 || c.State != Established || c.Packets != 2 ||
		c.Expires != 800*time.Second {
		t.Errorf("a connection goes on as %+v", c)
	}
	if c, _ := table.Lookup(half.Flow, now); c.State != SynRecv || c.Expires != 40*time.Second {
		t.Errorf("a half-open one goes on as %+v", c)
	}
	if c, ok := table.LookupTemplate(client.Flow.Src, 27, now); !ok || c.Dest != 12 || c.Timeout != time.Hour ||
		c.Expires != time.Hour {
		t.Errorf("a template goes on as %+v, %v", c, ok)
	}
	if table.HalfOpen() != 3 {
		t.Errorf("%d half-open entries", table.HalfOpen())
	}
	for n, want := range [][3]int{{2, 0, 0}, {2, 0, 1}, {1, 0, 0}} {
		c := table.Counts(uint32(n + 11))
		if got := [3]int{c.Active(), c.Inactive(), c.Templates()}; got != want {
			t.Errorf("destination %d has %v, want %v", n+11, got, want)
		}
	}
	if again := NewIn(nil, Config{Max: 1024}).Adopt(left(next), now, 0, same); again.Connections != 5 ||
		again.Templates != 1 {
		t.Errorf("from there: %+v", again)
	}
}

// TestAdoptAssured: the bound of half-open entries holds after a takeover, and assured templates stay.
func TestAdoptAssured(t *testing.T) {
	memory := sections{}
	cfg := Config{Max: 64, HalfOpenMax: 8}
	v := NewIn(memory, cfg).View()
	p := tcp(1, 1, packet.FlagSYN)
	_, number, _ := v.PutTemplate(p.Flow.Src, 1, 1, time.Hour, 0, 0)
	v.Insert(&p, 1, number, 0)
	p.TCPFlags = packet.FlagACK
	v.Packet(&p, FromClient, 0)
	for n := range uint32(8) {
		p := tcp(100+n, 1, packet.FlagSYN)
		v.Insert(&p, 1, 0, Ticks(n))
	}
	table := NewIn(nil, cfg)
	if a := table.Adopt(left(memory), 8, 8, same); a.Connections != 9 || a.Templates != 1 || table.HalfOpen() != 8 {
		t.Fatalf("%+v, %d half-open", a, table.HalfOpen())
	}
	for n := range uint32(8) { // a flood
		oldest := tcp(100+n, 1, 0)
		if _, ok := table.Lookup(oldest.Flow, 8); !ok {
			t.Errorf("half-open connection %d has been evicted before its turn", n)
		}
		p := tcp(200+n, 1, packet.FlagSYN)
		table.View().Insert(&p, 1, 0, 8)
		if _, ok := table.Lookup(oldest.Flow, 8); ok {
			t.Errorf("half-open connection %d is not evicted in its turn", n)
		}
	}
	if _, ok := table.LookupTemplate(p.Flow.Src, 1, 8); !ok {
		t.Error("an assured template has been evicted")
	}
	mustAgree(t, table)
}

// TestAdoptIntoSmaller: what is beyond the bound of the next table is dropped, and counted.
func TestAdoptIntoSmaller(t *testing.T) {
	memory := sections{}
	v := NewIn(memory, Config{Max: 4096}).View()
	for n := range uint32(4096) {
		p := tcp(n, 1, packet.FlagSYN)
		v.Insert(&p, 1, 0, 0)
		p.TCPFlags = packet.FlagACK
		v.Packet(&p, FromClient, 0)
	}
	table := NewIn(nil, Config{Max: 1024})
	if a := table.Adopt(left(memory), 0, 0, same); a.Connections+a.Full != v.Len() || a.Connections > 1024 ||
		a.Connections < 900 {
		t.Errorf("of %d: %+v", v.Len(), a)
	}
	mustAgree(t, table)
}

// FuzzAdopt takes over any bytes: no entry that it takes is impossible, and the counts agree.
func FuzzAdopt(f *testing.F) {
	memory := sections{}
	v := NewIn(memory, Config{Max: 64}).View()
	for n := range uint32(20) {
		p := tcp(n, 1, packet.FlagSYN)
		_, number, _ := v.PutTemplate(p.Flow.Src, 1, n, time.Hour, 0, 0)
		v.Insert(&p, n, number, 0)
	}
	f.Add(memory[slotsSection[[4]byte]()].bytes, memory[assuredSection].bytes, uint32(0))
	f.Fuzz(func(t *testing.T, slots, assured []byte, then uint32) {
		from := sections{slotsSection[[4]byte](): {slotsLayout[[4]byte](), aligned(slots, 32)},
			slotsSection[[16]byte](): {slotsLayout[[16]byte](), aligned(slots, 56)},
			assuredSection:           {bitsLayout, aligned(assured[:min(len(assured), 1<<16)], 4)}}
		table := NewIn(nil, Config{Max: 64})
		table.Adopt(left(from), Ticks(then), 0, func(dest, service uint32) Heir {
			return Heir{Dest: dest % 100, Service: service, Known: dest%7 != 0}
		})
		mustAgree(t, table)
		for c := range table.All(0) {
			if !c.Template && !c.State.connection(c.Flow.Proto) || c.Expires > MaxTimeout {
				t.Errorf("%+v", c)
			}
		}
		for n := range Ticks(4) {
			table.Sweep(n << 29)
			mustAgree(t, table)
		}
	})
}

// aligned returns whole units of b in aligned memory.
func aligned(b []byte, unit int) []byte {
	all := asBytes(make([]uint64, (len(b)+7)/8))[:len(b)/unit*unit]
	copy(all, b)
	return all
}
