package conntab

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"vstun/encap/packet"
)

// TestFloodKeepsItsBound: under SYNs from everywhere the half-open stay within their bound, every new one gets in, the clients that answer within the time
// in which the bound is filled once get through, and nobody established is harmed.
func TestFloodKeepsItsBound(t *testing.T) {
	const maximum, half, perTick, answerAfter = 40_000, 10_000, 100, 20 // ticks: a fifth of the bound's 100
	table := New(Config{Max: maximum, HalfOpenMax: half})
	const established = 1000
	for i := range uint32(established) {
		syn, ack := tcp(1<<31+i, 7, packet.FlagSYN), tcp(1<<31+i, 7, packet.FlagACK)
		table.Insert(&syn, 1, 0, 0)
		table.Packet(&ack, 0)
	}
	rnd := rand.New(rand.NewPCG(1, 1))
	tried, through := 0, 0
	var clients []packet.Info
	for now := Ticks(1); now < 1000; now++ {
		for range perTick {
			p := tcp(rnd.Uint32N(1<<31), uint16(rnd.Uint32()), packet.FlagSYN)
			if _, r := table.Packet(&p, now); r != Miss {
				continue
			}
			if _, r := table.Insert(&p, 2, 0, now); r != Inserted {
				t.Fatalf("tick %d: result %d for a SYN", now, r)
			}
		}
		syn := tcp(1<<31+1<<20+uint32(now), 7, packet.FlagSYN)
		table.Insert(&syn, 3, 0, now)
		syn.TCPFlags = packet.FlagACK
		clients = append(clients, syn)
		if len(clients) > answerAfter {
			tried++
			if _, r := table.Packet(&clients[0], now); r == Hit {
				through++
			}
			clients = clients[1:]
		}
		if table.HalfOpen() > half {
			t.Fatalf("tick %d: %d half-open connections", now, table.HalfOpen())
		}
	}
	if table.HalfOpen() < half*9/10 || table.Evicted() == 0 {
		t.Errorf("%d half-open, %d evicted: there was no flood", table.HalfOpen(), table.Evicted())
	}
	t.Logf("%d of %d clients got through", through, tried)
	if through*100 < tried*99 {
		t.Errorf("%d of %d clients got through, want 99 %%", through, tried)
	}
	for i := range uint32(established) {
		p := tcp(1<<31+i, 7, packet.FlagACK)
		if _, r := table.Packet(&p, 1000); r != Hit {
			t.Fatalf("established connection %d is lost", i)
		}
	}
	table.Sweep(1000 + hardened + 1)
	if n := table.HalfOpen(); n > half/2 {
		t.Errorf("%d half-open connections are left %d s after the flood", n, hardened/PerSecond)
	}
}

// TestFullTableTakesFromHalfOpen: what may never become a connection makes room for what does.
func TestFullTableTakesFromHalfOpen(t *testing.T) {
	table := New(Config{Max: 3000})
	for i := range uint32(3000) {
		p := tcp(i, 1, packet.FlagSYN)
		table.Insert(&p, 1, 0, 0)
	}
	in := 0
	for i := range uint32(500) {
		p := tcp(i, 1, 0)
		p.Flow.Proto = packet.ProtoUDP
		if _, r := table.Insert(&p, 2, 0, 1); r == Inserted {
			in++
		}
	}
	if in < 450 || table.Len() != 3000 {
		t.Errorf("%d of 500 got in, %d in the table", in, table.Len())
	}
}

// TestConcurrentTemplates: many goroutines open and end connections of few clients; holds and numbers add up.
func TestConcurrentTemplates(t *testing.T) {
	table := New(Config{Max: 20_000})
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(w), 3))
			for i := range 30_000 {
				now := Ticks(i)
				p := tcp(rnd.Uint32N(50), uint16(rnd.Uint32N(40)), uint8(rnd.Uint32N(32)))
				if _, r := table.Packet(&p, now); r != Miss {
					continue
				}
				dest, number, r := table.Template(p.Flow.Src, 1, now)
				if r == Miss || rnd.Uint32N(20) == 0 { // now and then it has become invalid
					if r == Hit {
						table.Release(number)
					}
					dest, number, r = table.PutTemplate(p.Flow.Src, 1, rnd.Uint32N(8), 2*time.Second, number, now)
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
