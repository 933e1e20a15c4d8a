package connsync

import (
	"bytes"
	"slices"
	"testing"

	"vstun/balancer/conntab"
	"vstun/balancer/envelope"
	"vstun/encap/packet"
)

// hears reports whether d has another director as an alive peer.
func (d *director) hears(other *director) bool {
	for _, p := range d.Status().Peers {
		if p.Addr == other.addr && p.Alive {
			return true
		}
	}
	return false
}

// TestFarPeer: a busy director and one that starts meet although a datagram takes most of half a second.
func TestFarPeer(t *testing.T) {
	const late = 40
	w := newNetwork(t, 2, 10_000, key)
	type letter struct {
		at   conntab.Ticks
		from *director
		b    []byte
	}
	var way []letter
	for n := range 500 {
		w.now += ticksOf(bulkEvery)
		w.directors[0].open(w, n, vip, 80) // its datagrams are many
		for _, d := range w.directors {
			d.work(w.now, ticksOf(bulkEvery))
			for _, b := range d.box.sent {
				way = append(way, letter{w.now + late, d, b})
			}
			d.box.sent = nil
		}
		for len(way) > 0 && int32(w.now-way[0].at) >= 0 {
			for _, d := range w.directors {
				if d != way[0].from {
					d.take(bytes.Clone(way[0].b), way[0].from.addr, w.now)
				}
			}
			way = way[1:]
		}
	}
	one, two := w.directors[0], w.directors[1]
	if !one.hears(two) || !two.hears(one) {
		t.Errorf("they have not met: %+v; %+v", one.Status(), two.Status())
	}
}

// TestRecordedHellos: recordings of hellos of former sessions, sent again and again, do not keep a director that starts
// from its peer.
func TestRecordedHellos(t *testing.T) {
	w := newNetwork(t, 1, 1024, key)
	one := w.directors[0]
	var recorded [][]byte
	for range 5 {
		former := w.start(1024, key)
		former.work(w.now, 0)
		recorded = append(recorded, former.box.sent...)
		w.stop()
	}
	two := w.start(1024, key)
	w.spoil = func(list [][]byte) [][]byte { return append(slices.Clone(recorded), list...) } // always before
	w.run(3 * second)
	if !one.hears(two) || !two.hears(one) {
		t.Errorf("they have not met: %+v; %+v", one.Status(), two.Status())
	}
	if n := len(one.answered); n > maxAnswered {
		t.Errorf("%d sessions are kept", n)
	}
	for n := range uint64(2 * maxAnswered) {
		one.mayAnswer(n, w.now)
	}
	if n := len(one.answered); n != maxAnswered || one.mayAnswer(2*maxAnswered-1, w.now) {
		t.Errorf("%d sessions are kept", n)
	}
}

// TestAnswerFromPeersAddress: an answer that comes from the address of another peer does not remove that one, nor what
// is known of its sequence numbers.
func TestAnswerFromPeersAddress(t *testing.T) {
	w := newNetwork(t, 2, 4096, key)
	one, two := w.directors[0], w.directors[1]
	recorded := w.record()
	for n := range 20 {
		two.open(w, n, vip, 80)
		w.run(20)
	}
	w.run(3 * second)
	was := one.peers[two.id()]
	three := w.start(4096, key)
	w.spoil = func(list [][]byte) [][]byte {
		for _, b := range list {
			if e := envelope.Parse(b); e.Session == three.session && e.Kind == answer {
				one.take(bytes.Clone(b), two.addr, w.now)
			}
		}
		return list
	}
	w.run(second)
	before := one.Status()
	for _, b := range *recorded {
		one.take(bytes.Clone(b), two.addr, w.now)
	}
	if st := one.Status(); st.Received.Records != before.Received.Records || one.peers[two.id()] != was ||
		one.peers[three.id()] == nil {
		t.Errorf("%d records were taken again; %+v", st.Received.Records-before.Received.Records, st)
	}
}

// id returns the id of d at its peers.
func (d *director) id() peerID { return peerID{session: d.session} }

// TestRestartedSession: a director that starts again is one peer, and its former session is none for long.
func TestRestartedSession(t *testing.T) {
	w := newNetwork(t, 2, 4096, key)
	one := w.directors[0]
	w.run(5 * second)
	former := w.directors[1]
	w.stop()
	again := w.start(4096, key)
	for range 8 {
		w.run(second / 2)
		if st := one.Status(); len(st.Peers) != 1 {
			t.Errorf("peers %+v, want one", st.Peers)
		}
	}
	if one.peers[former.id()] != nil || !one.hears(again) {
		t.Errorf("the former session is a peer: %v; %+v", one.peers[former.id()] != nil, one.Status())
	}
}

// TestNumbersGoBack: a director whose sequence numbers go back, as those of a virtual machine that goes back to an
// earlier state, is heard again soon, and what was recorded of it is not.
func TestNumbersGoBack(t *testing.T) {
	w := newNetwork(t, 2, 4096, key)
	one, two := w.directors[0], w.directors[1]
	recorded := w.record()
	for n := range 200 {
		two.open(w, n, vip, 80)
		w.run(10)
	}
	w.spoil = func(list [][]byte) [][]byte { return list }
	two.out.seq -= 200
	w.run(15 * second)
	if !one.hears(two) || !two.hears(one) {
		t.Fatalf("it is silent: %+v", one.Status())
	}
	want := two.open(w, 999, vip, 80)
	w.run(20)
	if got := one.send(w, client(999, vip, packet.ProtoTCP, 80, packet.FlagACK)); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	before := one.Status()
	for _, b := range *recorded {
		one.take(bytes.Clone(b), two.addr, w.now)
	}
	if st := one.Status(); st.Received.Records != before.Received.Records {
		t.Errorf("%d records were taken again", st.Received.Records-before.Received.Records)
	}
}

// TestSessionStays: a director keeps its session while a peer hears it, and when it hears none.
func TestSessionStays(t *testing.T) {
	w := newNetwork(t, 3, 1024, key)
	w.run(5 * second)
	var sessions []uint64
	for _, d := range w.directors {
		sessions = append(sessions, d.session)
	}
	one, deaf := w.directors[0], w.directors[2]
	w.spoil = func(list [][]byte) [][]byte {
		return slices.DeleteFunc(list, func(b []byte) bool { return envelope.Parse(b).Session == one.session })
	}
	w.run(20 * second) // none hears one, which hears all
	sessions[0] = one.session
	w.spoil = func([][]byte) [][]byte { return nil }
	w.run(20 * second)
	w.spoil = func(list [][]byte) [][]byte { return list }
	w.run(20 * second)
	for i, d := range w.directors[1:] {
		if d.session != sessions[i+1] {
			t.Errorf("director %d has another session", i+1)
		}
	}
	if !one.hears(deaf) || !deaf.hears(one) {
		t.Errorf("they have not met again: %+v", one.Status())
	}
}

// TestForgottenPeer: a director that is gone is no silent peer for ever.
func TestForgottenPeer(t *testing.T) {
	for mode, key := range modes {
		w := newNetwork(t, 2, 1024, key)
		w.run(5 * second)
		w.stop()
		w.run(300 * second)
		first := len(w.directors[0].Status().Peers)
		w.run(400 * second)
		if last := len(w.directors[0].Status().Peers); first != 1 || last != 0 {
			t.Errorf("%s: %d peers, then %d", mode, first, last)
		}
	}
}
