package connsync

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/encap/packet"
)

// modes are the keys of both modes.
var modes = map[string][]byte{"ipvs": nil, "vstun": key}

// TestTakesOver: each kind of connection that one director has opened goes on at the other, to the same realserver.
func TestTakesOver(t *testing.T) {
	for mode, key := range modes {
		for name, c := range map[string]struct {
			to    netip.Addr
			proto uint8
			port  uint16
		}{
			"tun": {vip, packet.ProtoTCP, 80}, "tun ipv6": {vip6, packet.ProtoTCP, 83},
			"ipv4 over ipv6": {vip, packet.ProtoTCP, 83}, "ipv6 over ipv4": {vip6, packet.ProtoTCP, 80},
			"dr": {vip, packet.ProtoTCP, 81}, "nat": {vip, packet.ProtoTCP, 82},
			"udp": {vip, packet.ProtoUDP, 53}, "udp ipv6": {vip6, packet.ProtoUDP, 54},
			"sctp": {vip, packet.ProtoSCTP, 99}, "persistent": {vip, packet.ProtoTCP, 444},
		} {
			t.Run(mode+"/"+name, func(t *testing.T) {
				w := newNetwork(t, 2, 4096, key)
				one, two := w.directors[0], w.directors[1]
				w.run(5 * second)
				skipped := 0
				for n := range 30 {
					first, next := client(n, c.to, c.proto, c.port, packet.FlagSYN), client(n, c.to, c.proto, c.port,
						packet.FlagACK)
					next.SCTPChunk = packet.ChunkCookieEcho
					data := *next
					data.SCTPChunk = packet.ChunkData
					want := one.send(w, first, next, &data)
					w.run(20)
					got := two.send(w, &data)
					if mixed := strings.Contains(want, "[") == c.to.Is4(); mixed && mode == "ipvs" {
						skipped++
						continue
					}
					if got != want {
						t.Fatalf("client %d: %s at the other director, want %s; %+v", n, got, want, two.Status())
					}
					a, _ := one.conn(w, &data)
					if b, known := two.conn(w, &data); !known || b.State != a.State {
						t.Errorf("state %v, want %v", b.State, a.State)
					}
				}
				if st := one.Status(); int(st.Inexpressible) < skipped {
					t.Errorf("%d connections of mixed families, %d records left out", skipped, st.Inexpressible)
				}
			})
		}
	}
}

// TestOtherNames: directors whose services have other names keep each other's connections and templates.
func TestOtherNames(t *testing.T) {
	w := newNetwork(t, 2, 4096, key)
	one, two := w.directors[0], w.directors[1]
	list := services()
	for i := range list {
		list[i].Name = "the " + list[i].Name
	}
	if err := two.balancer.Apply(balancer.Config{Services: list}); err != nil {
		t.Fatal(err)
	}
	w.run(5 * second)
	for n := range 20 {
		two.open(w, 5000+n*256, vip, 443) // moves its scheduler on
		two.open(w, 9000+n*256, vip, 443)
		want := one.open(w, n*256, vip, 443)
		w.run(20)
		if got := two.open(w, n*256+1, vip, 444); got != want {
			t.Errorf("client %d: %s, want %s", n, got, want)
		}
	}
	if st := two.Status(); len(st.Refused) > 0 {
		t.Errorf("refused: %v", st.Refused)
	}
}

// TestHalfClosedAtOnce: in the mode IPVS, a new connection that is half-closed within a flush takes the place of the
// port's former one.
func TestHalfClosedAtOnce(t *testing.T) {
	for mode, key := range modes {
		w := newNetwork(t, 2, 4096, key)
		one, two := w.directors[0], w.directors[1]
		w.run(5 * second)
		p := func(flags uint8) *packet.Info { return client(7, vip, packet.ProtoTCP, 81, flags) }
		former := one.open(w, 7, vip, 81)
		w.run(20)
		one.send(w, p(packet.FlagRST|packet.FlagACK))
		w.run(20)
		want := one.open(w, 7, vip, 81)
		one.send(w, p(packet.FlagFIN|packet.FlagACK))
		w.run(20)
		c, _ := two.conn(w, p(0))
		if got := two.send(w, p(packet.FlagACK)); got != want || got == former || c.State != conntab.FinWait {
			t.Errorf("%s: %s in %v, want %s, was %s", mode, got, c.State, want, former)
		}
	}
}

