package conntab

import (
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"
	"unsafe"

	"vstun/encap/packet"
)

func newSmall(cfg Config) *Table {
	if cfg.Max == 0 {
		cfg.Max = 1024
	}
	return New(cfg)
}

func tcp(src uint32, port uint16, flags uint8) packet.Info {
	return packet.Info{Len: 60, TCPFlags: flags, Flow: packet.Flow{Proto: packet.ProtoTCP, SrcPort: port, DstPort: 80,
		Src: netip.AddrFrom4([4]byte{byte(src >> 24), byte(src >> 16), byte(src >> 8), byte(src)}), Dst: netip.AddrFrom4([4]byte{198, 51, 100, 80})}}
}

func TestSizes(t *testing.T) {
	if n := unsafe.Sizeof(entry{}); n != entrySize {
		t.Errorf("an entry has %d bytes", n)
	}
	if n := unsafe.Sizeof(shard{}); n != 64 {
		t.Errorf("a shard has %d bytes", n)
	}
}

// TestSweeperCoversTheTable: parts of any size, one after the other, are the whole.
func TestSweeperCoversTheTable(t *testing.T) {
	for _, part := range []int{1, 100, sweepChunk, 10_000} {
		table := newSmall(Config{Max: 3000})
		for i := range uint32(3000) {
			p := tcp(i, 1, packet.FlagSYN)
			table.Insert(&p, 1, 0)
		}
		s := table.NewSweeper()
		for range table.Slots()/part + numShards {
			s.Sweep(Ticks(61*PerSecond), part)
		}
		if table.Len() != 0 {
			t.Errorf("parts of %d: %d connections are left", part, table.Len())
		}
	}
}

// model is the table as one would write it without a thought for speed.
type model struct {
	conns map[packet.Flow]*modelConn
	table *Table // for its timeouts
}

type modelConn struct {
	state   State
	dest    uint32
	expires Ticks
	packets uint32
}

func (m *model) packet(p *packet.Info, dest uint32, now Ticks) (uint32, Result) {
	opens := p.Flow.Proto == packet.ProtoUDP || p.TCPFlags&packet.FlagSYN != 0 && p.TCPFlags&packet.FlagRST == 0
	c := m.conns[p.Flow]
	if c != nil && int32(now-c.expires) >= 0 {
		delete(m.conns, p.Flow)
		c = nil
	}
	if c != nil && p.Flow.Proto == packet.ProtoTCP && p.TCPFlags&packet.FlagSYN != 0 && (c.state == TimeWait || c.state == Close) {
		delete(m.conns, p.Flow)
		c = nil
	}
	result := Hit
	if c == nil {
		if !opens {
			return 0, Refused
		}
		c = &modelConn{state: None, dest: dest}
		m.conns[p.Flow] = c
		result = Inserted
	}
	if p.Flow.Proto == packet.ProtoUDP {
		c.state = UDP
	} else {
		c.state = c.state.next(p.TCPFlags)
	}
	c.expires = now + m.table.times[c.state]
	c.packets++
	return c.dest, result
}

