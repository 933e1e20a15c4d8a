package vrrp

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestRefusals(t *testing.T) {
	base := vi(100)
	unicast := vi(100, func(i *Instance) { i.Peers = addrs("10.0.0.2") })
	secret := vi(100, version2, func(i *Instance) { i.Password = "secret12345" })
	signed := vi(100, func(i *Instance) { i.Key = &testKey })
	six := vi(100, func(i *Instance) { i.Addrs = addrs("fe80::80") })
	send := func(change ...func(*Instance)) Instance { return vi(250, change...) }
	password := func(p string) func(*Instance) { return func(i *Instance) { version2(i); i.Password = p } }
	for _, c := range []struct {
		name string
		at   Instance
		of   Instance
		to   string // "": the group
		ttl  int
		want Refusal
	}{
		{"good", base, send(), "", 255, Accepted},
		{"ttl", base, send(), "", 254, BadTTL},
		{"another router id", base, send(func(i *Instance) { i.RouterID = 52 }), "", 255, NoInstance},
		{"another version", base, send(version2), "", 255, BadVersion},
		{"unicast to a multicast instance", base, send(), "10.0.0.1", 255, BadCast},
		{"multicast to a unicast instance", unicast, send(), "", 255, BadCast},
		{"from a peer", unicast, send(), "10.0.0.1", 64, Accepted},
		{"another interval", secret, send(password("secret12"), every(2*time.Second)), "", 255, BadInterval},
		{"the first 8 characters count", secret, send(password("secret12")), "", 255, Accepted},
		{"another password", secret, send(password("secret1")), "", 255, BadPassword},
		{"no password", secret, send(version2), "", 255, BadAuthType},
		{"no trailer", signed, send(), "", 255, NoTrailer},
		{"a trailer", signed, send(func(i *Instance) { i.Key = &testKey }), "", 255, Accepted},
		{"a trailer without a key", base, send(func(i *Instance) { i.Key = &testKey }), "", 255, Accepted},
		{"another family", base, send(func(i *Instance) { i.Addrs = addrs("fe80::80") }), "", 255, NoInstance},
		{"IPv6", six, send(func(i *Instance) { i.Addrs = addrs("fe80::80") }), "", 255, Accepted},
		{"other addresses", base, send(func(i *Instance) { i.Addrs = addrs("10.0.0.81") }), "", 255, Accepted},
		{"RFC 9568's checksum", base, send(func(i *Instance) { i.Checksum = RFC9568 }), "", 255, Accepted},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			a := w.add(1, c.at)
			b := w.add(2)
			w.lossy = func(_, _ *node, _ Packet) bool { return true }
			c.of.Priority = Owner
			if c.to != "" {
				c.of.Peers = addrs(c.to)
			}
			b.do(func(now Moment) { b.Set(now, []Instance{c.of}) })
			w.run(2 * delay)
			at := slices.IndexFunc(w.heard, func(p Packet) bool { return p.Payload[2] == Owner })
			if at < 0 {
				t.Fatal("nothing sent")
			}
			p := w.heard[at]
			p.TTL = c.ttl
			if r := a.Receive(a.moment(), p); r != c.want {
				t.Errorf("%q, want %q", r, c.want)
			}
			s := a.status("VI")
			if want := uint64(0); c.want != Accepted && c.want != NoInstance {
				if want++; s.Counts.Refused[c.want] != want || s.Counts.Received != 0 {
					t.Errorf("counts %+v", s.Counts)
				}
			}
			if c.want == Accepted && s.Counts.Received != 1 {
				t.Errorf("counts %+v", s.Counts)
			}
		})
	}
}

// TestUnknownPeer checks that a unicast instance hears its peers alone, by whatever device.
func TestUnknownPeer(t *testing.T) {
	w := newWorld(t)
	a := w.add(1, vi(100, func(i *Instance) { i.Peers = addrs("10.0.0.2") }))
	other := Advert{Version: 3, RouterID: 51, Priority: 250, Interval: time.Second, Addrs: addrs("10.0.0.80")}
	packet := func(src string, device int) Packet {
		from, to := addr(src), addr("10.0.0.1")
		return Packet{Device: device, Src: from, Dst: to, TTL: 64, Payload: other.Append(nil, from, to, RFC5798)}
	}
	for _, c := range []struct {
		src    string
		device int
		want   Refusal
	}{{"10.0.0.3", 1, BadSource}, {"10.0.0.2", 1, Accepted}, {"10.0.0.2", 2, Accepted}, {"10.0.0.1", 1, BadSource},
		{"10.0.0.3", 2, NoInstance}} {
		if r := a.Receive(a.moment(), packet(c.src, c.device)); r != c.want {
			t.Errorf("%s by %d: %v, want %v", c.src, c.device, r, c.want)
		}
	}
}

