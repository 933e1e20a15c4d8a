package query

import (
	"net/netip"
	"slices"
	"testing"
	"time"
)

func TestLocalLinks(t *testing.T) {
	newHost(t)
	var addrs []netip.Addr
	for addr, want := range map[string]string{
		"10.1.0.1":        "east",
		"::ffff:10.2.0.1": "west",
		"127.0.0.5":       "lo", // by the local route, not an address
		"10.1.0.9":        "",
		"198.51.100.80":   "",
		"172.19.0.1":      "", // a blackhole
	} {
		a := netip.MustParseAddr(addr)
		link, ok, err := LocalLink(a)
		if link != want || ok != (want != "") || err != nil {
			t.Errorf("%s: %q, %t, %v; want %q", addr, link, ok, err, want)
		}
		addrs = append(addrs, a)
	}
	links, err := LocalLinks(addrs...)
	if len(links) != 3 || links[netip.MustParseAddr("::ffff:10.2.0.1")] != "west" || err != nil {
		t.Errorf("all at once: %v, %v", links, err)
	}
}

func TestBroadcastLinks(t *testing.T) {
	newHost(t)
	var addrs []netip.Addr
	for _, a := range []string{"10.1.255.255", "10.1.0.255", "10.1.0.1", "198.51.100.80", "fd00::ff"} {
		addrs = append(addrs, netip.MustParseAddr(a))
	}
	links, err := BroadcastLinks(addrs...)
	must(t, err)
	if len(links) != 1 || links[addrs[1]] != "east" {
		t.Errorf("%v, want 10.1.0.255 on east", links)
	}
}

func TestHostAddrs(t *testing.T) {
	newHost(t)
	got, err := HostAddrs()
	must(t, err)
	for _, want := range []string{"10.1.0.1", "10.2.0.1", "127.0.0.1"} {
		if !slices.Contains(got, netip.MustParseAddr(want)) {
			t.Errorf("%v lacks %s", got, want)
		}
	}
}

// The addresses of all devices are listed once, however many addresses are asked for.
func TestLocalLinksOfManyAreQuick(t *testing.T) {
	newHost(t)
	var addrs []netip.Addr
	for a := netip.MustParseAddr("10.1.128.0"); len(addrs) < 10_000; a = a.Next() {
		addrs = append(addrs, a)
	}
	took := quickest(3, func() {
		if links, err := LocalLinks(addrs...); len(links) > 0 || err != nil {
			t.Fatalf("%v, %v", links, err)
		}
	})
	t.Logf("%d addresses in %v", len(addrs), took)
	if took > 2*time.Second {
		t.Errorf("%d addresses take %v", len(addrs), took)
	}
}
