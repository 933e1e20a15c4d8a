package forward

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"vstun/balancer/conntab"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/encap/packet/stats"
)

// cut returns the fragment of a whole packet, of either family, with its data from one offset to another.
func cut(whole []byte, id uint32, from, to int) []byte {
	if whole[0]>>4 == 6 {
		data := whole[40:]
		f := make([]byte, 48+to-from)
		copy(f, whole[:40])
		copy(f[48:], data[from:to])
		packet.IPv6(f).SetPayloadLen(8 + to - from)
		f[40], f[6] = f[6], 44
		field := uint16(from)
		if to < len(data) {
			field |= 1
		}
		binary.BigEndian.PutUint16(f[42:], field)
		binary.BigEndian.PutUint32(f[44:], id)
		return f
	}
	h := packet.IPv4(whole)
	data, n := h.Payload(), h.HeaderLen()
	f := make(packet.IPv4, n+to-from)
	copy(f, whole[:n])
	copy(f[n:], data[from:to])
	f.SetTotalLen(len(f))
	binary.BigEndian.PutUint16(f[4:], uint16(id))
	field := uint16(from / 8)
	if to < len(data) {
		field |= 0x2000
	}
	binary.BigEndian.PutUint16(f[6:], field)
	f.SetChecksum()
	return f
}

// sample returns a whole packet of n bytes of random data, with its fragments' ID.
func sample(rnd *rand.Rand, six bool, n int, id uint32) []byte {
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(rnd.Uint32())
	}
	if six {
		return ip6(packet.ProtoUDP, data)
	}
	p := ip(packet.ProtoUDP, false, data)
	binary.BigEndian.PutUint16(p[4:], uint16(id))
	p.SetChecksum()
	return p
}

// model is a slow and simple reassembly: all fragments of one packet, their data byte by byte.
type model struct {
	data map[int]byte // by offset
	last int          // the packet's length, as far as known; -1: unknown
}

// add reports whether the fragment is a duplicate, contradicts earlier ones, or completes the packet.
func (m *model) add(f []byte) (duplicate, wrong, whole bool) {
	at, _ := packet.ParseFragment(f)
	data := packet.IPv4(f).Payload
	var d []byte
	if f[0]>>4 == 6 {
		d = f[48:]
	} else {
		d = data()
	}
	end := at.Offset + len(d)
	had := 0
	for i := at.Offset; i < end; i++ {
		if _, ok := m.data[i]; ok {
			had++
		}
	}
	far := 0
	for i := range m.data {
		far = max(far, i+1)
	}
	switch {
	case at.More && m.last >= 0 && end > m.last, !at.More && (end < far || m.last >= 0 && end != m.last):
		return false, true, false
	case had == len(d):
		return true, false, false
	case had > 0:
		return false, true, false
	}
	for i, b := range d {
		m.data[at.Offset+i] = b
	}
	if !at.More {
		m.last = end
	}
	return false, false, len(m.data) == m.last
}

