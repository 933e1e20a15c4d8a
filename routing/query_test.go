package routing

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"vstun/testdata/testkit"
)

func TestLinkExists(t *testing.T) {
	newHost(t)
	for name, want := range map[string]bool{"east": true, "vs0": true, "nosuch": false} {
		if got, err := LinkExists(name); got != want || err != nil {
			t.Errorf("%s: %t, %v", name, got, err)
		}
	}
}

func TestLocalAddr(t *testing.T) {
	newHost(t)
	for addr, want := range map[string]string{
		"10.1.0.1":        "east",
		"::ffff:10.2.0.1": "west",
		"127.0.0.5":       "lo", // by the local route, not an address
		"10.1.0.9":        "",
		"198.51.100.80":   "",
		"172.19.0.1":      "", // a blackhole
	} {
		link, ok, err := LocalAddr(netip.MustParseAddr(addr))
		if link != want || ok != (want != "") || err != nil {
			t.Errorf("%s: %q, %t, %v; want %q", addr, link, ok, err, want)
		}
	}
}

func TestLocalAddrs(t *testing.T) {
	newHost(t)
	got, err := LocalAddrs()
	must(t, err)
	for _, want := range []string{"10.1.0.1", "10.2.0.1", "127.0.0.1"} {
		if !slices.Contains(got, netip.MustParseAddr(want)) {
			t.Errorf("%v lacks %s", got, want)
		}
	}
}

// vs0 is read by nobody and holds few packets, so the others are dropped.
func TestDropped(t *testing.T) {
	newHost(t)
	tun := &netlink.Tuntap{LinkAttrs: named("tun1"), Mode: netlink.TUNTAP_MODE_TUN, Queues: 1, NonPersist: true}
	tun.TxQLen = 10
	must(t, netlink.LinkAdd(tun))
	t.Cleanup(func() {
		for _, f := range tun.Fds {
			f.Close()
		}
	})
	linkUp(t, "tun1")
	addAddr(t, "tun1", "10.3.0.1/24")
	if n, err := Dropped("tun1"); n != 0 || err != nil {
		t.Errorf("nothing sent: %d dropped, %v", n, err)
	}
	c, err := net.Dial("udp", "10.3.0.2:9")
	must(t, err)
	defer c.Close()
	testkit.Eventually(t, "packets are dropped and counted", func() bool {
		for range 100 {
			_, _ = c.Write([]byte("x")) // ENOBUFS is the kernel's answer to a drop
		}
		n, err := Dropped("tun1")
		must(t, err)
		return n >= 50
	})
	if _, err := Dropped("nosuch"); err == nil || !strings.Contains(err.Error(), "nosuch") {
		t.Errorf("counters of no device: %v", err)
	}
}
