package notify

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

// patience bounds the time that a test waits for a condition.
const patience = 20 * time.Second

// listenSilently starts a TCP server that reads and never answers. It calls accepted for each connection.
func listenSilently(t testing.TB, accepted func()) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				accepted()
				for buf := make([]byte, 4096); ; {
					if _, err := c.Read(buf); err != nil {
						return
					}
				}
			}()
		}
	}()
	return netip.MustParseAddrPort(l.Addr().String())
}