// TestReassemblyAgainstModel: random packets of both families cut at random, their fragments in any order, some
// missing, some twice, some that overlap, others' between them: every packet that the model completes comes out as it
// was, no other does, and each fragment of the others is counted.
func TestReassemblyAgainstModel(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var r reassembler
	var tally stats.Tally
	b := &packet.NewBufs(1)[0]
	for round := range 1500 {
		var packets [][]byte
		var models []*model
		var queue []struct {
			which int
			f     []byte
		}
		for i := range 1 + rnd.IntN(4) {
			n := 1 + rnd.IntN(300)
			if rnd.IntN(50) == 0 {
				n = 1 + rnd.IntN(65000)
			}
			id := uint32(round*8 + i)
			p := sample(rnd, rnd.IntN(2) == 0, n, id)
			packets, models = append(packets, p), append(models, &model{data: map[int]byte{}, last: -1})
			if n < 16 {
				continue // nothing to cut
			}
			add := func(from, to int) {
				if from < to && to-from < n {
					queue = append(queue, struct {
						which int
						f     []byte
					}{i, cut(p, id, from, to)})
				}
			}
			for from := 0; from < n; {
				to := min(from+8*(1+rnd.IntN(n/8)), n)
				if rnd.IntN(30) > 0 { // or it is missing
					add(from, to)
				}
				switch rnd.IntN(30) {
				case 0:
					add(from, to) // twice
				case 1:
					add(max(0, from-8), to) // overlapping
				case 2:
					add(from, from+(to-from)/2&^7)
				}
				from = to
			}
		}
		rnd.Shuffle(len(queue), func(i, j int) { queue[i], queue[j] = queue[j], queue[i] })
		lost := map[int]bool{}
		before := tally.Drops
		var want uint64
		count := map[int]uint64{}
		for _, q := range queue {
			if lost[q.which] { // after a contradiction its packet begins anew, which the model doesn't
				continue
			}
			b.SetLen(copy(b.Room(), q.f))
			got := r.add(b, 1, &tally) > 0
			duplicate, wrong, whole := models[q.which].add(q.f)
			switch {
			case wrong:
				lost[q.which] = true
				want += count[q.which] + 1
			case duplicate:
				want++
			default:
				count[q.which]++
			}
			if got != whole {
				t.Fatalf("round %d: packet %d is whole: %v, in the model: %v", round, q.which, got, whole)
			}
			if whole {
				lost[q.which] = true
				if !bytes.Equal(b.Bytes(), packets[q.which]) {
					t.Fatalf("round %d: packet is\n%x, want\n%x", round, b.Bytes(), packets[q.which])
				}
			}
		}
		if got := tally.Drops[drop.Fragment] - before[drop.Fragment]; got != want {
			t.Fatalf("round %d: %d fragments counted, want %d", round, got, want)
		}
		r.sweep(1+wait6, &tally) // what is not complete
		if r.oldest != none || r.newest != none || len(r.spare) != maxPages || r.waiting != 0 {
			t.Fatalf("round %d: %d pages are free after all has ended, %d fragments wait", round, len(r.spare),
				r.waiting)
		}
	}
	if tally.Drops[drop.Reassembly] == 0 || tally.Drops[drop.Fragment] == 0 {
		t.Error("the test tests nothing")
	}
}

// TestReassemblyIsBounded: a flood of fragments of incomplete packets takes no more than the fixed memory. The oldest
// are dropped and counted. A packet that comes meanwhile is reassembled.
func TestReassemblyIsBounded(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for _, size := range []int{64, 65000} { // slots run out, or pages
		var r reassembler
		var tally stats.Tally
		b := &packet.NewBufs(1)[0]
		add := func(f []byte, now conntab.Ticks) bool {
			b.SetLen(copy(b.Room(), f))
			return r.add(b, now, &tally) > 0
		}
		const n = 3000
		waiting := func() (n int) {
			for i := r.oldest; i != none; i = r.slots[i].younger {
				n++
			}
			return n
		}
		for i := range n {
			p := sample(rnd, i%2 == 0, size, uint32(i))
			add(cut(p, uint32(i), 0, size-8&^7), 1)
			if i%100 == 0 {
				p := sample(rnd, false, 3000, uint32(30000+i))
				if add(cut(p, uint32(30000+i), 1480, 3000), 1) || !add(cut(p, uint32(30000+i), 0, 1480), 1) ||
					!bytes.Equal(b.Bytes(), p) {
					t.Fatal("a packet amid a flood is not put together")
				}
			}
		}
		if got := tally.Drops[drop.Reassembly]; got != uint64(n-waiting()) || got == 0 {
			t.Errorf("%d counted, %d wait, of %d", got, waiting(), n)
		}
		// IPv4's time comes before IPv6's.
		total := waiting()
		r.sweep(1+wait4-1, &tally)
		if waiting() != total {
			t.Error("some ended before their time")
		}
		r.sweep(1+wait4, &tally)
		if six := waiting(); six == 0 || six > total/2+1 {
			t.Errorf("%d of %d wait after IPv4's time", six, total)
		}
		r.sweep(1+wait6, &tally)
		if waiting() != 0 || tally.Drops[drop.Reassembly] != n || len(r.spare) != maxPages {
			t.Errorf("%d wait after IPv6's time, %d counted", waiting(), tally.Drops[drop.Reassembly])
		}
	}
}