// TestOtherNetwork: no packet from another network makes a second master, or pushes peers out.
func TestOtherNetwork(t *testing.T) {
	src, dst := addr("203.0.113.9"), addr("10.0.0.1")
	for _, c := range []struct {
		version uint8
		change  func(*Instance)
		want    Refusal
	}{
		{Version3, func(*Instance) {}, BadCast},
		{Version2, func(*Instance) {}, BadVersion},
		{Version2, func(i *Instance) { i.Peers = addrs("10.0.0.2") }, BadSource},
	} {
		w := newWorld(t)
		a := w.add(1, vi(100, c.change))
		w.until(a, Master, time.Minute)
		other := Advert{Version: c.version, RouterID: 51, Priority: 250, Interval: time.Second,
			Addrs: addrs("10.0.0.80")}
		p := Packet{Device: 1, Src: src, Dst: dst, TTL: 49, Payload: other.Append(nil, src, dst, RFC5798)}
		for range 3 {
			if r := a.Receive(a.moment(), p); r != c.want {
				t.Errorf("%v, want %v", r, c.want)
			}
			w.run(2 * time.Second)
		}
		if s := a.status("VI"); s.Counts.Conflicts != 0 || len(s.Peers) != 0 || s.Counts.Refused[c.want] != 3 {
			t.Errorf("%v: %+v", c.want, s)
		}
		if len(a.log) != 2 {
			t.Errorf("%v: log %q", c.want, a.log)
		}
	}
}

// TestManySenders checks that a flood from many addresses neither fills the memory nor the log.
func TestManySenders(t *testing.T) {
	w := newWorld(t)
	a := w.add(1, vi(100))
	for n := range 5000 {
		src := netip.AddrFrom4([4]byte{10, 0, byte(2 + n>>8), byte(n)})
		other := Advert{Version: 2, RouterID: 51, Priority: 250, Interval: time.Second}
		p := Packet{Device: 1, Src: src, Dst: group4, TTL: ttl, Payload: other.Append(nil, src, group4, RFC5798)}
		if r := a.Receive(a.moment(), p); r != BadVersion {
			t.Fatal(r)
		}
		w.collect(a)
		w.now += delay
	}
	if n := len(a.all[0].peers); n > maxPeers {
		t.Errorf("%d routers are remembered", n)
	}
	if n := len(a.log); n > 30 {
		t.Errorf("%d events", n)
	}
	if s := a.status("VI"); s.Counts.Refused[BadVersion] != 5000 {
		t.Errorf("counts %+v", s.Counts)
	}
}

// TestRivalThatComesAndGoes checks that a sender that is a refused master and gives up with each further packet does
// not fill the log, and that one that stays is reported later.
func TestRivalThatComesAndGoes(t *testing.T) {
	w := newWorld(t)
	a := w.add(1, vi(100))
	w.run(10 * time.Second)
	before, src := len(a.log), netip.MustParseAddr("10.0.0.9")
	receive := func(priority uint8) {
		t.Helper()
		other := Advert{Version: 2, RouterID: 51, Priority: priority, Interval: time.Second}
		p := Packet{Device: 1, Src: src, Dst: group4, TTL: ttl, Payload: other.Append(nil, src, group4, RFC5798)}
		if r := a.Receive(a.moment(), p); r != BadVersion {
			t.Fatal(r)
		}
		w.collect(a)
		w.run(delay)
	}
	for range 1000 {
		receive(200)
		receive(0)
	}
	if n := len(a.log) - before; n == 0 || n > 10 {
		t.Errorf("%d events", n)
	}
	if n := a.status("VI").Counts.Conflicts; n != 1000 {
		t.Errorf("%d conflicts", n)
	}
	receive(200)
	if s := a.status("VI"); s.Rival != src {
		t.Errorf("the other master is not in the status: %+v", s)
	}
	w.run(newsEvery)
	before = len(a.log)
	receive(200)
	if now := a.log[before:]; len(now) == 0 || now[0] != "VI two masters 10.0.0.9" {
		t.Errorf("events of a master that stays: %q", now)
	}
}

// TestSigned checks that routers with a key elect a master, and that a clock that runs away is found.
func TestSigned(t *testing.T) {
	w := newWorld(t)
	key := func(i *Instance) { i.Key = &testKey }
	a, b := w.add(1, vi(200, key)), w.add(2, vi(100, key))
	w.run(10 * time.Second)
	w.expect("signed", Master, Backup)
	for n := range w.heard {
		if r := b.Receive(b.moment(), w.heard[n]); r != Replayed && r != Stale && r != BadSource {
			t.Fatalf("a replayed packet: %v", r)
		}
	}
	b.skewWall = time.Minute
	w.run(10 * time.Second)
	w.expect("another clock", Master, Master)
	if s := a.status("VI"); s.RivalRefused != Stale {
		t.Errorf("%+v", s)
	}
}