// TestHalfOpenStays: a flood fills no other director's table. A planned switch takes half-open connections along.
func TestHalfOpenStays(t *testing.T) {
	w := newNetwork(t, 2, 4096, key)
	one, two := w.directors[0], w.directors[1]
	w.run(5 * second)
	want := one.send(w, client(1, vip, packet.ProtoTCP, 80, packet.FlagSYN))
	w.run(20 * second)
	if n := two.table.Len(); n != 0 {
		t.Errorf("%d connections, want none", n)
	}
	done := one.SendTable(true)
	w.run(3 * second)
	select {
	case <-done:
	default:
		t.Error("the transfer has not ended")
	}
	if got := two.send(w, client(1, vip, packet.ProtoTCP, 80, packet.FlagACK)); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestSwitch: at a switch, the peer learns at once of connections that are half-open, or become so in the next seconds.
// Later ones are not sent.
func TestSwitch(t *testing.T) {
	w := newNetwork(t, 2, 4096, key)
	one, two := w.directors[0], w.directors[1]
	w.run(5 * second)
	open := func(n int, proto uint8, port uint16) string {
		return one.send(w, client(n, vip, proto, port, packet.FlagSYN))
	}
	want := map[int]string{1: open(1, packet.ProtoTCP, 80), 2: open(2, packet.ProtoSCTP, 99)}
	w.run(second)
	sent := one.Switch()
	w.run(second / 4)
	select {
	case <-sent:
	default:
		t.Error("the half-open connections are not sent")
	}
	for n := 3; n < 9; n += 2 {
		want[n], want[n+1] = open(n, packet.ProtoTCP, 80), open(n+1, packet.ProtoSCTP, 99)
		w.run(ticksOf(2 * bulkEvery))
	}
	for n, to := range want {
		p := client(n, vip, packet.ProtoTCP, 80, packet.FlagACK)
		if n%2 == 0 {
			p = client(n, vip, packet.ProtoSCTP, 99, 0)
			p.SCTPChunk = packet.ChunkCookieEcho
		}
		if got := two.send(w, p); got != to {
			t.Errorf("connection %d: %s, want %s", n, got, to)
		}
	}
	w.run(5 * second)
	late := client(10, vip, packet.ProtoTCP, 80, packet.FlagSYN)
	one.send(w, late)
	w.run(5 * second)
	if _, known := two.conn(w, late); known {
		t.Error("a half-open connection is sent without a switch")
	}
}

// TestForgedAddresses: datagrams from many addresses, in the mode IPVS, have the table sent now and then at most, and
// keep no peer out.
func TestForgedAddresses(t *testing.T) {
	w := newNetwork(t, 2, 1024, nil)
	one, two := w.directors[0], w.directors[1]
	w.run(10 * second)
	before := one.Status().Bulks
	good := appendRecord(make([]byte, headerSize), &Record{Protocol: 6, State: 1, Client: at("192.0.2.1:1"),
		Virtual: at("198.51.100.80:80"), Real: at("10.0.11.2:80"), Timeout: 900})
	putHeader(good, 0, 1)
	empty := make([]byte, headerSize)
	putHeader(empty, 0, 0)
	for n := range 20_000 {
		from := netip.AddrFrom4([4]byte{10, 1, byte(n >> 8), byte(n)})
		one.take([][]byte{good, empty}[n%2], from, w.now)
		if n%100 == 0 {
			w.run(10)
		}
	}
	two.open(w, 7, vip, 80)
	w.run(10)
	st := one.Status()
	if _, known := one.conn(w, client(7, vip, packet.ProtoTCP, 80, 0)); !known || st.Refused["stranger"] > 0 {
		t.Errorf("the peer is kept out: %v", st.Refused)
	}
	if bulks := st.Bulks - before; bulks == 0 || bulks > 7 || len(st.Peers) > maxPeers {
		t.Errorf("%d transfers in 20 s, %d peers", bulks, len(st.Peers))
	}
	junk := slices.Clone(good)
	junk[headerSize+recordSize4-1] = 77 // no realserver
	w.run(10 * second)
	before = one.Status().Bulks
	for n := range 100 {
		one.take(slices.Clone(junk), netip.AddrFrom4([4]byte{10, 2, 0, byte(n)}), w.now)
	}
	w.run(10 * second)
	if bulks := one.Status().Bulks - before; bulks > 0 {
		t.Errorf("%d transfers for records that are refused", bulks)
	}
}

// TestRestartsEndConnections: directors in the mode IPVS that start again and again, one after the other, do not keep
// connections alive that have ended.
func TestRestartsEndConnections(t *testing.T) {
	w := newNetwork(t, 2, 1024, nil)
	w.run(5 * second)
	for n := range 50 {
		w.directors[0].open(w, n, vip, 80)
	}
	for range 30 {
		w.run(50 * second)
		old := w.directors[0]
		w.directors = w.directors[1:]
		w.start(1024, nil).addr = old.addr
	}
	for _, d := range w.directors {
		d.table.Sweep(w.now)
		if n := d.table.Len(); n > 0 {
			t.Errorf("%d connections after 1,500 s", n)
		}
	}
}

// TestReadyAlone: without peers a director is ready after three seconds.
func TestReadyAlone(t *testing.T) {
	w := newNetwork(t, 1, 1024, key)
	w.run(2 * second)
	select {
	case <-w.directors[0].Ready():
		t.Error("ready too early")
	default:
	}
	w.run(2 * second)
	select {
	case <-w.directors[0].Ready():
	default:
		t.Error("not ready")
	}
}

// TestEndedConnectionsEnd: directors do not keep each other's connections alive.
func TestEndedConnectionsEnd(t *testing.T) {
	for mode, key := range modes {
		t.Run(mode, func(t *testing.T) {
			w := newNetwork(t, 3, 4096, key)
			w.run(5 * second)
			for i := range 60 {
				w.directors[i%3].open(w, i, vip, 80)
				w.directors[i%3].open(w, i*256, vip, 443)
			}
			for range 190 {
				w.run(10 * second)
				for _, d := range w.directors {
					d.table.Sweep(w.now)
				}
			}
			for _, d := range w.directors {
				if n := d.table.Len(); n != 0 {
					t.Errorf("%d connections after 1,900 s", n)
				}
			}
		})
	}
}

// TestLivingConnectionsStay: a connection with a packet now and then stays at the peer, in every state that lasts.
func TestLivingConnectionsStay(t *testing.T) {
	for mode, key := range modes {
		t.Run(mode, func(t *testing.T) {
			w := newNetwork(t, 2, 4096, key)
			one, two := w.directors[0], w.directors[1]
			w.run(5 * second)
			type living struct {
				p     *packet.Info
				every int // seconds
			}
			var all []living
			for i := range 20 {
				one.open(w, i, vip, 80)
				all = append(all, living{client(i, vip, packet.ProtoTCP, 80, packet.FlagACK), 120})
				one.open(w, 100+i, vip, 80) // then half-closed: it still loads
				one.send(w, client(100+i, vip, packet.ProtoTCP, 80, packet.FlagFIN|packet.FlagACK))
				all = append(all, living{client(100+i, vip, packet.ProtoTCP, 80, packet.FlagACK), 1})
				all = append(all, living{client(i, vip, packet.ProtoUDP, 53, 0), 30})
			}
			for s := range 2000 {
				for _, l := range all {
					if s%l.every == 0 {
						one.send(w, l.p)
					}
				}
				w.run(second)
			}
			for _, l := range all {
				a, _ := one.conn(w, l.p)
				if b, known := two.conn(w, l.p); !known || a.State != b.State || a.Dest != b.Dest {
					t.Errorf("%v: %v to %d at the peer, want %v to %d", l.p.Flow, b.State, b.Dest, a.State, a.Dest)
				}
			}
		})
	}
}

// TestActiveActive: packets of a connection that pass one director, then the other.
func TestActiveActive(t *testing.T) {
	w := newNetwork(t, 2, 4096, key)
	w.run(5 * second)
	p := func(flags uint8) *packet.Info { return client(7, vip, packet.ProtoTCP, 80, flags) }
	want := w.directors[0].open(w, 7, vip, 80)
	for i := range 50 {
		w.run(20)
		if got := w.directors[i%2].send(w, p(packet.FlagACK)); got != want {
			t.Fatalf("%s, want %s", got, want)
		}
	}
	w.directors[1].send(w, p(packet.FlagFIN|packet.FlagACK))
	w.run(2 * second)
	if c, _ := w.directors[0].conn(w, p(0)); c.State != conntab.FinWait {
		t.Errorf("state %v, want FIN_WAIT", c.State)
	}
}

// TestKeptTable: a director starts with the table that it had. Clients have used their ports again since, for other
// realservers, at the other director: they stay there.
func TestKeptTable(t *testing.T) {
	w := newNetwork(t, 2, 4096, key)
	one, two := w.directors[0], w.directors[1]
	w.run(5 * second)
	former, want := map[int]string{}, map[int]string{}
	for n := range 50 {
		former[n] = one.open(w, n, vip, 80)
	}
	w.run(2 * second)
	moved := 0
	two.open(w, 999, vip, 80) // moves its scheduler on
	for n := range 50 {
		two.send(w, client(n, vip, packet.ProtoTCP, 80, packet.FlagRST|packet.FlagACK))
		if want[n] = two.open(w, n, vip, 80); want[n] != former[n] {
			moved++
		}
		if n%2 == 0 { // these end there
			two.send(w, client(n, vip, packet.ProtoTCP, 80, packet.FlagFIN|packet.FlagACK))
		}
	}
	w.now += 2 * second
	again := &director{addr: one.addr}
	again.Sync = New(Config{Key: key, Size: MaxSize}, &again.box, one.table, one.balancer,
		func() conntab.Ticks { return w.now })
	w.directors = []*director{again, two}
	one.box.sent, two.box.sent = nil, nil
	w.run(5 * second)
	for n := range 50 {
		p := client(n, vip, packet.ProtoTCP, 80, packet.FlagACK)
		state := conntab.Established
		if n%2 == 0 {
			state = conntab.FinWait
		}
		if c, _ := two.conn(w, p); c.State != state {
			t.Errorf("client %d: state %v, want %v", n, c.State, state)
		}
		for _, d := range w.directors {
			if got := d.send(w, p); got != want[n] {
				t.Errorf("client %d: %v sends it to %s, want %s", n, d.addr, got, want[n])
			}
		}
	}
	if st := two.Status(); moved == 0 || !st.Peers[len(st.Peers)-1].Complete {
		t.Errorf("%d clients have moved; %+v", moved, st)
	}
}

// TestLossAndOrder: with lost, repeated and reordered datagrams, clients use their ports again and again for other
// realservers. What a peer has at the end of each round is where the connection goes.
func TestLossAndOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, loss := range []float64{0, 0.05, 0.3} {
		t.Run(fmt.Sprint(loss), func(t *testing.T) {
			w := newNetwork(t, 2, 4096, key)
			one, two := w.directors[0], w.directors[1]
			w.run(5 * second)
			w.spoil = lossy(r, loss)
			const clients = 100
			for round := range 100 {
				for i := range clients {
					if r.IntN(3) == 0 {
						one.send(w, client(i, vip, packet.ProtoTCP, 80, packet.FlagRST|packet.FlagACK))
						w.run(1)
						one.open(w, i, vip, 80)
					}
				}
				w.run(conntab.Ticks(r.IntN(100)))
				if round%10 < 9 {
					continue
				}
				w.run(15 * second) // what is given up comes by a bulk transfer
				for i := range clients {
					p := client(i, vip, packet.ProtoTCP, 80, packet.FlagACK)
					a, known := one.conn(w, p)
					if b, at := two.conn(w, p); known && a.State == conntab.Established && (!at || b.Dest != a.Dest) {
						t.Fatalf("round %d, client %d: %+v at the peer, want %+v; %+v", round, i, b, a, two.Status())
					}
				}
			}
			if st := two.Status(); loss > 0 && (st.Peers[0].Recovered == 0 || st.Refused["replayed"] == 0) {
				t.Errorf("nothing was lost or repeated: %+v", st)
			}
		})
	}
}

