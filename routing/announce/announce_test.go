package announce

import (
	"net/netip"
	"testing"
)

func TestParseCommunity(t *testing.T) {
	for text, want := range map[string]string{
		"65000:100": "65000:100", "4200000000:1:2": "4200000000:1:2",
		"no-export": "65535:65281", "graceful-shutdown": "65535:0",
		"": "", "1": "",
		"65536:1": "", "1:65536": "", "1:2:3:4": "", "a:1": "", "-1:2": "", "1:4294967296:1": "",
	} {
		c, err := ParseCommunity(text)
		if (err == nil) != (want != "") || err == nil && c.String() != want {
			t.Errorf("%q: %v, %v; want %q", text, c, err, want)
		}
	}
}

// TestCarries needs a next hop of the family that the session does not have.
func TestCarries(t *testing.T) {
	v4, v6 := netip.MustParseAddr("198.51.100.80"), netip.MustParseAddr("2001:db8::80")
	for _, c := range []struct {
		p            Peer
		want4, want6 bool
	}{
		{Peer{Addr: v4, IPv4: true, IPv6: true}, true, false},
		{Peer{Addr: v4, IPv4: true, IPv6: true, NextHop: v6}, true, true},
		{Peer{Addr: v4, IPv4: true, NextHop: v6}, true, false},
		{Peer{Addr: v6, IPv4: true, IPv6: true}, false, true},
		{Peer{Addr: v6, IPv4: true, IPv6: true, NextHop: v4}, true, true},
	} {
		if is4, is6 := c.p.Carries(v4), c.p.Carries(v6); is4 != c.want4 || is6 != c.want6 {
			t.Errorf("%+v: %v %v", c.p, is4, is6)
		}
	}
}
