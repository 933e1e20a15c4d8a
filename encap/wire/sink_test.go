package wire

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"vstun/encap/packet"
)

// TestSink: the kernel answers what comes to a sink's port with nothing, neither of TCP nor of UDP; without the sink it
// refuses that.
func TestSink(t *testing.T) {
	for _, at := range []string{"127.0.0.1:61917", "[::1]:61917"} {
		to := netip.MustParseAddrPort(at)
		for protocol, network := range map[uint8]string{packet.ProtoTCP: "tcp", packet.ProtoUDP: "udp"} {
			s, err := NewSink(protocol, to)
			if err != nil {
				t.Skipf("SKIPPED: needs the port: %v", err)
			}
			if err := touch(network, at); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s %s: %v, want silence", network, at, err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if err := touch(network, at); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s %s, closed: %v, want a refusal", network, at, err)
			}
		}
	}
}

// touch sends to a port, and returns what comes back within a moment: on loopback a refusal comes at once.
func touch(network, to string) error {
	c, err := (&net.Dialer{Timeout: 300 * time.Millisecond}).Dial(network, to)
	if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
		return os.ErrDeadlineExceeded
	} else if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write([]byte("hello")); err != nil {
		return err
	}
	if err := c.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 1))
	return err
}
