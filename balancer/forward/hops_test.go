package forward

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/encap"
	"vstun/encap/packet"
)

// former names one host for a client, and none for others.
type former struct {
	client netip.AddrPort
	next   netip.Addr
}

func (f *former) NextHop(client netip.AddrPort, _ netip.Addr) (netip.Addr, bool) {
	return f.next, client == f.client
}

// hopSite returns a worker whose service web has a realserver with hops.
func hopSite(t testing.TB, s *script) *Worker {
	cfg := siteConfig(real1, encap.KindGUE, 1500)
	web := &cfg.Services[1]
	web.Name, web.Ports[0] = "web", balancer.PortRange{First: 80, Last: 80}
	web.Realservers = slices.Clone(cfg.Services[0].Realservers)
	web.Realservers[0].Hop = true
	return testWorker(s, s, nil, balancerOf(t, cfg), NewShared(), func() conntab.Ticks { return 1 })
}

// glbHop is GLB's private data with the hop 10.0.11.3, behind the first word of a GUE header.
var glbHop = []byte{0, 0, 0, 1, 10, 0, 11, 3}

// TestHops: packets of a connection name the host that may have it, as GLB's director does, and so do ICMP errors about
// it. Those of other connections have a plain header. What fits the tunnel is the same for both.
func TestHops(t *testing.T) {
	var s script
	w := hopSite(t, &s)
	f := &former{netip.AddrPortFrom(client, 4711), netip.MustParseAddr("10.0.11.3")}
	send := func(packets ...[]byte) [][]byte {
		t.Helper()
		s.in, s.out = packets, nil
		if err := w.Run(); err != nil {
			t.Fatal(err)
		}
		return s.out
	}
	syn, data := tcp(80, packet.FlagSYN, 0), tcp(80, packet.FlagACK, 1420)
	plain := send(syn, data)
	w.balancer.SetFormer("web", f)
	e := errorAbout(flipped(syn), 100, 3, 4, 1400)
	named := send(syn, data, e)
	if len(plain) != 2 || len(named) != 3 {
		t.Fatalf("%d plain packets, %d with a hop", len(plain), len(named))
	}
	for i, in := range [][]byte{syn, data, e} {
		gue := named[i][packet.IPv4HeaderLen+packet.UDPHeaderLen:]
		if want := append([]byte{2, 4, 0, 0}, glbHop...); !bytes.HasPrefix(gue, want) ||
			!bytes.Equal(gue[len(want):], in) || packet.IPv4(named[i]).TotalLen() != len(named[i]) {
			t.Errorf("packet %d: %x, want %x before the packet", i, gue, want)
		}
	}
	for i, in := range [][]byte{syn, data} {
		if gue := plain[i][packet.IPv4HeaderLen+packet.UDPHeaderLen:]; !bytes.Equal(gue, append([]byte{0, 4, 0, 0},
			in...)) {
			t.Errorf("packet %d: %x, want a plain header", i, gue)
		}
	}
	packet.IPv4(named[1]).SetChecksum() // the kernel's part
	var relayed script
	relayed.in = [][]byte{errorAbout(named[1], 2000, 3, 4, 800)}
	if err := NewRelay(&relayed, &relayed, w.balancer, NewShared(), w.clock).Run(); err != nil {
		t.Fatal(err)
	}
	checkTold(t, "by a router", relayed.out, data, 760)
	long := tcp(80, packet.FlagACK, 1421)
	checkTold(t, "with a hop", send(long), long, 1460)
	w.balancer.SetFormer("web", nil)
	checkTold(t, "without", send(long), long, 1460)
}

// TestHopsAllocateNothing: nor does a packet without a hop.
func TestHopsAllocateNothing(t *testing.T) {
	w := hopSite(t, &script{})
	w.sendBy(discard{})
	in := tcp(80, packet.FlagSYN, 0)
	for _, f := range []balancer.Former{nil, &former{netip.AddrPortFrom(client, 4711), real1}} {
		w.balancer.SetFormer("web", f)
		if n := testing.AllocsPerRun(1000, func() {
			w.bufs[0].SetLen(copy(w.bufs[0].Room(), in))
			w.forward(w.bufs[:1])
		}); n != 0 {
			t.Errorf("%v allocations a packet with %v", n, f)
		}
	}
}