// TestReassembledHeaders: congestion marks of fragments meet in the packet (RFC 3168, section 5.3), DF is the packet's
// where all had it, and extension headers before the fragment header stay.
func TestReassembledHeaders(t *testing.T) {
	for _, c := range []struct{ first, second, want int }{
		{0, 0, 0}, {2, 2, 2}, {1, 2, 1}, {2, 3, 3}, {3, 1, 3}, {3, 3, 3}, {0, 3, -1}, {3, 0, -1}, {0, 2, 0},
	} {
		for _, six := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d and %d, six %v", c.first, c.second, six), func(t *testing.T) {
				p := sample(rand.New(rand.NewPCG(5, 6)), six, 100, 7)
				fs := [][]byte{cut(p, 7, 0, 48), cut(p, 7, 48, 100)}
				for i, ecn := range []int{c.first, c.second} {
					if six {
						packet.IPv6(fs[i]).SetTrafficClass(0xb8 | byte(ecn))
					} else {
						packet.IPv4(fs[i]).SetTOS(0xb8 | byte(ecn))
						fs[i][6] |= 0x40
						packet.IPv4(fs[i]).SetChecksum()
					}
				}
				var r reassembler
				var tally stats.Tally
				b := &packet.NewBufs(1)[0]
				b.SetLen(copy(b.Room(), fs[1]))
				r.add(b, 1, &tally)
				b.SetLen(copy(b.Room(), fs[0]))
				whole := r.add(b, 1, &tally) > 0
				if whole != (c.want >= 0) || !whole && tally.Drops[drop.Fragment] != 2 {
					t.Fatalf("whole: %v, counted %v", whole, tally.Drops)
				}
				if !whole {
					return
				}
				var i packet.Info
				class := packet.IPv6(b.Bytes()).TrafficClass()
				if !six {
					class = packet.IPv4(b.Bytes()).TOS()
				}
				if d := i.Parse(b.Bytes()); d != drop.Accept || !i.DF || class != 0xb8|byte(c.want) {
					t.Errorf("%v, %+v, class %x", d, i, class)
				}
			})
		}
	}

	options := []byte{packet.ProtoUDP, 0, 1, 4, 0, 0, 0, 0} // a destination options header
	whole := ip6(60, append(options, udp(53, true, 200)[20:]...))
	// It stands before the fragment header in one packet, behind it in another.
	var r reassembler
	var tally stats.Tally
	b := &packet.NewBufs(1)[0]
	for _, before := range []bool{false, true} {
		fs := [][]byte{cut(whole, 1, 0, 48), cut(whole, 1, 48, len(whole)-40)}
		if before {
			rest := ip6(packet.ProtoUDP, whole[48:])
			for i, f := range [][]byte{cut(rest, 2, 0, 48), cut(rest, 2, 48, len(rest)-40)} {
				fs[i] = append(append(bytes.Clone(f[:40]), 44, 0, 1, 4, 0, 0, 0, 0), f[40:]...)
				fs[i][6] = 60
				packet.IPv6(fs[i]).SetPayloadLen(len(fs[i]) - 40)
			}
		}
		for i, f := range fs {
			b.SetLen(copy(b.Room(), f))
			if got := r.add(b, 1, &tally) > 0; got != (i == 1) {
				t.Fatalf("before %v: %v at fragment %d; %v", before, got, i, tally.Drops)
			}
		}
		if !bytes.Equal(b.Bytes(), whole) {
			t.Errorf("before %v: packet is\n%x, want\n%x", before, b.Bytes(), whole)
		}
	}
}

// TestFragmentsGoOn: clients' fragments reach their realserver as one packet, too large ones in outer fragments and
// never answered with a size; in either family, through either; a ping is answered, in fragments. Nothing is allocated.
func TestFragmentsGoOn(t *testing.T) {
	for _, real := range []string{"4", "6"} {
		to := real1
		if real == "6" {
			to = real6
		}
		for _, six := range []bool{false, true} {
			b := newSite(t, to, 0, 1500)
			var s script
			w := testWorker(&s, &s, nil, b, NewShared(), func() conntab.Ticks { return 1 })
			whole := []byte(udp(53, false, 5000))
			if six {
				whole = udp6(53, 5000)
			}
			n := len(whole) - 20
			if six {
				n = len(whole) - 40
			}
			s.in = [][]byte{cut(whole, 9, 2000, n), cut(whole, 9, 0, 1000), cut(whole, 9, 1000, 2000)}
			if err := w.Run(); err != nil {
				t.Fatal(err)
			}
			got := putTogether(t, s.out, 1500)
			if !six {
				binary.BigEndian.PutUint16(whole[4:], 9)
				packet.IPv4(whole).SetChecksum()
			}
			overhead := len(got) - len(whole)
			if overhead != 20 && overhead != 40 || !bytes.Equal(got[overhead:], whole) {
				t.Errorf("to %v, six %v: %x", to, six, got)
			}
			var tally stats.Tally
			w.Read(&tally)
			if tally.Drops != ([drop.NumReasons]uint64{}) || tally.InPackets != 3 ||
				int(tally.OutPackets) != len(s.out) {
				t.Errorf("to %v, six %v: %+v", to, six, tally)
			}
			w.sendBy(discard{})
			in := [][]byte{cut(whole, 9, 2000, n), cut(whole, 9, 0, 1000), cut(whole, 9, 1000, 2000)}
			if n := testing.AllocsPerRun(100, func() {
				for i := range in {
					w.bufs[i].SetLen(copy(w.bufs[i].Room(), in[i]))
				}
				w.forward(w.bufs[:len(in)])
			}); n != 0 {
				t.Errorf("%v allocations", n)
			}
		}
	}
	var s script
	w := testWorker(&s, &s, nil, newSite(t, real1, 0, 1500), NewShared(), func() conntab.Ticks { return 1 })
	echo := make([]byte, 3000)
	echo[0] = packet.ICMPEcho
	binary.BigEndian.PutUint16(echo[2:], packet.Checksum(echo))
	ping := ip(packet.ProtoICMP, false, echo)
	s.in = [][]byte{cut(ping, 5, 0, 1480), cut(ping, 5, 1480, 3000)}
	if err := w.Run(); err != nil {
		t.Fatal(err)
	}
	answer := packet.IPv4(putTogether(t, s.out, 1280))
	if len(answer) != len(ping) || answer.Src() != vip || answer.Dst() != client || packet.Checksum(answer[20:]) != 0 {
		t.Errorf("answered with %d bytes", len(answer))
	}
}