// TestKeys: directors get their keys one after the other, in either order, without a change of roles.
func TestKeys(t *testing.T) {
	for _, masterFirst := range []bool{true, false} {
		w := newWorld(t)
		a, b := w.add(1, vi(200)), w.add(2, vi(100))
		w.run(10 * time.Second)
		permissive := testKey
		permissive.Permissive = true
		for _, key := range []*Key{&permissive, &testKey} {
			order := []*node{a, b}
			if !masterFirst {
				order = []*node{b, a}
			}
			for _, n := range order {
				i := n.all[0].Instance
				i.Key = key
				n.do(func(now Moment) { n.Set(now, []Instance{i}) })
				w.run(10 * time.Second)
				w.expect("a key", Master, Backup)
			}
		}
		if len(a.log) != 2 || len(b.log) != 1 {
			t.Errorf("logs %q, %q", a.log, b.log)
		}
	}
}

// TestAnswersPriority0: a master answers each router that gives its role up at once, so that no backup takes the role.
func TestAnswersPriority0(t *testing.T) {
	w := newWorld(t)
	a := w.add(1, vi(100))
	w.until(a, Master, time.Minute)
	sent := a.all[0].counts.Sent
	for n := range 3 {
		a.deliver(advertFrom(byte(2+n), 0))
		w.run(10 * delay)
	}
	if n := a.all[0].counts.Sent - sent; n != 3 {
		t.Errorf("%d answers", n)
	}
}

// advertFrom returns a packet of the router 10.0.0.number for VI.
func advertFrom(number byte, priority uint8, addresses ...string) Packet {
	if len(addresses) == 0 {
		addresses = []string{"10.0.0.80"}
	}
	a := Advert{Version: 3, RouterID: 51, Priority: priority, Interval: time.Second, Addrs: addrs(addresses...)}
	src := netip.AddrFrom4([4]byte{10, 0, 0, number})
	return Packet{Device: 1, Src: src, Dst: group4, TTL: ttl, Payload: a.Append(nil, src, group4, RFC5798)}
}

// TestSeveralMasters: other masters that take turns, and one that is heard rarely since its addresses differ, are
// found. A router that has given way is none.
func TestSeveralMasters(t *testing.T) {
	for _, c := range []struct {
		name  string
		every time.Duration
		from  []Packet
		want  uint64
	}{
		{"two in turn", 500 * time.Millisecond, []Packet{advertFrom(2, 50), advertFrom(3, 50)}, 1},
		{"other addresses", 10 * time.Second, []Packet{advertFrom(2, 50, "10.0.0.80", "10.0.0.81")}, 1},
		{"rarely", 10 * time.Second, []Packet{advertFrom(2, 50)}, 0},
		{"gives way", 600 * time.Millisecond, []Packet{advertFrom(2, 50), advertFrom(3, 0), advertFrom(2, 0),
			advertFrom(3, 50), advertFrom(3, 0)}, 0},
	} {
		w := newWorld(t)
		a := w.add(1, vi(100))
		w.until(a, Master, time.Minute)
		for n := range 10 {
			a.deliver(c.from[n%len(c.from)])
			w.run(c.every)
		}
		if n := a.status("VI").Counts.Conflicts; n != c.want {
			t.Errorf("%s: two masters are found %d times, want %d", c.name, n, c.want)
		}
	}
}

// TestDiffersLater: other addresses are reported later, if something else has just been reported.
func TestDiffersLater(t *testing.T) {
	w := newWorld(t)
	a := w.add(1, vi(100))
	a.deliver(advertFrom(2, 200, "10.0.0.81"))
	a.deliver(advertFrom(3, 200, "10.0.0.81"))
	w.run(time.Second)
	a.deliver(advertFrom(3, 200, "10.0.0.81"))
	a.deliver(advertFrom(3, 200, "10.0.0.81"))
	want := []string{"VI initialize→backup", "VI differs 10.0.0.2", "VI differs 10.0.0.3"}
	if !slices.Equal(a.log, want) {
		t.Errorf("log %q", a.log)
	}
}

// TestSendErrors: an error to one of several peers is not hidden by another one's success.
func TestSendErrors(t *testing.T) {
	w := newWorld(t)
	a := w.add(1, vi(100, func(i *Instance) { i.Peers = addrs("10.0.0.2", "10.0.0.3") }))
	for _, c := range []struct{ first, second, want error }{{unix.EPERM, nil, unix.EPERM},
		{nil, unix.EPERM, unix.EPERM}, {nil, nil, nil}} {
		a.send(a.all[0], a.moment(), 100)
		a.sent(a.moment(), "VI", c.first)
		a.sent(a.moment(), "VI", c.second)
		if got := a.status("VI").SendError; got != c.want {
			t.Errorf("%v, want %v", got, c.want)
		}
		w.now += 7 * time.Second
		if got, want := a.status("VI").SendErrorAge, 7*time.Second; c.want != nil && got != want {
			t.Errorf("%v ago, want %v", got, want)
		}
	}
}
