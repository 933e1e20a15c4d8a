package vrrp

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"slices"
	"testing"
	"time"
)

var testKey = Key{ID: 7, Bytes: string(sequentialBytes(32))}

func sequentialBytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i)
	}
	return b
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func addrs(all ...string) (list []netip.Addr) {
	for _, s := range all {
		list = append(list, addr(s))
	}
	return list
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// recorded are multicast advertisements as keepalived sent them: 2.2.7 of Debian 12, and those with an HMAC 2.4.3.
var recorded = []struct {
	name   string
	src    string
	packet string
	is     Advert
	signed sequence // 0: without an HMAC
}{
	{name: "version 2, PASS secret12345", src: "10.9.0.1",
		packet: "213364020101f7970a0900500a0900517365637265743132",
		is: Advert{Version: 2, RouterID: 51, Priority: 100, Interval: time.Second,
			Addrs: addrs("10.9.0.80", "10.9.0.81"), AuthType: AuthPassword, AuthData: [8]byte([]byte("secret12"))}},
	{name: "version 3, IPv4", src: "10.9.0.1", packet: "31349601003243a40a090052",
		is: Advert{Version: 3, RouterID: 52, Priority: 150, Interval: 500 * time.Millisecond,
			Addrs: addrs("10.9.0.82")}},
	{name: "version 3, IPv6", src: "fe80::800a:e6ff:fe94:d50f",
		packet: "3135c8020019a097fe80000000000000000000000000008020010db8000000000000000000000080",
		is: Advert{Version: 3, RouterID: 53, Priority: 200, Interval: 250 * time.Millisecond,
			Addrs: addrs("fe80::80", "2001:db8::80")}},
	{name: "version 2, HMAC", src: "10.9.0.1", signed: 0x6b0bfc72_9954_0000,
		packet: "2138c80100010c660a0900560000000000000000" + "010700006b0bfc72995400003fe6fb0a083c86db6c16be8398177b50",
		is:     Advert{Version: 2, RouterID: 56, Priority: 200, Interval: time.Second, Addrs: addrs("10.9.0.86")}},
	{name: "version 3, IPv4, HMAC", src: "10.9.0.1", signed: 0x6b0bfc71_1653_0000,
		packet: "31369601003243a00a090054" + "010700006b0bfc7116530000ba11d82c91446d0fc1289a81c0165e21",
		is: Advert{Version: 3, RouterID: 54, Priority: 150, Interval: 500 * time.Millisecond,
			Addrs: addrs("10.9.0.84")}},
	{name: "version 3, IPv6, HMAC", src: "fe80::9:1", signed: 0x6b0bfc70_2f57_0000,
		packet: "3137c8010019099cfe800000000000000000000000000085" +
			"010700006b0bfc702f5700001438c12dc8bf85c49cdac88fce261072",
		is: Advert{Version: 3, RouterID: 55, Priority: 200, Interval: 250 * time.Millisecond,
			Addrs: addrs("fe80::85")}},
}

// equal reports whether a and b say the same.
func (a *Advert) equal(b *Advert) bool {
	return a.Version == b.Version && a.RouterID == b.RouterID && a.Priority == b.Priority &&
		a.Interval == b.Interval && slices.Equal(a.Addrs, b.Addrs) && a.AuthType == b.AuthType &&
		a.AuthData == b.AuthData
}

func TestRecorded(t *testing.T) {
	if len(recorded) == 0 {
		t.Fatal("no packets")
	}
	for _, c := range recorded {
		t.Run(c.name, func(t *testing.T) {
			src, p := addr(c.src), unhex(t, c.packet)
			dst := group(src.Is6())
			a, r := Parse(p, src, dst)
			if r != Accepted || !a.equal(&c.is) {
				t.Fatalf("%+v, refused: %v", a, r)
			}
			built := c.is.Append(nil, src, dst, RFC5798)
			if c.signed != 0 {
				built = testKey.sign(built, src, dst, c.signed)
				at := time.Unix(int64(c.signed>>32), 0)
				if r := testKey.verify(&a, src, at, leastWindow, replays{}); r != Accepted {
					t.Errorf("its HMAC is refused: %v", r)
				}
			}
			if !bytes.Equal(built, p) {
				t.Errorf("built  %x\nwanted %x", built, p)
			}
			for i := range p {
				bad := slices.Clone(p)
				bad[i] ^= 0x40
				a, r := Parse(bad, src, dst)
				if r == Accepted && c.signed != 0 {
					r = testKey.verify(&a, src, time.Unix(int64(c.signed>>32), 0), leastWindow, replays{})
				}
				if r == Accepted {
					t.Errorf("accepted with another byte %d", i)
				}
			}
			for n := range p {
				if _, r := Parse(p[:n], src, dst); r == Accepted && n != len(p)-trailerLen {
					t.Errorf("accepted the first %d bytes", n)
				}
			}
		})
	}
}

func TestChecksums(t *testing.T) {
	src, peer := addr("10.0.0.1"), addr("10.0.0.2")
	a := Advert{Version: 3, RouterID: 1, Priority: 9, Interval: time.Second, Addrs: addrs("10.0.0.9")}
	for _, sum := range []Checksum{RFC5798, RFC9568} {
		for _, dst := range []netip.Addr{group4, peer} {
			p := a.Append(nil, src, dst, sum)
			if _, r := Parse(p, src, dst); r != Accepted {
				t.Errorf("checksum %v to %v: %v", sum, dst, r)
			}
			_, r := Parse(p, src, addr("10.0.0.77"))
			if (r == Accepted) != (sum == RFC9568) {
				t.Errorf("checksum %v to %v at another address: %v", sum, dst, r)
			}
		}
	}
	six := Advert{Version: 3, RouterID: 1, Priority: 9, Interval: time.Second, Addrs: addrs("fe80::9")}
	p := six.Append(nil, addr("fe80::1"), group6, RFC9568)
	if _, r := Parse(p, addr("fe80::1"), group6); r != Accepted {
		t.Errorf("IPv6 always has the pseudo header: %v", r)
	}
}

func TestRefusedPackets(t *testing.T) {
	src := addr("10.0.0.1")
	good := Advert{Version: 3, RouterID: 1, Priority: 9, Interval: time.Second, Addrs: addrs("10.0.0.9")}
	change := func(fn func(p []byte)) []byte {
		p := good.Append(nil, src, group4, RFC9568)
		fn(p)
		setChecksum(p, src, group4, Version3, RFC9568)
		return p
	}
	for _, c := range []struct {
		name string
		p    []byte
		want Refusal
	}{
		{"empty", nil, BadLength},
		{"seven bytes", make([]byte, 7), BadLength},
		{"version 1", change(func(p []byte) { p[0] = 0x11 }), BadVersion},
		{"version 4", change(func(p []byte) { p[0] = 0x41 }), BadVersion},
		{"type 2", change(func(p []byte) { p[0] = 0x32 }), BadType},
		{"two addresses, one there", change(func(p []byte) { p[3] = 2 }), BadLength},
		{"no address, one there", change(func(p []byte) { p[3] = 0 }), BadLength},
		{"interval 0", change(func(p []byte) { p[4], p[5] = 0, 0 }), BadInterval},
		{"reserved bits and interval 0", change(func(p []byte) { p[4], p[5] = 0xf0, 0 }), BadInterval},
		{"a byte too many", append(change(func([]byte) {}), 0), BadLength},
		{"reserved bits", change(func(p []byte) { p[4] |= 0xf0 }), Accepted},
	} {
		if _, r := Parse(c.p, src, group4); r != c.want {
			t.Errorf("%s: %v, want %v", c.name, r, c.want)
		}
	}
	v2 := Advert{Version: 2, RouterID: 1, Priority: 9, Interval: time.Second}
	if _, r := Parse(v2.Append(nil, addr("fe80::1"), group6, RFC5798), addr("fe80::1"), group6); r != BadVersion {
		t.Errorf("version 2 over IPv6: %v", r)
	}
}

func TestReplay(t *testing.T) {
	now := time.Unix(1_800_000_000, 500_000_000)
	src := addr("10.0.0.1")
	packet := func(k *Key, s sequence) *Advert {
		a := Advert{Version: 3, RouterID: 1, Priority: 9, Interval: time.Second, Addrs: addrs("10.0.0.9")}
		p := a.Append(nil, src, group4, RFC5798)
		if k != nil {
			p = k.sign(p, src, group4, s)
		}
		got, r := Parse(p, src, group4)
		if r != Accepted {
			t.Fatal(r)
		}
		return &got
	}
	other, permissive := testKey, testKey
	other.ID, permissive.Permissive = 8, true
	forged := Key{ID: 7, Bytes: string(make([]byte, 32))}
	first := sequenceAt(now)
	seen := replays{}
	for _, c := range []struct {
		name string
		k    *Key
		a    *Advert
		now  time.Time
		want Refusal
	}{
		{"without", &testKey, packet(nil, 0), now, NoTrailer},
		{"without, permissive", &permissive, packet(nil, 0), now, Accepted},
		{"another key id", &testKey, packet(&other, first), now, BadKey},
		{"another key", &testKey, packet(&forged, first), now, BadHMAC},
		{"another key, permissive", &permissive, packet(&forged, first), now, BadHMAC},
		{"old", &testKey, packet(&testKey, sequenceAt(now.Add(-7*time.Second))), now, Stale},
		{"from the future", &testKey, packet(&testKey, sequenceAt(now.Add(7*time.Second))), now, Stale},
		{"genuine", &testKey, packet(&testKey, first), now, Accepted},
		{"the same again", &testKey, packet(&testKey, first), now, Replayed},
		{"one before", &testKey, packet(&testKey, first-1), now, Replayed},
		{"the next", &testKey, packet(&testKey, first+1), now, Accepted},
		{"after the clock was set back", &testKey, packet(&testKey, sequenceAt(now.Add(-time.Hour))),
			now.Add(-time.Hour), Accepted},
	} {
		if r := c.k.verify(c.a, src, c.now, window(time.Second), seen); r != c.want {
			t.Errorf("%s: %v, want %v", c.name, r, c.want)
		}
	}
}

// TestSequence checks that sequences grow when the clock does not, and begin anew when it was set back.
func TestSequence(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	s := sequence(0).next(now, leastWindow)
	if s != sequenceAt(now) {
		t.Fatalf("%x", s)
	}
	if next := s.next(now, leastWindow); next != s+1 {
		t.Errorf("at the same time: %x after %x", next, s)
	}
	if next := s.next(now.Add(-time.Second), leastWindow); next != s+1 {
		t.Errorf("a second earlier: %x after %x", next, s)
	}
	if back := now.Add(-time.Minute); s.next(back, leastWindow) != sequenceAt(back) {
		t.Error("a minute earlier: it does not begin anew")
	}
}

func FuzzParse(f *testing.F) {
	for _, c := range recorded {
		f.Add(unhex(f, c.packet), addr(c.src).Is6())
	}
	f.Fuzz(func(t *testing.T, p []byte, ipv6 bool) {
		src, dst := addr("10.9.0.1"), group4
		if ipv6 {
			src, dst = addr("fe80::9:1"), group6
		}
		a, r := Parse(p, src, dst)
		if r != Accepted {
			return
		}
		if a.Interval <= 0 || len(a.Addrs) > maxAddrs {
			t.Errorf("%+v", a)
		}
		for _, addr := range a.Addrs {
			if addr.Is6() != ipv6 {
				t.Errorf("address %v", addr)
			}
		}
		if a.trailer != nil {
			_ = testKey.verify(&a, src, time.Unix(1_800_000_000, 0), leastWindow, replays{})
		}
		again, r := Parse(a.Append(nil, src, dst, RFC5798), src, dst)
		if r != Accepted || !again.equal(&a) {
			t.Errorf("%+v became %+v: %v", a, again, r)
		}
	})
}
