package conntab

import (
	"slices"
	"testing"
	"time"

	"vstun/encap/packet"
)

// lifeKinds are the changes in the life of any connection.
var lifeKinds = []ChangeKind{Opened, Assured, Moved, Ended, Repeated}

// kinds reads a feed to its end.
func kinds(f *Feed, now Ticks) (all []ChangeKind, conns []Conn) {
	into := make([]Change, 3)
	for n := f.Next(now, into); n > 0; n = f.Next(now, into) {
		for _, c := range into[:n] {
			all, conns = append(all, c.Kind), append(conns, c.Conn)
		}
	}
	return all, conns
}

// TestFeed follows connections of both families from their SYN to their end.
func TestFeed(t *testing.T) {
	for name, six := range map[string]bool{"IPv4": false, "IPv6": true} {
		t.Run(name, func(t *testing.T) {
			table := newSmall(Config{})
			f := table.Changes(10_000, lifeKinds...) // before there is a store of IPv6
			defer f.Close()
			p := tcp(1, 1, packet.FlagSYN)
			if six {
				p = tcp6(1, packet.FlagSYN)
			}
			table.Packet(&p, FromClient, 0)
			table.Insert(&p, 7, 0, 0)
			for _, flags := range []uint8{packet.FlagACK, packet.FlagACK, packet.FlagFIN | packet.FlagACK} {
				p.TCPFlags = flags
				table.Packet(&p, FromClient, 0)
			}
			got, conns := kinds(f, 100)
			if want := []ChangeKind{Opened, Assured, Moved}; !slices.Equal(got, want) {
				t.Fatalf("changes %v, want %v", got, want)
			}
			if c := conns[1]; c.Flow != p.Flow || c.State != Established || c.Dest != 7 ||
				c.Expires != 899*time.Second {
				t.Errorf("assured: %+v", c)
			}
			table.Sweep(130 * PerSecond)
			if got, conns = kinds(f, 0); !slices.Equal(got, []ChangeKind{Ended}) || conns[0].State != FinWait {
				t.Errorf("at the end: %v, %+v", got, conns)
			}
			if f.Lost() > 0 {
				t.Errorf("%d changes are lost", f.Lost())
			}
		})
	}
}

// TestFeedIsFull: workers go on, the newest changes stay, and the number of those that are lost is known.
func TestFeedIsFull(t *testing.T) {
	const n = 1000
	table := newSmall(Config{Max: 10_000})
	f := table.Changes(1, lifeKinds...) // one a shard
	for i := range uint32(n) {
		p := tcp(i, 1, packet.FlagSYN)
		table.Insert(&p, 1, 0, 0)
	}
	got, _ := kinds(f, 0)
	if len(got) == 0 || len(got)+int(f.Lost()) != n {
		t.Errorf("%d changes read, %d lost, want %d together", len(got), f.Lost(), n)
	}
	f.Close()
	p := tcp(n, 1, packet.FlagSYN)
	table.Insert(&p, 1, 0, 0)
	if got, _ := kinds(f, 0); len(got) > 0 {
		t.Errorf("after Close: %v", got)
	}
}

// TestFeedKinds: a feed has the kinds that it was made with, and those that are included for a time.
func TestFeedKinds(t *testing.T) {
	table := newSmall(Config{})
	f := table.OwnChanges(1000, Assured)
	defer f.Close()
	for client, included := range []bool{false, true, false} {
		f.Include(Opened, included)
		p := tcp(uint32(client), 1, packet.FlagSYN)
		table.Insert(&p, 1, 0, 0)
		opened, _ := kinds(f, 0)
		p.TCPFlags = packet.FlagACK
		table.Packet(&p, FromClient, 0)
		if got, _ := kinds(f, 0); !slices.Equal(got, []ChangeKind{Assured}) ||
			slices.Equal(opened, []ChangeKind{Opened}) != included || len(opened) > 1 {
			t.Errorf("Opened included: %v, changes %v, then %v", included, opened, got)
		}
	}
}

// TestFeedsAreIndependent: each reader gets every change, and what is pinned is none.
func TestFeedsAreIndependent(t *testing.T) {
	table := newSmall(Config{})
	one, two := table.Changes(1000, lifeKinds...), table.Changes(1000, lifeKinds...)
	p := tcp(1, 1, packet.FlagSYN)
	table.Insert(&p, 1, 0, 0)
	check := tcp(2, 1, packet.FlagSYN)
	table.Pin(check.Flow, 1, false, 0)
	for i, f := range []*Feed{one, two} {
		if got, _ := kinds(f, 0); !slices.Equal(got, []ChangeKind{Opened}) {
			t.Errorf("feed %d: %v", i, got)
		}
	}
	one.Close()
	table.Forget(p.Flow.Src, 1, 1) // nothing
	p.TCPFlags = packet.FlagRST | packet.FlagACK
	table.Packet(&p, FromClient, 0)
	table.Sweep(1000 * PerSecond)
	if got, _ := kinds(two, 0); !slices.Equal(got, []ChangeKind{Ended}) {
		t.Errorf("the other feed goes on with %v", got)
	}
}

// TestFeedReplaysTable: a table to which every change is put has the same connections and counts.
func TestFeedReplaysTable(t *testing.T) {
	table, copied := newSmall(Config{Max: 50_000}), newSmall(Config{Max: 50_000})
	f := table.Changes(1<<20, lifeKinds...)
	defer f.Close()
	live := map[packet.Flow]Conn{}
	into := make([]Change, 64)
	for i := range uint32(20_000) {
		p := tcp(i%3000, uint16(1+i%7), []uint8{packet.FlagSYN, packet.FlagACK, packet.FlagACK,
			packet.FlagFIN | packet.FlagACK, packet.FlagRST}[i*2654435761>>29%5])
		if _, r := table.Packet(&p, FromClient, Ticks(i)); r == Miss {
			table.Insert(&p, i%5, 0, Ticks(i))
		}
		for n := f.Next(Ticks(i), into); n > 0; n = f.Next(Ticks(i), into) {
			for _, c := range into[:n] {
				if c.Kind == Ended {
					delete(live, c.Conn.Flow)
				} else {
					live[c.Conn.Flow] = c.Conn
				}
			}
		}
	}
	const end = 20_000
	for _, c := range live {
		if r := copied.Report(c, Ordered, end); r != Inserted {
			t.Fatalf("%+v: result %d", c, r)
		}
	}
	if copied.Len() == 0 || copied.Len() != table.Len() || copied.HalfOpen() != table.HalfOpen() || f.Lost() > 0 {
		t.Errorf("%d connections, %d half-open, want %d, %d; %d changes lost", copied.Len(), copied.HalfOpen(),
			table.Len(),
			table.HalfOpen(), f.Lost())
	}
	for d := range uint32(5) {
		got, want := copied.Counts(d), table.Counts(d)
		if got.Active() != want.Active() || got.Inactive() != want.Inactive() {
			t.Errorf("destination %d: %d active, %d inactive, want %d, %d", d, got.Active(), got.Inactive(),
				want.Active(), want.Inactive())
		}
	}
}
