package conntab

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"vstun/encap/packet"
)

// model is a simple, slow table. It consists of maps, and removes all expired entries at each step of the clock.
type model struct {
	cfg       Config
	times     timeouts
	conns     map[packet.Flow]*modelConn
	templates map[modelClient]*modelTemplate
	judged    map[uint32][2]bool // gone, quiescent
}

type modelConn struct {
	state    State
	dest     uint32
	expires  Ticks
	packets  uint32
	template *modelTemplate
}

type modelClient struct {
	addr    netip.Addr
	service uint32
}

type modelTemplate struct {
	dest             uint32
	expires, timeout Ticks
	children         int
	assured          bool
}

func over(expires, now Ticks) bool { return int32(now-expires) >= 0 }

func (m *model) remove(f packet.Flow) {
	if t := m.conns[f].template; t != nil {
		t.children--
	}
	delete(m.conns, f)
}

// sweep removes expired entries.
func (m *model) sweep(now Ticks) {
	for f, c := range m.conns {
		if over(c.expires, now) {
			m.remove(f)
		}
	}
	for k, t := range m.templates {
		switch {
		case !over(t.expires, now):
		case t.children == 0:
			delete(m.templates, k)
		default:
			for t.timeout = templateGrace; over(t.expires, now); {
				t.expires += templateGrace
			}
		}
	}
}

// packet does what Packet and, for a new connection, Template, PutTemplate and Insert do together.
func (m *model) packet(p *packet.Info, fresh, service uint32, now Ticks) (uint32, Result) {
	f := p.Flow
	syn, init := f.Proto == packet.ProtoTCP && p.TCPFlags&packet.FlagSYN != 0, f.Proto == packet.ProtoSCTP &&
		p.SCTPChunk == packet.ChunkInit
	opens := f.Proto == packet.ProtoUDP || init || f.Proto == packet.ProtoTCP && p.TCPFlags&packet.FlagRST == 0 &&
		(syn || m.cfg.SloppyTCP)
	c := m.conns[f]
	if c != nil && (syn || init) {
		closed := c.state == TimeWait || c.state == Close || c.state == SCTPClosed || m.cfg.Reuse == ReuseClosing &&
			c.state == FinWait
		if closed && m.cfg.Reuse != ReuseNever && c.template == nil || m.cfg.ExpireNodest && m.judged[c.dest][1] {
			m.remove(f)
			c = nil
		}
	}
	if c != nil && m.judged[c.dest][0] {
		switch {
		case m.cfg.ExpireNodest:
			m.remove(f)
			c = nil
		case m.cfg.DropRemoved:
			return 0, Gone
		}
	}
	result := Hit
	if c == nil {
		if !opens {
			return 0, Refused
		}
		c = &modelConn{state: map[uint8]State{packet.ProtoTCP: None, packet.ProtoUDP: UDP,
			packet.ProtoSCTP: SCTPNone}[f.Proto], dest: fresh}
		if service != 0 {
			k := modelClient{f.Src, service}
			t := m.templates[k]
			if t == nil || m.judged[t.dest][0] {
				t = &modelTemplate{dest: fresh, timeout: 30 * PerSecond}
				m.templates[k] = t
			}
			t.children++
			t.expires = now + t.timeout
			c.template, c.dest = t, t.dest
		}
		m.conns[f] = c
		result = Inserted
	}
	switch f.Proto {
	case packet.ProtoTCP:
		c.state = tcpStates.clientOnly.next(c.state, p.TCPFlags)
	case packet.ProtoSCTP:
		c.state = c.state.nextSCTP(&sctpStates.clientOnly, p.SCTPChunk)
	}
	if c.template != nil && !c.state.halfOpen() {
		c.template.assured = true
	}
	c.expires = now + m.times[c.state]
	c.packets++
	return c.dest, result
}

