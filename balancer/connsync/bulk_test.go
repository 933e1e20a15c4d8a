package connsync

import (
	"net/netip"
	"testing"

	"vstun/balancer/conntab"
	"vstun/encap/packet"
)

// TestNewcomer: a director that starts, or starts again, gets the whole table, also what its peer has from itself.
func TestNewcomer(t *testing.T) {
	const n = 3000
	w := newNetwork(t, 2, 10_000, key)
	one := w.directors[0]
	w.run(5 * second)
	for i := range n {
		from := w.directors[i%2]
		from.open(w, i, vip, 80)
	}
	w.run(2 * second)
	w.stop()
	three := w.start(10_000, key)
	three.addr = netip.MustParseAddr("10.0.2.99")
	select {
	case <-three.Ready():
		t.Error("ready at once")
	default:
	}
	w.run(10 * second)
	if got := three.table.Len(); got != n || one.table.Len() != n {
		t.Errorf("%d connections, the peer has %d, want %d; %+v", got, one.table.Len(), n, three.Status())
	}
	select {
	case <-three.Ready():
	default:
		t.Error("not ready")
	}
	st := three.Status()
	if len(st.Peers) != 1 || !st.Peers[0].Complete || !st.Peers[0].Alive || st.Lost > 0 {
		t.Errorf("%+v", st)
	}
}

// TestBulkParts: a bulk transfer keeps its rate, and sends the records of a tick in parts. If the machine is too busy
// for a call in each tick, the parts are larger.
func TestBulkParts(t *testing.T) {
	const n = 300_000
	w := newNetwork(t, 2, n+1000, key)
	from := w.directors[0]
	w.run(5 * second)
	for i := range n {
		from.open(w, i, vip, 80)
		if i%5000 == 0 {
			w.run(10)
		}
	}
	w.run(2 * second)
	from.SendTable(false)
	sent := func(fn func()) int {
		before := from.Status().Sent.Records
		fn()
		w.deliver()
		return int(from.Status().Sent.Records - before)
	}
	tick := func(elapsed conntab.Ticks) int {
		w.now += elapsed
		return sent(func() { from.work(w.now, elapsed) })
	}
	const perTick = BulkRate / conntab.PerSecond
	tick(1)
	all, largest := 0, 0
	for range 100 {
		part := tick(1)
		for range bulkParts - 1 {
			largest = max(largest, part)
			all += part
			part = sent(func() { from.sendMore(w.now) })
		}
		all += part
	}
	if all < 99*perTick || all > 106*perTick { // the refresh is part of it
		t.Errorf("%d records in a second, want %d", all, BulkRate)
	}
	if largest > perTick/2 {
		t.Errorf("%d of %d records of a tick at once", largest, perTick)
	}
	for _, late := range []conntab.Ticks{1, 2, 5, 10} {
		for range 20 { // until what is owed is steady
			tick(late)
		}
		if got, want := tick(late), perTick*int(late); got < want*9/10 {
			t.Errorf("a call every %d0 ms sends %d records, want %d", late, got, want)
		}
	}
}

// TestHoleInBulk: a bulk transfer of which datagrams are lost, more than can be sent again, is not the whole table, and
// another one makes up for it.
func TestHoleInBulk(t *testing.T) {
	const n = 120_000
	w := newNetwork(t, 2, 200_000, key)
	from, to := w.restart(n)
	from.cfg.BulkRate = 40_000
	w.spoil = func([][]byte) [][]byte { return nil }
	w.run(second) // the link is down
	w.spoil = func(list [][]byte) [][]byte { return list }
	for range 60 {
		w.run(second / 2)
		if got := to.table.Len(); got < n && (to.nowReady() || to.Status().Peers[0].Complete) {
			t.Fatalf("complete with %d connections of %d", got, n)
		}
	}
	if st := to.Status(); to.table.Len() != n || !st.Peers[0].Complete || st.Lost == 0 {
		t.Errorf("%d connections of %d; %+v; the peer: %+v", to.table.Len(), n, st, from.Status())
	}
}

// TestOneClient: a client that makes changes of one connection as fast as it can neither displaces those of others, nor
// keeps a newcomer from the table, nor has the table sent again and again.
func TestOneClient(t *testing.T) {
	const n = 20_000
	for mode, key := range modes {
		w := newNetwork(t, 2, 50_000, key)
		from, to := w.restart(n)
		from.cfg.BulkRate = 40_000
		before := from.Status()
		for range 1000 {
			for range 100 {
				for _, flags := range []uint8{packet.FlagSYN, packet.FlagACK, packet.FlagFIN | packet.FlagACK} {
					from.send(w, client(n, vip, packet.ProtoTCP, 80, flags))
				}
			}
			w.run(1)
		}
		st, records := from.Status(), from.Status().Sent.Records-before.Sent.Records
		if to.table.Len() != n+1 || st.ChangesLost > 0 || records > 3*n ||
			mode == "vstun" && !to.Status().Peers[0].Complete {
			t.Errorf("%s: %d connections, %d changes are lost, %d records; %+v", mode, to.table.Len(), st.ChangesLost,
				records, to.Status())
		}
	}
}

// TestLostChanges: changes that come faster than they can be noted are made up for by one transfer of the table, which
// others do not begin again.
func TestLostChanges(t *testing.T) {
	const n = 100_000
	w := newNetwork(t, 2, 2*n, key)
	one, two := w.directors[0], w.directors[1]
	w.run(5 * second)
	flood := func(from, to int) (lost uint64) {
		before := one.Status().ChangesLost
		for i := from; i < to; i++ {
			one.open(w, i, vip, 80)
		}
		w.run(10)
		return one.Status().ChangesLost - before
	}
	lost := flood(0, n/2)
	running := one.bulk
	if again := flood(n/2, n); lost == 0 || again == 0 || running == nil || one.bulk != running {
		t.Errorf("%d, then %d changes are lost; the transfer is %p, then %p", lost, again, running, one.bulk)
	}
	w.run(20 * second)
	if st := one.Status(); two.table.Len() != n || one.bulk != nil || one.owes {
		t.Errorf("%d connections of %d, %d transfers", two.table.Len(), n, st.Bulks)
	}
}

// TestNewcomerIPVS: a director that starts again in the mode IPVS asks for the tables, and gets what it has lost, but
// never more often than every 3 s.
func TestNewcomerIPVS(t *testing.T) {
	const n = 1000
	w := newNetwork(t, 2, 10_000, nil)
	one := w.directors[0]
	w.run(5 * second)
	for i := range n {
		w.directors[i%2].open(w, i, vip, 80)
	}
	w.run(10 * second)
	before := one.Status().Bulks
	w.stop()
	two := w.start(10_000, nil)
	w.run(10 * second)
	if got := two.table.Len(); got != n {
		t.Errorf("%d connections, want %d", got, n)
	}
	empty := make([]byte, headerSize)
	putHeader(empty, 0, 0)
	for range 100 {
		one.take(empty, two.addr, w.now)
		w.run(10)
	}
	if bulks := one.Status().Bulks - before; bulks < 2 || bulks > 7 {
		t.Errorf("%d bulk transfers in 20 s", bulks)
	}
}
