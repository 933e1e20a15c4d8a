package wire

import (
	"errors"
	"net"
	"os"
	"strconv"
	"testing"

	"vstun/encap/packet"
)

// TestTap: of what comes in by the loopback device, a tap of either family shows what its filters want, from the IP
// header on.
func TestTap(t *testing.T) {
	inNamespace(t, func() {
		for _, to := range []string{"127.0.0.1", "::1"} {
			over6 := to == "::1"
			tap, err := NewSniffer(over6, SnifferFilter{Protocol: packet.ProtoGRE},
				SnifferFilter{Protocol: packet.ProtoUDP, First: 1000, Last: 1002})
			if err != nil {
				t.Fatal(err)
			}
			for _, port := range []int{999, 1003, 1000, 1002} {
				c, err := net.Dial("udp", net.JoinHostPort(to, strconv.Itoa(port)))
				if err != nil {
					t.Fatal(err)
				}
				if _, err := c.Write([]byte(strconv.Itoa(port))); err != nil {
					t.Fatal(err)
				}
				c.Close()
			}
			network := map[bool]string{false: "ip4:47", true: "ip6:47"}[over6]
			c, err := net.Dial(network, to)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Write(make([]byte, 600)); err != nil {
				t.Fatal(err)
			}
			c.Close()
			b := make([]byte, 2048)
			for _, want := range []string{"1000", "1002", ""} {
				n, err := tap.Read(b)
				if err != nil {
					t.Fatal(err)
				}
				if want == "" {
					if n != sniffLen {
						t.Errorf("%s: %d bytes of a large packet", to, n)
					}
				} else if got := string(b[n-4 : n]); got != want {
					t.Errorf("%s: %q, want %q", to, got, want)
				}
			}
			ended := make(chan error)
			go func() {
				_, err := tap.Read(b)
				ended <- err
			}()
			if err := tap.Close(); err != nil {
				t.Error(err)
			}
			if err := <-ended; !errors.Is(err, os.ErrClosed) {
				t.Errorf("after Close: %v", err)
			}
		}
	})
}