// putTogether makes one packet of the fragments, in their order. None may be larger than mtu.
func putTogether(t *testing.T, fragments [][]byte, mtu int) []byte {
	t.Helper()
	var whole []byte
	for i, f := range fragments {
		at, ok := packet.ParseFragment(checked(f))
		if !ok || at.ID == 0 || len(f) > mtu || at.More != (i < len(fragments)-1) {
			t.Fatalf("fragment %d of %d: %x", i, len(fragments), f)
		}
		head, skip := 20, 0
		if f[0]>>4 == 6 {
			head, skip = 40, 8
		}
		if i == 0 {
			whole = bytes.Clone(f[:head])
		}
		if at.Offset != len(whole)-head {
			t.Fatalf("fragment %d begins at %d, want %d", i, at.Offset, len(whole)-head)
		}
		whole = append(whole, f[head+skip:]...)
	}
	if whole[0]>>4 == 4 {
		packet.IPv4(whole).SetTotalLen(len(whole))
	}
	return whole
}

// checked returns f with the checksum that the kernel fills in.
func checked(f []byte) []byte {
	f = bytes.Clone(f)
	if f[0]>>4 == 4 {
		packet.IPv4(f).SetChecksum()
	}
	return f
}

// FuzzReassembly: fragments of any contents, again and again: a packet that comes out is whole, and what is lost is
// counted.
func FuzzReassembly(f *testing.F) {
	p := udp(53, false, 100)
	f.Add(append(cut(p, 1, 0, 48), cut(p, 1, 48, 108)...), uint8(68))
	q := udp6(53, 100)
	f.Add(append(cut(q, 1, 0, 48), cut(q, 1, 48, 108)...), uint8(96))
	var r reassembler
	bufs := packet.NewBufs(1)
	var now conntab.Ticks
	f.Fuzz(func(t *testing.T, all []byte, size uint8) {
		var tally stats.Tally
		in, out := uint64(0), uint64(0)
		now += wait6 + 1
		r.sweep(now, &stats.Tally{})
		for n := int(size) + 1; len(all) > 0; {
			part := bytes.Clone(all[:min(n, len(all))])
			all = all[len(part):]
			if h := packet.IPv4(part); len(h) >= 20 && h.Version() == 4 && h.HeaderLen() >= 20 &&
				h.HeaderLen() <= len(h) {
				h.SetTotalLen(len(h))
				h.SetChecksum()
			}
			var i packet.Info
			if i.Parse(part) != drop.Fragment {
				continue
			}
			in++
			b := &bufs[0]
			b.SetLen(copy(b.Room(), part))
			if r.add(b, now, &tally) > 0 {
				if d := i.Parse(b.Bytes()); d == drop.Fragment || i.Len != b.Len() && d == drop.Accept {
					t.Errorf("%v: %x", d, b.Bytes())
				}
				out = 1
			}
		}
		now += wait6 + 1
		r.sweep(now, &tally)
		if lost := tally.Drops[drop.Fragment] + tally.Drops[drop.Reassembly]; out == 0 && lost != in {
			t.Errorf("%d fragments in, %d counted", in, lost)
		}
		if len(r.spare) != maxPages && r.pages != nil {
			t.Errorf("%d pages free", len(r.spare))
		}
	})
}
