package conntab

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"vstun/encap/packet"
)

// scatter makes flow number n: a bijection, so that no two are the same, without any order for a cache to profit from.
func scatter(p *packet.Info, n uint32) {
	n *= 0x9e3779b1
	p.Flow.Src = netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

// fill makes a table that is full with n flows.
func fill(n int) View {
	debug.FreeOSMemory() // so that the kernel can give huge pages, as to a program that has just begun
	table := New(Config{Max: n}).View()
	p := tcp(0, 1, packet.FlagSYN)
	for i := range n {
		scatter(&p, uint32(i))
		if _, r := table.Insert(&p, 1, 0, 0); r != Inserted {
			panic(r)
		}
	}
	return table
}

// BenchmarkLookup is Packet for a random one of the flows in a full table: in batches with Prefetch, as the director
// does it, and one by one.
func BenchmarkLookup(b *testing.B) {
	for _, flows := range []int{1, 10_000, 1_000_000, 10_000_000} {
		table := fill(flows)
		rnd := rand.New(rand.NewPCG(1, 1))
		infos := make([]packet.Info, 64)
		for i := range infos {
			infos[i] = tcp(0, 1, packet.FlagACK)
		}
		b.Run(fmt.Sprintf("batch/%d", flows), func(b *testing.B) {
			var sink uint8
			for range b.N/len(infos) + 1 {
				for i := range infos {
					scatter(&infos[i], rnd.Uint32N(uint32(flows)))
				}
				for i := range infos {
					sink |= table.Prefetch(&infos[i])
				}
				for i := range infos {
					if _, r := table.Packet(&infos[i], FromClient, 0); r != Hit {
						b.Fatal("lost")
					}
				}
			}
			runtime.KeepAlive(sink)
		})
		b.Run(fmt.Sprintf("single/%d", flows), func(b *testing.B) {
			p := &infos[0]
			for b.Loop() {
				p.Hash = 0
				scatter(p, rnd.Uint32N(uint32(flows)))
				if _, r := table.Packet(p, FromClient, 0); r != Hit {
					b.Fatal("lost")
				}
			}
		})
	}
}

// BenchmarkInsert fills a table of 10 million flows, in batches as the director does: Prefetch, then Packet and Insert.
func BenchmarkInsert(b *testing.B) {
	const flows = 10_000_000
	table := New(Config{Max: flows}).View()
	infos := make([]packet.Info, 64)
	for i := range infos {
		infos[i] = tcp(0, 1, packet.FlagSYN)
	}
	var sink uint8
	i := 0
	for range b.N/len(infos) + 1 {
		if i+len(infos) > flows {
			b.StopTimer()
			table = View{}
			debug.FreeOSMemory()
			table = New(Config{Max: flows}).View()
			i = 0
			b.StartTimer()
		}
		for j := range infos {
			scatter(&infos[j], uint32(i))
			i++
		}
		for j := range infos {
			sink |= table.Prefetch(&infos[j])
		}
		for j := range infos {
			if _, r := table.Packet(&infos[j], FromClient, 0); r != Miss {
				b.Fatal(r)
			}
			if _, r := table.Insert(&infos[j], 1, 0, 0); r != Inserted {
				b.Fatal(r)
			}
		}
	}
	runtime.KeepAlive(sink)
}

// BenchmarkMemory reports how much the process has grown by a table full with 10 million flows, a flow.
func BenchmarkMemory(b *testing.B) {
	const flows = 10_000_000
	for b.Loop() {
		before := resident(b)
		table := fill(flows)
		b.ReportMetric(float64(resident(b)-before)/flows, "B/flow")
		runtime.KeepAlive(table)
	}
}

// resident returns the process's resident memory, in bytes.
func resident(b *testing.B) int {
	b.Helper()
	debug.FreeOSMemory()
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		b.Skip(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(text))[1])
	if err != nil {
		b.Fatal(err)
	}
	return pages * os.Getpagesize()
}

// BenchmarkSweep looks through a full table of 10 million flows, none of which has expired.
func BenchmarkSweep(b *testing.B) {
	table := fill(10_000_000)
	for b.Loop() {
		table.Sweep(1)
	}
}

// BenchmarkGCStop collects garbage while two goroutines use a full table of 10 million flows, and reports the longest
// stop of the program.
func BenchmarkGCStop(b *testing.B) {
	table := fill(10_000_000)
	stop := make(chan struct{})
	var users sync.WaitGroup
	for i := range 2 {
		users.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(i), 1))
			p := tcp(0, 1, packet.FlagACK)
			for {
				select {
				case <-stop:
					return
				default:
				}
				for range 1000 {
					scatter(&p, rnd.Uint32N(10_000_000))
					table.Packet(&p, FromClient, 0)
				}
			}
		})
	}
	var before, after debug.GCStats
	debug.ReadGCStats(&before)
	for b.Loop() {
		runtime.GC()
	}
	debug.ReadGCStats(&after)
	close(stop)
	users.Wait()
	longest := slices.Max(after.Pause[:min(len(after.Pause), int(after.NumGC-before.NumGC))])
	b.ReportMetric(float64(longest.Microseconds()), "µs-longest")
}

// BenchmarkFull is a new connection to a full table: of established ones, which it can't have, and of half-open ones,
// which make room.
func BenchmarkFull(b *testing.B) {
	for _, c := range []struct {
		name string
		half int
		ack  bool
	}{{"established", 250_000, true}, {"half-open", 250_000, false}, {"half-open/few", 10_000, false}} {
		b.Run(c.name, func(b *testing.B) {
			table := New(Config{Max: 1_000_000, HalfOpenMax: c.half}).View()
			syn, ack := tcp(0, 1, packet.FlagSYN), tcp(0, 1, packet.FlagACK)
			for i := range 1_000_000 {
				scatter(&syn, uint32(i))
				table.Insert(&syn, 1, 0, 0)
				if c.ack {
					scatter(&ack, uint32(i))
					table.Packet(&ack, FromClient, 0)
				}
			}
			i := uint32(1_000_000)
			for b.Loop() {
				i++
				scatter(&syn, i)
				table.Insert(&syn, 1, 0, 0)
			}
		})
	}
}
