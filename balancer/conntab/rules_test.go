package conntab

import (
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"

	"vstun/encap/packet"
)

// TestConfigure: a change applies to a connection from its next packet on, as with `ipvsadm --set`.
func TestConfigure(t *testing.T) {
	table := New(Config{Max: 1024, Timeouts: Timeouts{TCP: time.Minute}})
	ack := tcp(1, 1, packet.FlagACK)
	if _, r := table.View().Packet(&ack, FromClient, 0); r != Refused {
		t.Fatalf("an ACK of no connection: %v", r)
	}
	syn := tcp(1, 1, packet.FlagSYN)
	if _, r := table.View().Insert(&syn, 7, 0, 0); r != Inserted {
		t.Fatal(r)
	}
	if _, r := table.View().Packet(&ack, FromClient, 0); r != Hit {
		t.Fatal(r)
	}
	expires := func(now Ticks) time.Duration {
		t.Helper()
		c, known := table.Lookup(ack.Flow, now)
		if !known {
			t.Fatal("the connection has ended")
		}
		return c.Expires
	}
	before := table.View()
	cfg := Config{Max: 77, SloppyTCP: true, DropRemoved: true, Timeouts: Timeouts{TCP: 5 * time.Minute}}
	after := table.Configure(cfg)
	if !after.Follows(cfg) || before.Follows(cfg) || !table.View().Follows(cfg) {
		t.Error("another Config is in force")
	}
	if table.Max() != 1024 {
		t.Errorf("Max is %d", table.Max())
	}
	if e := expires(100); e != 59*time.Second {
		t.Errorf("before its next packet the connection ends in %v, want 59s", e)
	}
	if _, r := before.Packet(&ack, FromClient, 100); r != Hit || expires(100) != time.Minute {
		t.Errorf("a packet under the former Config: %v, ends in %v", r, expires(100))
	}
	if _, r := after.Packet(&ack, FromClient, 100); r != Hit || expires(100) != 5*time.Minute {
		t.Errorf("a packet under the new Config: %v, ends in %v", r, expires(100))
	}
	stranger := tcp(2, 2, packet.FlagACK)
	if _, r := before.Packet(&stranger, FromClient, 100); r != Refused {
		t.Errorf("an ACK of no connection, under the former Config: %v", r)
	}
	if _, r := after.Packet(&stranger, FromClient, 100); r != Miss {
		t.Errorf("an ACK of no connection, with SloppyTCP: %v", r)
	}
	table.Counts(7).SetState(true, false)
	if _, r := before.Packet(&ack, FromClient, 100); r != Hit {
		t.Errorf("a packet to a realserver that left, under the former Config: %v", r)
	}
	if _, r := after.Packet(&ack, FromClient, 100); r != Gone {
		t.Errorf("a packet to a realserver that left, with DropRemoved: %v", r)
	}
}

// TestConfigureState: SecureTCP changes the state table, and connections in states of the other one go on.
func TestConfigureState(t *testing.T) {
	table := New(Config{Max: 1024})
	state := func(p packet.Info) State {
		t.Helper()
		v := table.View()
		if _, r := v.Packet(&p, FromClient, 0); r == Miss {
			v.Insert(&p, 0, 0, 0)
		}
		c, _ := table.Lookup(p.Flow, 0)
		return c.State
	}
	if s := state(tcp(1, 1, packet.FlagSYN)); s != SynRecv {
		t.Errorf("a SYN leads to %v", s)
	}
	table.Configure(Config{SecureTCP: true})
	if s := state(tcp(2, 2, packet.FlagSYN)); s != SynAck {
		t.Errorf("a SYN, with SecureTCP, leads to %v", s)
	}
	if s := state(tcp(1, 1, packet.FlagACK)); s != Established {
		t.Errorf("an ACK behind a SYN of before leads to %v", s)
	}
	table.Configure(Config{})
	if s := state(tcp(2, 2, packet.FlagACK)); s != Established {
		t.Errorf("an ACK behind a SYN of before leads to %v", s)
	}
}

