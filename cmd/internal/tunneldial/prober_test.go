package tunneldial

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/cmd/internal/ping"
	"vstun/encap/packet"
)

// ledger records which flows are pinned, and returns the errors in refuse for the first pins.
type ledger struct {
	mu     sync.Mutex
	refuse []error
	pinned map[packet.Flow]bool
	over   bool // the last pin may replace a connection
	rests  map[packet.Flow]conntab.Ticks
	tried  int
}

func (l *ledger) Pin(f packet.Flow, _ balancer.Target, over bool, _ conntab.Ticks) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = over
	if l.tried++; l.tried <= len(l.refuse) {
		return l.refuse[l.tried-1]
	}
	l.pinned[f] = true
	return nil
}

func (l *ledger) Unpin(f packet.Flow, _, rest conntab.Ticks) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.pinned, f)
	l.rests[f] = rest
}

// within returns a tunnel that ends in this host: the VIP is an address of this host.
func within(t *testing.T, refuse ...error) (*Tunnel, *ledger) {
	t.Helper()
	l := &ledger{refuse: refuse, pinned: map[packet.Flow]bool{}, rests: map[packet.Flow]conntab.Ticks{}}
	return &Tunnel{Pins: l, Clock: func() conntab.Ticks { return 1 },
		Source: func(vip netip.Addr) netip.Addr { return vip }}, l
}

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// TestDialPinsFirst: the flow of a connection is pinned before its first packet is sent, whichever port it has, and
// unpinned with the connection. It rests longer for UDP.
func TestDialPinsFirst(t *testing.T) {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	for network, rests := range map[string]conntab.Ticks{"tcp": rest, "udp": restUDP} {
		tunnel, l := within(t, balancer.ErrPinned, balancer.ErrPinned)
		c, err := tunnel.DialContext(deadline(t), network, server.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		proto := uint8(packet.ProtoTCP)
		if network == "udp" {
			proto = packet.ProtoUDP
		}
		local, remote := netip.MustParseAddrPort(c.LocalAddr().String()),
			netip.MustParseAddrPort(c.RemoteAddr().String())
		f := packet.Flow{Src: local.Addr(), Dst: remote.Addr(), SrcPort: local.Port(), DstPort: remote.Port(),
			Proto: proto}
		if !l.pinned[f] || len(l.pinned) != 1 || l.tried != 3 {
			t.Errorf("%s: pinned is %v after %d tries, want %v after 3", network, l.pinned, l.tried, f)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if len(l.pinned) != 0 || l.rests[f] != rests {
			t.Errorf("%s: after Close %v are pinned, and it rests for %d", network, l.pinned, l.rests[f])
		}
	}
}

// TestDialFails: no flow of a failed connection stays pinned, and errors distinguish the realserver's faults from this
// host's.
func TestDialFails(t *testing.T) {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := server.Addr().String()
	server.Close()
	many := make([]error, tries)
	for i := range many {
		many[i] = balancer.ErrPinned
	}
	other := errors.New("no route")
	for name, c := range map[string]struct {
		refuse []error
		want   error
	}{
		"no listener":    {nil, syscall.ECONNREFUSED},
		"all ports rest": {many, syscall.EADDRNOTAVAIL},
		"a reload":       {[]error{balancer.ErrUnknown}, syscall.EAGAIN},
		"a full table":   {[]error{balancer.ErrFull}, syscall.ENOBUFS},
		"no route":       {[]error{other}, other},
	} {
		tunnel, l := within(t, c.refuse...)
		conn, err := tunnel.DialContext(deadline(t), "tcp", address)
		if conn != nil || !errors.Is(err, c.want) || len(l.pinned) != 0 {
			t.Errorf("%s: %v, %v, pinned is %v; want %v", name, conn, err, l.pinned, c.want)
		}
	}
	tunnel, _ := within(t)
	tunnel.Source = func(netip.Addr) netip.Addr { return netip.Addr{} }
	for _, c := range []struct {
		realserver, says string
		own              bool
	}{
		{"2001:db8:11::2", "no route to realserver 2001:db8:11::2 that gives an address to check VIP 2001:db8::1 from",
			false},
		{"10.0.11.2", "the director has no IPv6 address to check VIP 2001:db8::1 from: give it one, and set source",
			true},
	} {
		tunnel.Target.Address = netip.MustParseAddr(c.realserver)
		if _, err := tunnel.DialContext(deadline(t), "tcp", "[2001:db8::1]:80"); err == nil || err.Error() != c.says ||
			errors.Is(err, syscall.EADDRNOTAVAIL) != c.own {
			t.Errorf("without an address: %v; want %s", err, c.says)
		}
	}
}

// TestPortsOfConnections: after some ports that connections in the table have, the next port is taken from its
// connection.
func TestPortsOfConnections(t *testing.T) {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	used := make([]error, triesFree)
	for i := range used {
		used[i] = balancer.ErrPinned
	}
	for taken, over := range map[int]bool{triesFree - 1: false, triesFree: true} {
		tunnel, l := within(t, used[:taken]...)
		c, err := tunnel.DialContext(deadline(t), "tcp", server.Addr().String())
		if err != nil || l.tried != taken+1 || l.over != over {
			t.Errorf("%v after %d tries, the last one in place of a connection: %v", err, l.tried, l.over)
		}
		if c != nil {
			c.Close()
		}
	}
}

// TestPing pings this host over both families, directly and as through a tunnel.
func TestPing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: raw sockets need root")
	}
	p, err := ping.NewPinger()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}()
	own := []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	if c, err := net.ListenPacket("udp6", "[::1]:0"); err == nil {
		c.Close()
		own = append(own, netip.IPv6Loopback())
	}
	var all sync.WaitGroup
	for _, a := range own {
		tunnel, l := within(t, balancer.ErrPinned)
		tunnel.Pinger = p
		for range 20 {
			all.Go(func() {
				if err := p.Ping(deadline(t), a); err != nil {
					t.Errorf("%v: %v", a, err)
				}
				if err := tunnel.Ping(deadline(t), a); err != nil {
					t.Errorf("%v as through a tunnel: %v", a, err)
				}
			})
		}
		all.Wait()
		if len(l.pinned) != 0 || len(l.rests) != 20 || l.tried != 21 {
			t.Errorf("%v: pinned is %v, %d rest, after %d tries", a, l.pinned, len(l.rests), l.tried)
		}
	}
}
