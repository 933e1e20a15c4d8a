package conntab

import (
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"unsafe"

	"vstun/encap/packet"
)

func newSmall(cfg Config) View {
	if cfg.Max == 0 {
		cfg.Max = 1024
	}
	return New(cfg).View()
}

func tcp(src uint32, port uint16, flags uint8) packet.Info {
	return packet.Info{Len: 60, TCPFlags: flags, Flow: packet.Flow{Proto: packet.ProtoTCP, SrcPort: port, DstPort: 80,
		Src: netip.AddrFrom4([4]byte{byte(src >> 24), byte(src >> 16), byte(src >> 8), byte(src)}),
		Dst: netip.AddrFrom4([4]byte{198, 51, 100, 80})}}
}

func TestSizes(t *testing.T) {
	if n := unsafe.Sizeof(entry[[4]byte]{}); n != 32 {
		t.Errorf("an entry has %d bytes", n)
	}
	if n := unsafe.Sizeof(shard[[4]byte]{}); n != 128 {
		t.Errorf("a shard has %d bytes", n)
	}
}

// TestSweeperCoversTheTable: parts of any size, one after the other, are the whole.
func TestSweeperCoversTheTable(t *testing.T) {
	for _, part := range []int{1, 100, sweepChunk, 10_000} {
		table := newSmall(Config{Max: 3000})
		for i := range uint32(3000) {
			p := tcp(i, 1, packet.FlagSYN)
			table.Insert(&p, 1, 0, 0)
		}
		s := table.NewSweeper()
		for range table.Slots()/part + maxShards {
			s.Sweep(Ticks(61*PerSecond), part)
		}
		if table.Len() != 0 {
			t.Errorf("parts of %d: %d connections are left", part, table.Len())
		}
	}
}

func TestFullTableKeepsOldFlows(t *testing.T) {
	const maximum = 2000
	table := newSmall(Config{Max: maximum})
	inserted := 0
	for i := range uint32(3 * maximum) {
		p := tcp(i, 1, packet.FlagSYN)
		if _, r := table.Packet(&p, FromClient, 0); r != Miss {
			t.Fatalf("result %d for a new flow", r)
		}
		switch _, r := table.Insert(&p, 1, 0, 0); r {
		case Inserted:
			inserted++
			ack := tcp(i, 1, packet.FlagACK)
			table.Packet(&ack, FromClient, 0) // half-open ones give way
		case Full:
		default:
			t.Fatalf("result %d", r)
		}
	}
	if inserted != maximum || table.Len() != maximum {
		t.Errorf("%d inserted, %d in the table, want %d", inserted, table.Len(), maximum)
	}
	for i := range uint32(maximum) {
		p := tcp(i, 1, packet.FlagACK)
		if _, r := table.Packet(&p, FromClient, 1); r != Hit {
			t.Fatalf("flow %d was lost", i)
		}
	}
	table.Sweep(Ticks(901 * PerSecond))
	p := tcp(9999, 1, packet.FlagSYN)
	if _, r := table.Insert(&p, 1, 0, Ticks(901*PerSecond)); r != Inserted {
		t.Errorf("result %d after all have expired: the room is not given back", r)
	}
}

func TestInsertMeetsInsert(t *testing.T) {
	table := newSmall(Config{})
	p := tcp(1, 1, packet.FlagSYN)
	table.Insert(&p, 3, 0, 0)
	if d, r := table.Insert(&p, 4, 0, 0); d != 3 || r != Hit {
		t.Errorf("second insert gives %d %d, want the first one's destination", d, r)
	}
	if table.Len() != 1 || table.Counts(4).Active() != 0 {
		t.Errorf("%d connections, %d at the loser's destination", table.Len(), table.Counts(4).Active())
	}
}

// TestReusedPortKeepsCounting: the old connection counts while the scheduler chooses anew.
func TestReusedPortKeepsCounting(t *testing.T) {
	table := newSmall(Config{})
	for _, flags := range []uint8{packet.FlagSYN, packet.FlagRST | packet.FlagACK} {
		p := tcp(1, 1, flags)
		if _, r := table.Packet(&p, FromClient, 0); r == Miss {
			table.Insert(&p, 3, 0, 0)
		}
	}
	p := tcp(1, 1, packet.FlagACK)
	table.Packet(&p, FromClient, 0) // SYN_RECV → RST stays → ACK: ESTABLISHED
	p = tcp(1, 1, packet.FlagRST)
	table.Packet(&p, FromClient, 0) // CLOSE
	p = tcp(1, 1, packet.FlagSYN)
	if _, r := table.Packet(&p, FromClient, 0); r != Miss {
		t.Fatalf("SYN on a closed connection: result %d", r)
	}
	if n := table.Counts(3).Inactive(); n != 1 {
		t.Errorf("%d connections counted during the choice, want 1", n)
	}
	table.Insert(&p, 5, 0, 0)
	if table.Counts(3).Inactive() != 0 || table.Counts(5).Active() != 1 || table.Len() != 1 {
		t.Error("the old connection is still counted")
	}
}

func TestConcurrentUse(t *testing.T) {
	table := newSmall(Config{Max: 5000})
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(w), 2))
			for i := range 50_000 {
				p := tcp(rnd.Uint32N(3000), 1, uint8(rnd.Uint32N(32)))
				now := Ticks(i)
				if _, r := table.Packet(&p, FromClient, now); r == Miss {
					table.Insert(&p, rnd.Uint32N(8), 0, now)
				}
				if i%10_000 == 0 {
					table.Sweep(now)
				}
			}
		})
	}
	wg.Wait()
	table.Sweep(1 << 30)
	if table.Len() != 0 {
		t.Errorf("%d connections left", table.Len())
	}
	for d := range uint32(8) {
		if c := table.Counts(d); c.Active() != 0 || c.Inactive() != 0 {
			t.Errorf("destination %d: %d active, %d inactive left", d, c.Active(), c.Inactive())
		}
	}
}

func TestPacketAllocatesNothing(t *testing.T) {
	table := newSmall(Config{Max: 100_000})
	var i uint32
	var p packet.Info // a worker has its own, too
	if n := testing.AllocsPerRun(10_000, func() {
		i++
		p = tcp(i, 1, packet.FlagSYN)
		if _, r := table.Packet(&p, FromClient, 0); r == Miss {
			table.Insert(&p, 1, 0, 0)
		}
		p.TCPFlags = packet.FlagACK
		table.Packet(&p, FromClient, 0)
	}); n != 0 {
		t.Errorf("%v allocations a packet", n)
	}
}

// address6 is an IPv6 address.
func address6(n byte) netip.Addr { return netip.AddrFrom16([16]byte{0: 0x20, 1: 1, 15: n}) }