// play does the same with the table.
func play(t View, p *packet.Info, fresh, service uint32, now Ticks) (uint32, Result) {
	dest, r := t.Packet(p, FromClient, now)
	if r != Miss {
		return dest, r
	}
	var template uint32
	if service != 0 {
		if dest, template, r = t.Template(p.Flow.Src, service, now); r == Hit && t.Counts(dest).Gone() {
			defer t.Release(template)
			r = Miss
		}
		if r == Miss {
			dest, template, _ = t.PutTemplate(p.Flow.Src, service, fresh, 30*time.Second, template, now)
		}
		fresh = dest
	}
	return t.Insert(p, fresh, template, now)
}

// TestAgainstModel plays random packets of all protocols and both families, with a clock that runs and wraps,
// destinations that come and go, and tables that take over the former one, to the table and to the model, and expects
// the same of both.
func TestAgainstModel(t *testing.T) {
	for name, cfg := range map[string]Config{
		"default": {}, "sloppy": {SloppyTCP: true}, "reuse-0": {Reuse: ReuseNever}, "reuse-2": {Reuse: ReuseClosing},
		"nodest": {ExpireNodest: true},
		"drop":   {DropRemoved: true}, "nodest-reuse-2": {ExpireNodest: true, Reuse: ReuseClosing},
	} {
		t.Run(name, func(t *testing.T) { againstModel(t, cfg) })
	}
}

func againstModel(t *testing.T, cfg Config) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	cfg.Max = 10_000
	packets := 60_000
	if testing.Short() {
		packets = 10_000
	}
	memory := sections{}
	table := NewIn(memory, cfg).View()
	m := model{cfg: cfg, times: table.rules.times, conns: map[packet.Flow]*modelConn{},
		templates: map[modelClient]*modelTemplate{}, judged: map[uint32][2]bool{}}
	now := Ticks(1<<32 - 200*PerSecond) // wraps on the way
	for i := range packets {
		p := tcp(rnd.Uint32N(20), uint16(rnd.Uint32N(30)), uint8(rnd.Uint32N(32)))
		switch rnd.Uint32N(4) {
		case 0:
			p.Flow.Proto, p.TCPFlags = packet.ProtoUDP, 0
		case 1:
			p.Flow.Proto, p.TCPFlags, p.SCTPChunk = packet.ProtoSCTP, 0, uint8(rnd.Uint32N(17))
		}
		if rnd.Uint32N(3) == 0 {
			src, dst := p.Flow.Src.As4(), p.Flow.Dst.As4()
			p.Flow.Src = netip.AddrFrom16([16]byte{0: 0x20, 1: 1, 15: src[3]})
			p.Flow.Dst = netip.AddrFrom16([16]byte{0: 0x20, 1: 1, 15: dst[3]})
		}
		service := uint32(0)
		if p.Flow.SrcPort%2 == 0 {
			service = 1 + uint32(p.Flow.SrcPort/2%2)
		}
		if rnd.Uint32N(30) == 0 {
			now += Ticks(rnd.Uint32N(40 * PerSecond))
			m.sweep(now)
			table.Sweep(now)
		}
		fresh := rnd.Uint32N(20)
		if rnd.Uint32N(100) == 0 {
			j := [2]bool{rnd.Uint32N(2) == 0, rnd.Uint32N(2) == 0}
			m.judged[fresh] = j
			table.Counts(fresh).SetState(j[0], j[1])
		}
		if rnd.Uint32N(1000) == 0 { // another process goes on
			m.sweep(now)
			table, memory = takeOver(t, memory, cfg, now)
			for dest, j := range m.judged {
				table.Counts(dest).SetState(j[0], j[1])
			}
		}
		for m.judged[fresh][0] { // a scheduler chooses no such one
			fresh = (fresh + 1) % 21
		}
		want, wantResult := m.packet(&p, fresh, service, now)
		got, result := play(table, &p, fresh, service, now)
		if result != wantResult || (result == Hit || result == Inserted) && got != want {
			t.Fatalf("packet %d, %v flags %05b chunk %d: destination %d result %d, want %d %d", i, p.Flow, p.TCPFlags,
				p.SCTPChunk, got, result, want, wantResult)
		}
	}
	m.sweep(now)
	table.Sweep(now)
	compare(t, table, &m, now)
	for range 40 { // templates may be kept for some rounds
		now += 1000 * PerSecond
		table.Sweep(now)
	}
	empty(t, table)
}