// TestLateDatagramsOfIPVS: without sequence numbers, the end of a former connection that comes late does not take the
// new one's place.
func TestLateDatagramsOfIPVS(t *testing.T) {
	w := newNetwork(t, 2, 4096, nil)
	one, two := w.directors[0], w.directors[1]
	w.run(5 * second)
	var held [][]byte
	w.spoil = func(list [][]byte) [][]byte {
		held = append(held, list...)
		return nil
	}
	one.refresh.due = -1e9 // a repeated record would be a fourth datagram
	p := func(flags uint8) *packet.Info { return client(7, vip, packet.ProtoTCP, 81, flags) }
	first := one.open(w, 7, vip, 81)
	w.run(20)
	one.send(w, p(packet.FlagRST|packet.FlagACK))
	w.run(20)
	want := one.open(w, 7, vip, 81)
	w.run(20)
	if first == want || len(held) != 3 {
		t.Fatalf("%s, then %s; %d datagrams", first, want, len(held))
	}
	for _, i := range []int{0, 2, 1} {
		two.take(held[i], one.addr, w.now)
	}
	if got := two.send(w, p(packet.FlagACK)); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestRestartedPeer: recordings of a former session are refused, by a director that has just started, too.
func TestRestartedPeer(t *testing.T) {
	w := newNetwork(t, 2, 4096, key)
	recorded := w.record()
	w.run(5 * second)
	for i := range 100 {
		w.directors[0].open(w, i, vip, 80)
		w.run(20)
	}
	w.spoil = func(list [][]byte) [][]byte { return list }
	two := w.directors[1]
	before := two.Status()
	for _, b := range *recorded {
		two.take(bytes.Clone(b), w.directors[0].addr, w.now)
	}
	if st := two.Status(); st.Received.Records != before.Received.Records {
		t.Errorf("%d records of replays were taken", st.Received.Records-before.Received.Records)
	}
	w.directors = nil
	alone := w.start(4096, key)
	for range 3 {
		for _, b := range *recorded {
			alone.take(bytes.Clone(b), netip.MustParseAddr("10.0.2.2"), w.now)
			w.run(1)
		}
	}
	if st := alone.Status(); st.Received.Records != 0 || alone.table.Len() != 0 || len(st.Peers) != 0 {
		t.Errorf("a new director has taken recordings: %+v", st)
	}
}

// TestUnknown: records that this director's configuration does not know are counted.
func TestUnknown(t *testing.T) {
	w := newNetwork(t, 2, 4096, nil)
	two := w.directors[1]
	b := make([]byte, headerSize)
	n := 0
	add := func(r Record) {
		b = appendRecord(b, &r)
		n++
	}
	good := Record{Protocol: 6, Flags: FlagTunnel, State: 1, Client: at("192.0.2.1:1"), Virtual: at("198.51.100.80:80"),
		Real: at("10.0.11.2:80"), Timeout: 900}
	for _, change := range []func(r *Record){
		func(r *Record) { r.Virtual = at("198.51.100.80:9999") },
		func(r *Record) { r.Real = at("10.0.11.77:80") },
		func(r *Record) { r.State = 11 },
	} {
		r := good
		change(&r)
		add(r)
	}
	template := good
	template.Flags |= FlagTemplate // of a service that is not persistent
	add(template)
	other := good
	other.Flags = FlagDirectRoute // the other end forwards by another method
	add(other)
	putHeader(b, 0, n)
	two.take(b, w.directors[0].addr, w.now)
	st := two.Status()
	if st.Refused["unknown_service"] != 2 || st.Refused["unknown_realserver"] != 1 || st.Refused["bad_state"] != 1 ||
		st.Received.Records != 1 || two.table.Len() != 1 {
		t.Errorf("%+v", st)
	}
}

// TestStrangersAndIDs: in the mode IPVS, other addresses and other syncids are refused.
func TestStrangersAndIDs(t *testing.T) {
	w := newNetwork(t, 1, 1024, nil)
	d := w.directors[0]
	d.cfg.Peers, d.cfg.ID = []netip.Addr{netip.MustParseAddr("10.0.2.3")}, 7
	b := make([]byte, headerSize)
	for id, from := range map[uint8]string{7: "10.0.2.3", 8: "10.0.2.3", 0: "10.0.2.3", 9: "10.0.2.9"} {
		putHeader(b, id, 0)
		d.take(b, netip.MustParseAddr(from), w.now)
	}
	st := d.Status()
	if st.Refused["other_id"] != 2 || st.Refused["stranger"] != 1 || len(st.Peers) != 1 {
		t.Errorf("%+v", st)
	}
	want := []Refused{{Addr: netip.MustParseAddr("10.0.2.3"), Fault: OtherID, N: 2},
		{Addr: netip.MustParseAddr("10.0.2.9"), Fault: Stranger, N: 1}}
	if !slices.Equal(st.Senders, want) {
		t.Errorf("senders %+v, want %+v", st.Senders, want)
	}
	for n := range 2 * maxPeers { // as forged sources
		d.take(b, netip.AddrFrom4([4]byte{10, 0, 3, byte(n)}), w.now+1)
	}
	if n := len(d.Status().Senders); n != maxPeers {
		t.Errorf("%d senders are kept", n)
	}
	d.take(b, netip.MustParseAddr("10.0.4.1"), w.now+forgetAfter+1)
	w.now += forgetAfter + 1
	if all := d.Status().Senders; len(all) != 1 || all[0].Addr != netip.MustParseAddr("10.0.4.1") {
		t.Errorf("senders %+v, want the new one", all)
	}
}

// TestDatagramsFit: no datagram is longer than Size, nor has more than 255 records, and all are full before another
// begins.
func TestDatagramsFit(t *testing.T) {
	for mode, key := range modes {
		for family, to := range map[string]netip.Addr{"ipv4": vip, "ipv6": vip6} {
			t.Run(mode+"/"+family, func(t *testing.T) {
				w := newNetwork(t, 1, 10_000, key)
				d := w.directors[0]
				w.run(second)
				for i := range 500 {
					d.open(w, i, to, map[bool]uint16{true: 81, false: 83}[to.Is4()])
				}
				d.box.sent = nil
				d.work(w.now+10, 10)
				size := recordSize4
				if to.Is6() {
					size = recordSize6
				}
				per := (MaxSize - d.out.overhead()) / size
				n, full := 0, 0
				for _, b := range d.box.sent {
					if len(b) > MaxSize {
						t.Errorf("%d bytes", len(b))
					}
					in := int(b[4])
					if mode == "vstun" {
						in = int(b[7])
					}
					if n += in; in == per {
						full++
					}
				}
				if n < 500 || n > 520 || full != n/per { // the refresh repeats some
					t.Errorf("%d records, %d full datagrams; want 500, %d", n, full, n/per)
				}
			})
		}
	}
}

// TestMethodsOfTheEnds: the realserver's own port decides for VS/NAT.
func TestMethodsOfTheEnds(t *testing.T) {
	w := newNetwork(t, 1, 1024, nil)
	s := w.directors[0].balancer.Snapshot()
	for name, c := range map[string]struct {
		to   string
		want balancer.Reported
	}{
		"its port": {"10.0.11.5:8080", balancer.ReportTaken},
		"another":  {"10.0.11.5:82", balancer.ReportUnknownRealserver},
	} {
		conn := balancer.Connection{Service: "nat", Realserver: at(c.to), Conn: conntab.Conn{State: conntab.Established,
			Expires: time.Minute, Flow: client(1, vip, packet.ProtoTCP, 82, 0).Flow}}
		if got := s.Report(&conn, conntab.Unordered, w.now); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}
