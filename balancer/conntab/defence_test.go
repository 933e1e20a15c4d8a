package conntab

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"vstun/encap/packet"
)

// TestFloodKeepsItsBound: under SYNs from everywhere the half-open stay within their bound, every new one gets in, the
// clients that answer within a fifth of the time in which the bound is filled once get through, and no established
// connection is harmed. With persistence, which makes a template for each client, it is the same.
func TestFloodKeepsItsBound(t *testing.T) {
	for _, c := range []struct {
		maximum, half int
		persistent    bool
	}{
		{1024, 256, false}, {4096, 1024, false}, {40_000, 10_000, false}, {200_000, 1, false}, {200_000, 20_000, false},
		{40_000, 10_000, true}, {200_000, 2048, true},
	} {
		t.Run(fmt.Sprintf("%d-%d-%v", c.maximum, c.half, c.persistent), func(t *testing.T) {
			flood(t, c.maximum, c.half,
				c.persistent)
		})
	}
}

func flood(t *testing.T, maximum, half int, persistent bool) {
	table := New(Config{Max: maximum, HalfOpenMax: half}).View()
	half = table.HalfOpenMax()
	established := maximum / 10
	open := func(p *packet.Info, now Ticks) Result {
		if _, r := table.Packet(p, FromClient, now); r != Miss {
			return r
		}
		var number uint32
		dest := uint32(2)
		if persistent {
			var r Result
			if dest, number, r = table.Template(p.Flow.Src, 1, now); r == Miss {
				dest, number, r = table.PutTemplate(p.Flow.Src, 1, 2, 5*time.Minute, 0, now)
			}
			if r == Full {
				return Full
			}
		}
		_, r := table.Insert(p, dest, number, now)
		return r
	}
	for i := range uint32(established) {
		syn, ack := tcp(1<<31+i, 7, packet.FlagSYN), tcp(1<<31+i, 7, packet.FlagACK)
		open(&syn, 0)
		table.Packet(&ack, FromClient, 0)
	}
	rnd := rand.New(rand.NewPCG(1, 1))
	perTick := max(half/100, 1) // of SYNs; the time is stretched where that is more
	ticks := half / perTick
	answerAfter := ticks / 5
	if persistent {
		answerAfter /= 2 // each takes two places
	}
	tried, through, refused, sent := 0, 0, 0, 0
	var clients []packet.Info
	for now := Ticks(1); now < Ticks(4*ticks); now++ {
		for range perTick {
			p := tcp(rnd.Uint32N(1<<31), uint16(rnd.Uint32()), packet.FlagSYN)
			sent++
			if open(&p, now) == Full {
				refused++
			}
		}
		syn := tcp(1<<31+1<<20+uint32(now), 7, packet.FlagSYN)
		open(&syn, now)
		syn.TCPFlags = packet.FlagACK
		clients = append(clients, syn)
		if len(clients) > answerAfter {
			tried++
			if _, r := table.Packet(&clients[0], FromClient, now); r == Hit {
				through++
			}
			clients = clients[1:]
		}
		if now%PerSecond == 0 {
			table.Sweep(now)
		}
		if n := table.HalfOpen(); n > half+len(table.four.shards) {
			t.Fatalf("tick %d: %d half-open connections, the bound is %d", now, n, half)
		}
		if table.Len() > maximum {
			t.Fatalf("%d connections", table.Len())
		}
	}
	if table.HalfOpen() < half*2/3 || table.Evicted() == 0 {
		t.Errorf("%d half-open, %d evicted: there was no flood", table.HalfOpen(), table.Evicted())
	}
	t.Logf("%d of %d clients got through, %d of %d SYNs were refused", through, tried, refused, sent)
	// The table's hash is another one each time, and so is how even its shards are filled: of a thousand clients one or
	// two have a full one.
	if through*100 < tried*99 || refused*1000 > sent {
		t.Errorf("%d of %d clients got through, %d of %d SYNs were refused", through, tried, refused, sent)
	}
	end := Ticks(4 * ticks)
	for i := range uint32(established) {
		p := tcp(1<<31+i, 7, packet.FlagACK)
		if _, r := table.Packet(&p, FromClient, end); r != Hit {
			t.Fatalf("established connection %d is lost", i)
		}
	}
	table.Sweep(end + shortTimeout + 1)
	if n := table.HalfOpen(); n > half/2 {
		t.Errorf("%d half-open connections are left %d s after the flood", n, shortTimeout/PerSecond)
	}
}

// TestFullTableTakesFromHalfOpen: in a full table, half-open connections are evicted for established ones.
func TestFullTableTakesFromHalfOpen(t *testing.T) {
	table := New(Config{Max: 30_000, HalfOpenMax: 30_000}).View()
	for i := range uint32(30_000) {
		p := tcp(i, 1, packet.FlagSYN)
		table.Insert(&p, 1, 0, 0)
	}
	for i := range uint32(5000) {
		p := tcp(i, 1, 0)
		p.Flow.Proto = packet.ProtoUDP
		if _, r := table.Insert(&p, 2, 0, 1); r != Inserted {
			t.Fatalf("connection %d: result %d", i, r)
		}
	}
	if table.Len() != 30_000 {
		t.Errorf("%d in the table", table.Len())
	}
}

// TestConcurrentTemplates: many goroutines open and end connections of few clients; holds and numbers add up.
func TestConcurrentTemplates(t *testing.T) {
	table := New(Config{Max: 20_000}).View()
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(w), 3))
			for i := range 30_000 {
				now := Ticks(i)
				p := tcp(rnd.Uint32N(50), uint16(rnd.Uint32N(40)), uint8(rnd.Uint32N(32)))
				if _, r := table.Packet(&p, FromClient, now); r != Miss {
					continue
				}
				dest, number, r := table.Template(p.Flow.Src, 1, now)
				if r == Miss || rnd.Uint32N(20) == 0 { // now and then it has become invalid
					former := number
					if rnd.Uint32N(4) == 0 && former != 0 {
						table.Forget(p.Flow.Src, 1, former)
					}
					dest, number, r = table.PutTemplate(p.Flow.Src, 1, rnd.Uint32N(8), 2*time.Second, former, now)
					if former != 0 {
						table.Release(former)
					}
				}
				if r == Full {
					continue
				}
				table.Insert(&p, dest, number, now)
				if i%1000 == 0 {
					table.Sweep(now)
				}
			}
		})
	}
	wg.Wait()
	for now := Ticks(30_000); now < 30_000+40*1000*PerSecond; now += 1000 * PerSecond {
		table.Sweep(now)
	}
	empty(t, table)
}
