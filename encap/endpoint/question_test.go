package endpoint

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"sync"
	"testing"

	"vstun/encap"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/encap/packet/stats"
	"vstun/encap/query"
)

// question is a director's question as it stands in its tunnel, from this UDP port.
func question(src, dst netip.Addr, q query.Question, port uint16) []byte {
	u := binary.BigEndian.AppendUint16(nil, port)
	u = binary.BigEndian.AppendUint16(u, query.Port)
	u = binary.BigEndian.AppendUint16(u, packet.UDPHeaderLen+query.Len)
	u = query.AppendQuestion(append(u, 0, 0), q)
	p := ip(src, dst, packet.ProtoUDP, u)
	t := p[len(p)-len(u):]
	packet.PutChecksum(t[6:], packet.Sum(t, packet.PseudoSum(p, packet.ProtoUDP, len(t))), true)
	return p
}

// asking returns a worker with room for n questions.
func asking(n int) (*Worker, chan Asked) {
	w, ch := NewWorker(nil, discard{}, inForce(policy()), true), make(chan Asked, n)
	w.SendQuestions(ch)
	return w, ch
}

// receive makes the worker process packets as one batch.
func receive(t *testing.T, w *Worker, all ...[]byte) {
	t.Helper()
	for i, b := range all {
		w.bufs[i].SetLen(copy(w.bufs[i].Room(), b))
	}
	if err := w.move(w.bufs[:len(all)]); err != nil {
		t.Fatal(err)
	}
}

func tallied(w *Worker) (t stats.Tally) {
	w.Read(&t)
	return t
}

// A question comes through every tunnel, over and in both families, and is neither let in nor refused.
func TestQuestions(t *testing.T) {
	for _, kind := range []encap.Kind{encap.KindIPIP, encap.KindGRE, encap.KindGUE} {
		for _, from := range []netip.Addr{director, director6} {
			for _, of := range []netip.Addr{vip, vip6} {
				to := realserver
				if from.Is6() {
					to = realserver6
				}
				src, dst := query.Inner(from, to, of)
				want := query.Question{Version: query.Version, First: 3, Nonce: 99}
				w, ch := asking(1)
				receive(t, w, wrap(kind, from, question(src, dst, want, 40001)))
				select {
				case got := <-ch:
					if got.Question != want || got.From != netip.AddrPortFrom(from, 40001) {
						t.Errorf("%v from %v to %v: %+v", kind, from, dst, got)
					}
				default:
					t.Errorf("%v from %v to %v: no question; %v", kind, from, dst, tallied(w))
				}
				if st := tallied(w); st.InPackets != 1 || st.OutPackets != 0 || st.Drops != [drop.NumReasons]uint64{} ||
					w.Questions() != 1 {
					t.Errorf("%v from %v to %v: %+v", kind, from, dst, st)
				}
			}
		}
	}
}

// Packets that are no questions are refused as before. A stranger's question is refused for its source. Dropped
// questions are counted.
func TestNoQuestions(t *testing.T) {
	good := question(director, realserver, query.Question{Version: query.Version}, 40001)
	edited := func(edit func(p []byte)) []byte {
		p := bytes.Clone(good)
		edit(p)
		packet.IPv4(p).SetChecksum()
		return p
	}
	for name, c := range map[string]struct {
		from  netip.Addr
		inner []byte
		want  drop.Reason
	}{
		"from a stranger":  {netip.MustParseAddr("10.0.2.3"), good, drop.NotDirector},
		"a wrong checksum": {director, edited(func(p []byte) { p[26] ^= 1 }), drop.InnerDestination},
		"no checksum":      {director, edited(func(p []byte) { p[26], p[27] = 0, 0 }), drop.InnerDestination},
		"another port":     {director, edited(func(p []byte) { p[23]++; p[27]-- }), drop.InnerDestination},
		"from port 0": {director, question(director, realserver, query.Question{Version: query.Version}, 0),
			drop.InnerDestination},
		"a fragment": {director, edited(func(p []byte) { p[6] = 0x20 }), drop.InnerDestination},
		"TCP":        {director, edited(func(p []byte) { p[9] = 6 }), drop.InnerDestination},
		"version 0": {director, question(director, realserver, query.Question{}, 40001),
			drop.InnerDestination},
		"one too many":      {director, good, drop.Question},
		"a small datagram":  {director, ip(director, realserver, 17, make([]byte, 7)), drop.InnerDestination},
		"nothing behind IP": {director, ip(director, realserver, 17, nil), drop.InnerDestination},
	} {
		w, _ := asking(0)
		receive(t, w, wrap(encap.KindIPIP, c.from, c.inner))
		if st := tallied(w); st.Drops[c.want] != 1 || w.Questions() != 0 {
			t.Errorf("%s: %v, want %v", name, st.Drops, c.want)
		}
	}
	// To a VIP it is a client's packet, whatever is in it.
	w, ch := asking(1)
	receive(t, w, wrap(encap.KindIPIP, director, question(client, vip, query.Question{Version: query.Version}, 40001)))
	if st := tallied(w); st.OutPackets != 1 || len(ch) != 0 {
		t.Errorf("to a VIP: %+v, %d questions", st, len(ch))
	}
}

