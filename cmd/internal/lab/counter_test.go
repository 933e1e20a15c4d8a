package lab

import (
	"errors"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"vstun/testdata/testkit"
)

func packets(t *testing.T, c *Counter) uint64 {
	t.Helper()
	n, err := c.Packets()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestCounterIsExact(t *testing.T) {
	const sent = 20_000 // far more than the counter's socket holds
	l := newLab(t, "count")
	client, web := l.Client, l.Webs[0]

	type counted struct {
		name   string
		host   *Host
		link   string
		filter Filter
		want   uint64
	}
	table := []counted{
		{"source, both directions", client, "eth0", Filter{Source: client.Addr, Protocol: unix.IPPROTO_UDP}, sent},
		{"source, out", client, "eth0", Filter{Source: client.Addr, Protocol: unix.IPPROTO_UDP, Direction: Out}, sent},
		{"source, in", client, "eth0", Filter{Source: client.Addr, Direction: In}, 0},
		{"destination, at the router", l.Router, "web1", Filter{Destination: web.Addr, Protocol: unix.IPPROTO_UDP},
			sent},
		{"source and destination", web, "eth0", Filter{Source: client.Addr, Destination: web.Addr, Direction: In},
			sent},
		{"protocol only", web, "eth0", Filter{Protocol: unix.IPPROTO_UDP, Direction: In}, sent},
		{"other protocol", web, "eth0", Filter{Protocol: unix.IPPROTO_IPIP}, 0},
		{"other source", web, "eth0", Filter{Source: l.VIP}, 0},
		{"other destination", web, "eth0", Filter{Destination: l.VIP}, 0},
		{"other link", l.Director, "eth0", Filter{Source: client.Addr}, 0},
		{"other family", web, "eth0", Filter{Source: netip.MustParseAddr("2001:db8::1")}, 0},
	}
	counters := make([]*Counter, len(table))
	for i, row := range table {
		c, err := row.host.Count(row.link, row.filter)
		if err != nil {
			t.Fatalf("%s: %v", row.name, err)
		}
		defer c.Close()
		counters[i] = c
	}

	sink, err := web.ListenPacket("udp", ":9")
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	source, err := client.Dial("udp", netip.AddrPortFrom(web.Addr, 9).String())
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	for i := range sent {
		if _, err := source.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if i%1000 == 0 {
			packets(t, counters[5]) // reading in between must not lose any
		}
	}
	for i, row := range table {
		if row.want > 0 {
			testkit.Eventually(t, row.name, func() bool { return packets(t, counters[i]) >= row.want })
		}
	}
	for i, row := range table {
		if got := packets(t, counters[i]); got != row.want {
			t.Errorf("%s: %d, want %d", row.name, got, row.want)
		}
	}

	c := counters[0]
	if err := errors.Join(c.Close(), c.Close()); err != nil {
		t.Error(err)
	}
	if n, err := c.Packets(); n != sent || !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close: %d, %v; want %d, %v", n, err, sent, os.ErrClosed)
	}
}

func TestCountIPv6(t *testing.T) {
	l := newLab(t, "count6")
	// On lo a packet socket sees each packet twice, out and in.
	loopback := netip.IPv6Loopback()
	both, err := l.Client.Count("lo", Filter{Source: loopback, Destination: loopback, Protocol: unix.IPPROTO_UDP,
		Direction: In})
	if err != nil {
		t.Fatal(err)
	}
	defer both.Close()
	other, err := l.Client.Count("lo", Filter{Source: netip.MustParseAddr("::2")})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	sink, err := l.Client.ListenPacket("udp", "[::1]:9")
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	source, err := l.Client.Dial("udp", "[::1]:9")
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	for range 10 {
		if _, err := source.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	testkit.Eventually(t, "ten packets on lo", func() bool { return packets(t, both) == 10 })
	if got := packets(t, other); got != 0 {
		t.Errorf("packets with another source: %d", got)
	}
}

func TestCountErrors(t *testing.T) {
	l := newLab(t, "counterr")
	six := netip.IPv6Loopback()
	for name, count := range map[string]func() (*Counter, error){
		"no such link": func() (*Counter, error) { return l.Client.Count("eth9", Filter{}) },
		"mixed families": func() (*Counter, error) {
			return l.Client.Count("lo",
				Filter{Source: six, Destination: l.VIP})
		},
		"no direction": func() (*Counter, error) { return l.Client.Count("lo", Filter{Direction: 7}) },
	} {
		if c, err := count(); err == nil {
			c.Close()
			t.Errorf("%s: no error", name)
		}
	}
}