// compare checks that the table and the model hold the same entries.
func compare(t *testing.T, table View, m *model, now Ticks) {
	t.Helper()
	counts := map[uint32][3]int{}
	count := func(dest uint32, at int) {
		n := counts[dest]
		n[at]++
		counts[dest] = n
	}
	half := 0
	for f, c := range m.conns {
		if c.state.Active() {
			count(c.dest, 0)
		} else {
			count(c.dest, 1)
		}
		if c.state.halfOpen() {
			half++
		}
		got, ok := table.Lookup(f, now)
		if !ok || got.State != c.state || got.Dest != c.dest || got.Packets != c.packets || got.Flow != f {
			t.Fatalf("%v: table has %+v (%v), want %+v", f, got, ok, c)
		}
	}
	for k, c := range m.templates {
		count(c.dest, 2)
		dest, number, r := table.Template(k.addr, k.service, now)
		if r != Hit || dest != c.dest {
			t.Fatalf("template of %v: %d, result %d, want %d", k, dest, r, c.dest)
		}
		if n := table.refs.count(number).Load() & countMask; int(n) != c.children+1 ||
			table.refs.assured(number) != c.assured {
			t.Errorf("template of %v has %d connections, want %d, assured %v", k, n-1, c.children, c.assured)
		}
		if !c.assured {
			half++
		}
		table.Release(number)
	}
	if len(m.conns) == 0 || len(m.templates) == 0 || table.Len() != len(m.conns)+len(m.templates) {
		t.Errorf("the table holds %d, want %d connections and %d templates", table.Len(), len(m.conns),
			len(m.templates))
	}
	if table.HalfOpen() != half {
		t.Errorf("%d half-open connections, want %d", table.HalfOpen(), half)
	}
	for d := range uint32(21) {
		c := table.Counts(d)
		if got := [3]int{c.Active(), c.Inactive(), c.Templates()}; got != counts[d] {
			t.Errorf("destination %d has %v connections and templates, want %v", d, got, counts[d])
		}
	}
	seen := 0
	for c := range table.All(now) {
		if seen++; c.Template != (c.State == TemplateState) || c.Template && c.Flow.Dst.IsValid() {
			t.Errorf("listed: %+v", c)
		}
	}
	if seen != table.Len() {
		t.Errorf("%d are listed, want %d", seen, table.Len())
	}
}

// empty checks that no slot, count or template number is in use.
func empty(t *testing.T, table View) {
	t.Helper()
	if table.Len() != 0 || table.HalfOpen() != 0 {
		t.Errorf("%d connections are left, %d of them half-open", table.Len(), table.HalfOpen())
	}
	for i := range table.four.shards {
		for _, e := range table.four.shards[i].slots {
			if e.state != stateEmpty {
				t.Fatalf("slot not empty: %+v", e)
			}
		}
	}
	for d := range uint32(21) {
		if c := table.Counts(d); c.Active() != 0 || c.Inactive() != 0 || c.Templates() != 0 {
			t.Errorf("destination %d: %d active, %d inactive, %d templates left", d, c.Active(), c.Inactive(),
				c.Templates())
		}
	}
	free := 0
	for n := table.refs.free; n != 0; n = uint32(table.refs.count(n).Load()) {
		free++
	}
	if free != int(table.refs.last) {
		t.Errorf("%d of %d templates' numbers are free", free, table.refs.last)
	}
}