func counted(s *Addrs) string {
	m := map[netip.Addr]uint64{}
	s.Read(m)
	return fmt.Sprint(m)
}

// The worker counts by address what it lets in and what it refuses, of packets and of GSO packets. It counts questions
// by no address.
func TestAddressesAreCounted(t *testing.T) {
	w, _ := asking(1)
	addr := netip.MustParseAddr
	other, stranger, absent := addr("10.9.1.1"), addr("10.0.2.99"), addr("198.51.100.99")
	receive(t, w,
		tunnelled4(director, client, vip, 6), tunnelled4(director, client, vip, 6), tunnelled4(other, client, vip, 6),
		tunnelled4(director, client, absent, 6), tunnelled4(stranger, client, vip, 6), tunnelled4(stranger, client, vip,
			6),
		wrap(encap.KindIPIP, director, question(director, realserver, query.Question{Version: query.Version}, 40001)),
		wrap(encap.KindGRE, director6, ip(client6, vip6, 6, make([]byte, 20))))
	part := gue(ip(client, absent, 6, make([]byte, 20)))
	for _, from := range []netip.Addr{other, stranger} {
		train := append(wrap(encap.KindGUE, from, ip(client, absent, 6, make([]byte, 20))), part...)
		packet.IPv4(train).SetTotalLen(len(train))
		w.bufs[0].SetLen(copy(w.bufs[0].Room(), train))
		w.bufs[0].Offload = packet.Offload{GSO: packet.GSOUDP, Size: uint16(len(part))}
		if err := w.move(w.bufs[:1]); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		addrs *Addrs
		want  map[netip.Addr]uint64
	}{
		"directors":    {w.Directors(), map[netip.Addr]uint64{director: 3, other: 3, director6: 1}},
		"strangers":    {w.Strangers(), map[netip.Addr]uint64{stranger: 4}},
		"destinations": {w.Destinations(), map[netip.Addr]uint64{absent: 3}},
	} {
		if got := counted(c.addrs); got != fmt.Sprint(c.want) {
			t.Errorf("%s: %s, want %v", name, got, c.want)
		}
	}
	if st := tallied(w); st.InPackets != 12 || st.Drops[drop.NotDirector] != 4 ||
		st.Drops[drop.InnerDestination] != 3 {
		t.Errorf("%+v", st)
	}
}

// Addrs keeps the last addresses, as many as it has room for.
func TestAddressesAreBounded(t *testing.T) {
	s, a := newAddrs(4), netip.MustParseAddr("10.0.0.0")
	for range 10 {
		a = a.Next()
		s.add(a, 1)
		s.add(a, 1)
	}
	s.publish()
	want := map[netip.Addr]uint64{}
	for range 4 {
		want[a] = 2
		a = a.Prev()
	}
	if got := counted(&s); got != fmt.Sprint(want) {
		t.Errorf("%s, want %v", got, want)
	}
	if n := testing.AllocsPerRun(100, func() { a = a.Next(); s.add(a, 1); s.publish() }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// A reader sees whole addresses while they are replaced, each with a count of its own.
func TestAddressesAreReadWhole(t *testing.T) {
	s := newAddrs(2)
	var wait sync.WaitGroup
	done := make(chan struct{})
	wait.Go(func() {
		defer close(done)
		for i := range 20_000 {
			x := byte(i)
			s.add(netip.AddrFrom16([16]byte{0x20, x, 7: x, 8: x, 15: x}), 1)
			s.publish()
		}
	})
	for reading := true; reading; {
		select {
		case <-done:
			reading = false
		default:
		}
		m := map[netip.Addr]uint64{}
		s.Read(m)
		for a := range maps.Keys(m) {
			if b := a.As16(); b[1] != b[7] || b[1] != b[8] || b[1] != b[15] {
				t.Fatalf("%v is no address that was counted", a)
			}
		}
	}
	wait.Wait()
}