// TestConfigureHalfOpenMax: the bound changes while the table is full of half-open connections. The oldest are evicted.
func TestConfigureHalfOpenMax(t *testing.T) {
	const half = 4096
	table := New(Config{Max: 1 << 17, HalfOpenMax: half})
	now := Ticks(0)
	flood := func(from, n uint32) {
		for i := range n {
			p := tcp(from+i, 1, packet.FlagSYN)
			table.View().Insert(&p, 0, 0, now)
		}
	}
	there := func(from, n uint32) (found int) {
		for i := range n {
			if _, known := table.Lookup(tcp(from+i, 1, packet.FlagSYN).Flow, now); known {
				found++
			}
		}
		return found
	}
	flood(0, 2*half)
	if n := table.HalfOpen(); n > half {
		t.Fatalf("%d half-open, bound %d", n, half)
	}
	table.Configure(Config{HalfOpenMax: 4 * half})
	old := table.HalfOpen()
	flood(100_000, half)
	if n := there(100_000, half); n != half || table.HalfOpen() != old+half {
		t.Errorf("with a larger bound %d of %d new ones are there, and %d of %d in all",
			n, half, table.HalfOpen(), old+half)
	}
	table.Configure(Config{HalfOpenMax: half / 2})
	if table.HalfOpenMax() != half/2 || table.HalfOpen() > half/2 {
		t.Errorf("with a smaller bound, %d, %d are half-open", table.HalfOpenMax(), table.HalfOpen())
	}
	if old, young := there(0, 2*half), there(100_000, half); old > young/20 { // shards don't fill evenly
		t.Errorf("%d old ones are there, and %d young ones: the oldest go first", old, young)
	}
	table.Configure(Config{})
	flood(200_000, 4*half)
	if n := there(200_000, 4*half); n != 4*half {
		t.Errorf("without a bound %d of %d are there", n, 4*half)
	}
	table.Configure(Config{HalfOpenMax: half})
	flood(300_000, 2*half)
	if n := there(300_000, 2*half); n > half || n < half*3/4 {
		t.Errorf("with a bound again %d of the last are there, want about %d", n, half)
	}
	table.Sweep(never(now))
	if table.Len() != 0 || table.HalfOpen() != 0 {
		t.Errorf("at the end %d are left, %d half-open", table.Len(), table.HalfOpen())
	}
}

// TestConfigureUnderTraffic changes all settings while workers work. The counts are right at the end.
func TestConfigureUnderTraffic(t *testing.T) {
	table := New(Config{Max: 20_000, HalfOpenMax: 4000})
	client6, vip6 := netip.MustParseAddr("2001:db8:1::7"), netip.MustParseAddr("2001:db8:80::80")
	stop := make(chan struct{})
	var workers sync.WaitGroup
	for w := range 3 {
		workers.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(w), 7))
			for now := Ticks(0); ; now++ {
				select {
				case <-stop:
					return
				default:
				}
				v := table.View()
				for range 64 {
					flags := []uint8{packet.FlagSYN, packet.FlagACK, packet.FlagFIN, packet.FlagRST}
					p := tcp(rnd.Uint32N(8000), 1, flags[rnd.IntN(4)])
					if rnd.IntN(2) == 0 {
						p.Flow.Src, p.Flow.SrcPort, p.Flow.Dst = client6, uint16(rnd.IntN(1<<16)), vip6
					}
					if _, r := v.Packet(&p, FromClient, now); r == Miss {
						v.Insert(&p, rnd.Uint32N(4), 0, now)
					}
				}
			}
		})
	}
	sweeper := table.NewSweeper()
	for i := range 300 {
		table.Configure(Config{HalfOpenMax: []int{4000, 0, 2048, 19_000}[i%4],
			SloppyTCP: i%2 == 0, SecureTCP: i%3 == 0, DropRemoved: i%5 == 0,
			Timeouts: Timeouts{TCP: time.Duration(i%7+1) * time.Second}})
		table.Counts(uint32(i%4)).SetState(i%2 == 0, i%3 == 0)
		sweeper.Sweep(Ticks(i), table.Slots()/10)
	}
	close(stop)
	workers.Wait()
	table.Sweep(1 << 30)
	for n := range uint32(4) {
		if c := table.Counts(n); c.Active() != 0 || c.Inactive() != 0 {
			t.Errorf("destination %d has %d active and %d inactive connections", n, c.Active(), c.Inactive())
		}
	}
	if table.Len() != 0 || table.HalfOpen() != 0 {
		t.Errorf("%d are left, %d half-open", table.Len(), table.HalfOpen())
	}
}
