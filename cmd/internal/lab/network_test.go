package lab

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vstun/testdata/testkit"
)

// newNetwork is newLab for another network than Routed.
func newNetwork(t *testing.T, spec Spec) *Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make network namespaces")
	}
	name := spec.Prefix
	spec.Prefix = prefix(name)
	l, err := New(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if left := namespaces(t, spec.Prefix); len(left) > 0 {
			t.Errorf("Close left %v", left)
		}
	})
	return l
}

// TestNetworks: in each network every host reaches every other one with both families, from its own address. Hosts of
// one subnet do so without the router.
func TestNetworks(t *testing.T) {
	for name, c := range map[string]struct {
		network Network
		web     string // address of web2
		gateway func(*Lab) (h *Host, link string)
	}{
		"lan": {LAN, "10.0.2.12", func(l *Lab) (*Host, string) { return l.Router, "lan" }},
		"nat": {NAT, "10.0.3.12", func(l *Lab) (*Host, string) { return l.Director, "eth1" }},
	} {
		t.Run(name, func(t *testing.T) {
			l := newNetwork(t, Spec{Prefix: name, Webs: 2, Network: c.network, Backup: c.network == LAN})
			if got := l.Webs[1].Addr.String(); got != c.web {
				t.Errorf("web2 is %s, want %s", got, c.web)
			}
			gateway, link := c.gateway(l)
			inside, err := gateway.Count(link, Filter{Source: l.Insider.Addr, Destination: l.Webs[1].Addr})
			if err != nil {
				t.Fatal(err)
			}
			defer inside.Close()
			outside, err := gateway.Count(link, Filter{Source: l.Webs[0].Addr, Destination: l.Client.Addr,
				Direction: In})
			if err != nil {
				t.Fatal(err)
			}
			defer outside.Close()
			all := append([]*Host{l.Client, l.Director, l.Insider}, l.Webs...)
			if l.Backup != nil {
				all = append(all, l.Backup)
			}
			for _, h := range all {
				answer(t, h)
			}
			for _, from := range all {
				for _, to := range all {
					for _, way := range [][2]netip.Addr{{from.Addr, to.Addr}, {from.Addr6, to.Addr6}} {
						got, err := ask(from, way[1])
						// A host may ask from the address of another of its links.
						if want := to.Name + " " + way[0].String(); err != nil || got != want && from != gateway {
							t.Errorf("%s to %s: %q, %v; want %q", from.Name, way[1], got, err, want)
						}
					}
				}
			}
			if n := packets(t, inside); n != 0 {
				t.Errorf("%d packets from the insider to web2 reached the gateway", n)
			}
			if packets(t, outside) == 0 {
				t.Error("no packet from web1 to the client came by the gateway")
			}
		})
	}
}

// TestVIPOfALAN: the router asks for the virtual address in the LAN, and no host answers until one owns it.
func TestVIPOfALAN(t *testing.T) {
	t.Parallel()
	l := newNetwork(t, Spec{Prefix: "lanvip", Webs: 1, Network: LAN})
	var dials sync.WaitGroup
	for _, vip := range []netip.Addr{l.VIP, l.VIP6} {
		dials.Go(func() { // the router gives up after 3 s
			if _, err := ask(l.Client, vip); !errors.Is(err, unix.EHOSTUNREACH) {
				t.Errorf("%s: %v, want %v", vip, err, unix.EHOSTUNREACH)
			}
		})
	}
	dials.Wait()
	if err := l.Director.Own(l.VIP); err != nil { // its own kernel answers ARP for it
		t.Fatal(err)
	}
	answer(t, l.Director)
	testkit.Eventually(t, "the director has the virtual address", func() bool {
		got, err := ask(l.Client, l.VIP)
		return err == nil && got == "director "+l.Client.Addr.String()
	})
}

// TestVIPOfNAT: the router routes the virtual address to the director.
func TestVIPOfNAT(t *testing.T) {
	l := newNetwork(t, Spec{Prefix: "natvip", Webs: 1, Network: NAT})
	answer(t, l.Director)
	for _, way := range [][2]netip.Addr{{l.VIP, l.Client.Addr}, {l.VIP6, l.Client.Addr6}} {
		if err := l.Director.Own(way[0]); err != nil {
			t.Fatal(err)
		}
		if got, err := ask(l.Client, way[0]); err != nil || got != "director "+way[1].String() {
			t.Errorf("%s: %q, %v", way[0], got, err)
		}
	}
}

// TestLinksOfASwitch: links to the switch have their options. Where the switch segments, the host gets GSO packets as
// single ones.
func TestLinksOfASwitch(t *testing.T) {
	const mtu = 9000
	l := newNetwork(t, Spec{Prefix: "lanlink", Webs: 2, Network: LAN, Links: map[string]Link{
		"client": {MTU: mtu}, "lan": {MTU: mtu}, "director": {MTU: mtu}, "insider": {MTU: mtu},
		"web1": {MTU: mtu}, "web2": {MTU: mtu, Segmented: true}}})
	for link, want := range map[string]int{"lan": mtu, "client": mtu} {
		var dev *net.Interface
		err := l.Router.Do(func() (err error) { dev, err = net.InterfaceByName(link); return err })
		if err != nil || dev.MTU != want {
			t.Errorf("the router's %s has the MTU %+v, %v; want %d", link, dev, err, want)
		}
	}
	const size = 2_000_000
	for i, web := range l.Webs {
		ln, err := web.Listen("tcp", ":80")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		came, err := web.Count("eth0", Filter{Source: l.Client.Addr, Destination: web.Addr, Protocol: unix.IPPROTO_TCP})
		if err != nil {
			t.Fatal(err)
		}
		defer came.Close()
		c, err := l.Client.Dial("tcp", netip.AddrPortFrom(web.Addr, 80).String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		server, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		if err := server.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = c.Write(make([]byte, size)) }() // the reader sees a failure
		buf := make([]byte, 1<<16)
		for n := 0; n < size; {
			k, err := server.Read(buf)
			if n += k; err != nil {
				t.Fatalf("%d bytes, then %v", n, err)
			}
		}
		whole := size / (mtu - 52) // packets of the MTU
		if n := int(packets(t, came)); (n >= whole) != (i == 1) {
			t.Errorf("%s got %d packets; %d would be full ones", web.Name, n, whole)
		}
	}
}

// TestPlug: a host whose cable is pulled is unreachable, and keeps its addresses and routes.
func TestPlug(t *testing.T) {
	l := newNetwork(t, Spec{Prefix: "plug", Webs: 1, Network: LAN})
	web := l.Webs[0]
	answer(t, web)
	for range 2 {
		for _, way := range [][2]netip.Addr{{web.Addr, l.Client.Addr}, {web.Addr6, l.Client.Addr6}} {
			if got, err := ask(l.Client, way[0]); err != nil || got != "web1 "+way[1].String() {
				t.Errorf("%s: %q, %v", way[0], got, err)
			}
		}
		if err := l.Plug(web, false); err != nil {
			t.Fatal(err)
		}
		came, err := web.Count("eth0", Filter{Source: l.Client.Addr, Direction: In})
		if err != nil {
			t.Fatal(err)
		}
		c, err := l.Client.Dial("udp", netip.AddrPortFrom(web.Addr, 9).String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if n := packets(t, came); n != 0 {
			t.Errorf("%d packets came without a cable", n)
		}
		if err := errors.Join(c.Close(), came.Close(), l.Plug(web, true)); err != nil {
			t.Fatal(err)
		}
	}
	if err := newLab(t, "noplug").Plug(web, false); err == nil {
		t.Error("a host without a switch was unplugged")
	}
}
