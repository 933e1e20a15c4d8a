package health

import (
	"net"
	"net/netip"
	"testing"
)

// datagrams is a UDP server that answers each datagram with these.
func datagrams(t *testing.T, answers ...string) netip.AddrPort {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		buf := make([]byte, 2048)
		for {
			_, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			for _, a := range answers {
				_, _ = c.WriteTo([]byte(a), from)
			}
		}
	}()
	return netip.MustParseAddrPort(c.LocalAddr().String())
}

func TestUDP(t *testing.T) {
	for _, o := range []outcome{
		{"answers", UDP{Send: "x"}, datagrams(t, "y"), true, "answered"},
		{"slow to say nothing", UDP{Send: "x"}, datagrams(t), true, "no answer, and no port unreachable"},
		{"closed", UDP{Send: "x"}, closedUDP(t), false, "port unreachable"},
		{"closed, nothing sent", UDP{}, closedUDP(t), false, "port unreachable"},
		{"expected", UDP{Send: "x", Expect: "^y$"}, datagrams(t, "n", "y"), true, "answer as expected"},
		{"slow and not expected", UDP{Send: "x", Expect: "^y$"}, datagrams(t, "n"), false, `expect does not match the answer: "n"`},
		{"expected, but silent", UDP{Send: "x", Expect: "^y$"}, datagrams(t), false, "no answer within 300ms"},
	} {
		o.test(t)
	}
}
