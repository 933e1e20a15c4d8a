package sockdiag

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// TestHas asks for connections of this host, over IPv4 and IPv6.
func TestHas(t *testing.T) {
	q, err := Open(0)
	switch {
	case errors.Is(err, unix.EPROTONOSUPPORT):
		t.Skip("SKIPPED: ", err) // as under qemu-user
	case err != nil:
		t.Fatal(err)
	}
	defer q.Close()
	for _, at := range []string{"127.0.0.1:0", "[::1]:0", ":0"} {
		l, err := net.Listen("tcp", at)
		if err != nil {
			t.Skip(err)
		}
		defer l.Close()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		client, server := addrPort(c.LocalAddr()), addrPort(c.RemoteAddr())
		if has, err := q.Has(client, server); !has || err != nil {
			t.Errorf("%s: the connection is there, and Has reports %v, %v", at, has, err)
		}
		other := netip.AddrPortFrom(client.Addr(), client.Port()^1)
		if has, err := q.Has(other, server); has || err != nil {
			t.Errorf("%s: of a listening socket Has reports %v, %v", at, has, err)
		}
		if n := testing.AllocsPerRun(100, func() { _, _ = q.Has(client, server) }); n > 0 {
			t.Errorf("%v allocations", n)
		}
	}
}

func addrPort(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

func BenchmarkHas(b *testing.B) {
	q, err := Open(0)
	if err != nil {
		b.Fatal(err)
	}
	defer q.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	for b.Loop() {
		_, _ = q.Has(netip.MustParseAddrPort("127.0.0.1:1"), addrPort(l.Addr()))
	}
}
