package wire

import (
	"net"
	"os"
	"testing"

	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

// TestErrorReceivers: of what the kernel answers on the loopback device, both receivers give the errors as whole
// packets with right checksums, and nothing else.
func TestErrorReceivers(t *testing.T) {
	inNamespace(t, func() {
		all, err := NewErrorReceivers()
		if err != nil {
			t.Fatal(err)
		}
		if len(all) != 2 {
			t.Skip("SKIPPED: no IPv6")
		}
		for i, to := range []string{"127.0.0.1:9", "[::1]:9"} {
			ping, err := net.Dial([]string{"ip4:icmp", "ip6:ipv6-icmp"}[i], []string{"127.0.0.1", "::1"}[i])
			if err != nil {
				t.Fatal(err)
			}
			echo := []byte{packet.ICMPEcho, 0, 0xf7, 0xff, 0, 0, 0, 0}
			if i == 1 {
				echo = []byte{packet.ICMPv6Echo, 0, 0, 0, 0, 0, 0, 0} // the kernel computes the checksum
			}
			if _, err := ping.Write(echo); err != nil {
				t.Fatal(err)
			}
			ping.Close()
			c, err := net.Dial("udp", to)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Write([]byte("anybody there?")); err != nil {
				t.Fatal(err)
			}
			bufs := packet.NewBufs(2)
			n, err := all[i].ReadBatch(bufs)
			if err != nil || n != 1 {
				t.Fatalf("%s: %d packets, %v", to, n, err)
			}
			q, d := packet.QuotedFlow(bufs[0].Bytes())
			if d != drop.Accept || q.Flow.DstPort != 9 || q.Flow.Proto != packet.ProtoUDP ||
				q.Flow.SrcPort != uint16(c.LocalAddr().(*net.UDPAddr).Port) {
				t.Errorf("%s: %v, %+v, %x", to, d, q, bufs[0].Bytes())
			}
			c.Close()
		}
		for _, r := range all {
			done := make(chan error)
			go func() {
				_, err := r.ReadBatch(packet.NewBufs(1))
				done <- err
			}()
			if err := r.Close(); err != nil {
				t.Error(err)
			}
			if err := <-done; err != os.ErrClosed {
				t.Errorf("after Close: %v", err)
			}
		}
	})
}