// TestAgainstModel plays random packets, with a clock that runs and wraps, to the table and to a plain map, and wants the same of both.
func TestAgainstModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	table := newSmall(Config{Max: 100_000})
	m := model{conns: map[packet.Flow]*modelConn{}, table: table}
	now := Ticks(1<<32 - 200*PerSecond) // wraps on the way
	for i := range 300_000 {
		p := tcp(rnd.Uint32N(40), uint16(rnd.Uint32N(60)), uint8(rnd.Uint32N(32)))
		if rnd.Uint32N(4) == 0 {
			p.Flow.Proto, p.TCPFlags = packet.ProtoUDP, 0
		}
		if rnd.Uint32N(50) == 0 {
			now += Ticks(rnd.Uint32N(40 * PerSecond))
		}
		if rnd.Uint32N(500) == 0 {
			table.Sweep(now)
		}
		fresh := rnd.Uint32N(20)
		want, wantResult := m.packet(&p, fresh, now)
		got, result := table.Packet(&p, now)
		if result == Miss {
			got, result = table.Insert(&p, fresh, now)
		}
		if result != wantResult || result != Refused && got != want {
			t.Fatalf("packet %d, %v flags %05b: destination %d result %d, want %d %d", i, p.Flow, p.TCPFlags, got, result, want, wantResult)
		}
	}
	table.Sweep(now)
	counts := map[uint32][2]int{}
	live := 0
	for f, c := range m.conns {
		if int32(now-c.expires) >= 0 {
			continue
		}
		live++
		n := counts[c.dest]
		if c.state.Active() {
			n[0]++
		} else {
			n[1]++
		}
		counts[c.dest] = n
		got, ok := table.Lookup(f, now)
		if !ok || got.State != c.state || got.Dest != c.dest || got.Packets != c.packets || got.Flow != f {
			t.Fatalf("%v: table has %+v (%v), want %+v", f, got, ok, c)
		}
	}
	if live == 0 || table.Len() != live {
		t.Errorf("the table holds %d connections, want %d", table.Len(), live)
	}
	for d := range uint32(20) {
		if got := [2]int{table.Counts(d).Active(), table.Counts(d).Inactive()}; got != counts[d] {
			t.Errorf("destination %d has %v connections, want %v", d, got, counts[d])
		}
	}
	table.Sweep(now + Ticks(1000*PerSecond))
	if table.Len() != 0 {
		t.Errorf("%d connections are left after all have expired", table.Len())
	}
	for i := range table.shards {
		for _, e := range table.shards[i].slots {
			if e != (entry{}) {
				t.Fatalf("slot not empty: %+v", e)
			}
		}
	}
}

func TestFullTableKeepsOldFlows(t *testing.T) {
	const maximum = 2000
	table := newSmall(Config{Max: maximum})
	inserted := 0
	for i := range uint32(3 * maximum) {
		p := tcp(i, 1, packet.FlagSYN)
		if _, r := table.Packet(&p, 0); r != Miss {
			t.Fatalf("result %d for a new flow", r)
		}
		switch _, r := table.Insert(&p, 1, 0); r {
		case Inserted:
			inserted++
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
		if _, r := table.Packet(&p, 1); r != Hit {
			t.Fatalf("flow %d was lost", i)
		}
	}
	table.Sweep(Ticks(901 * PerSecond))
	p := tcp(9999, 1, packet.FlagSYN)
	if _, r := table.Insert(&p, 1, Ticks(901*PerSecond)); r != Inserted {
		t.Errorf("result %d after all have expired: the room is not given back", r)
	}
}

func TestInsertMeetsInsert(t *testing.T) {
	table := newSmall(Config{})
	p := tcp(1, 1, packet.FlagSYN)
	table.Insert(&p, 3, 0)
	if d, r := table.Insert(&p, 4, 0); d != 3 || r != Hit {
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
		if _, r := table.Packet(&p, 0); r == Miss {
			table.Insert(&p, 3, 0)
		}
	}
	p := tcp(1, 1, packet.FlagACK)
	table.Packet(&p, 0) // SYN_RECV → RST stays → ACK: ESTABLISHED
	p = tcp(1, 1, packet.FlagRST)
	table.Packet(&p, 0) // CLOSE
	p = tcp(1, 1, packet.FlagSYN)
	if _, r := table.Packet(&p, 0); r != Miss {
		t.Fatalf("SYN on a closed connection: result %d", r)
	}
	if n := table.Counts(3).Inactive(); n != 1 {
		t.Errorf("%d connections counted during the choice, want 1", n)
	}
	table.Insert(&p, 5, 0)
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
				if _, r := table.Packet(&p, now); r == Miss {
					table.Insert(&p, rnd.Uint32N(8), now)
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
	if n := testing.AllocsPerRun(10_000, func() {
		i++
		p := tcp(i, 1, packet.FlagSYN)
		if _, r := table.Packet(&p, 0); r == Miss {
			table.Insert(&p, 1, 0)
		}
		p.TCPFlags = packet.FlagACK
		table.Packet(&p, 0)
	}); n != 0 {
		t.Errorf("%v allocations a packet", n)
	}
}
