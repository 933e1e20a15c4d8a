package health

import (
	"net"
	"net/netip"
	"strings"
	"testing"
)

// datagrams starts a UDP server that sends these answers to each datagram.
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
		{"slow and not expected", UDP{Send: "x", Expect: "^y$"}, datagrams(t, "n"), false,
			`expect does not match the answer: "n"`},
		{"bytes sent and expected", UDP{Send: "\x00\xff\xfe", ExpectHex: "00ff ?? 7?"}, echo(t, "\x00\xff\xfe",
			"\x00\xff\x80\x7a"), true, "answer as expected"},
		{"slow to send other bytes", UDP{Send: "\x00", ExpectHex: "?1"}, datagrams(t, "\x80\x02"), false,
			"expect_hex does not match the answer: 80 02"},
		{"too long to send", UDP{Send: strings.Repeat("x", MaxDatagram+1)}, datagrams(t), false,
			"not checked, for a fault of this machine: …"},
		{"longest", UDP{Send: strings.Repeat("x", MaxDatagram)}, datagrams(t, "y"), true, "answered"},
		{"expected, but silent", UDP{Send: "x", Expect: "^y$"}, datagrams(t), false, "no answer within 300ms"},
	} {
		o.test(t)
	}
}

// echo starts a UDP server that answers only datagrams of exactly these bytes.
func echo(t *testing.T, want, answer string) netip.AddrPort {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			if string(buf[:n]) == want {
				_, _ = c.WriteTo([]byte(answer), from)
			}
		}
	}()
	return netip.MustParseAddrPort(c.LocalAddr().String())
}
