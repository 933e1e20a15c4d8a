package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"vstun/encap/egress"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

// udpHeaders is the length of the headers of a UDP packet over IPv4.
const udpHeaders = packet.IPv4HeaderLen + packet.UDPHeaderLen

// udpSegments makes n wrapped packets of one flow to this host, of size bytes of payload each but the last.
func udpSegments(from, to uint16, n, size, last int) (segs []egress.Outgoing, payload []byte) {
	for i := range n {
		k := size
		if i == n-1 {
			k = last
		}
		b := make(packet.IPv4, udpHeaders+k)
		packet.IPv4(b).Encode(packet.IPv4Fields{
			TOS: 0x2e, TotalLen: len(b), TTL: 64, Protocol: packet.ProtoUDP, Dst: local,
		})
		binary.BigEndian.PutUint16(b[20:], from)
		binary.BigEndian.PutUint16(b[22:], to)
		for j := range b[udpHeaders:] {
			b[udpHeaders+j] = byte(i + j*7)
		}
		payload = append(payload, b[udpHeaders:]...)
		cut := min(udpHeaders+10, len(b))
		segs = append(segs, udpPacket(split(b, cut)))
	}
	return segs, payload
}

// TestUDPSegments: what is sent by few calls arrives as the same datagrams, put together or not.
func TestUDPSegments(t *testing.T) {
	inNamespace(t, func() {
		rs, err := NewReceivers(1, Socket{Protocol: packet.ProtoUDP, Port: 6080})
		if err != nil {
			t.Fatal(err)
		}
		r := rs[0]
		defer r.Close()
		s, err := NewUDPSender(3)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		for _, c := range []struct{ n, size, last int }{{1, 1, 1}, {1, 1400, 1400}, {2, 1400, 1}, {45, 1400, 33},
			{64, 1000, 1000}, {100, 1200, 7}, {3, 1472, 1472}} {
			port := s.Ports()[c.n%3]
			segs, want := udpSegments(port, 6080, c.n, c.size, c.last)
			for out := segs; len(out) > 0; {
				n, err := s.Send(out)
				if err != nil || n < 1 {
					t.Fatalf("%+v: %d %v", c, n, err)
				}
				out = out[n:]
			}
			var got []byte
			datagrams := 0
			bufs := packet.NewBufs(8)
			for len(got) < len(want) {
				n, err := r.ReadBatch(bufs)
				if err != nil {
					t.Fatal(err)
				}
				for i := range bufs[:n] {
					h := packet.IPv4(bufs[i].Bytes())
					if h.Check() != drop.Accept || h.Src().As4() != local || h.Protocol() != packet.ProtoUDP ||
						h.TotalLen() != len(h) || h.TOS() != 0x2e ||
						binary.BigEndian.Uint16(h[20:]) != port || binary.BigEndian.Uint16(h[22:]) != 6080 ||
						int(binary.BigEndian.Uint16(h[24:])) != len(h)-20 {
						t.Fatalf("%+v: headers %x", c, []byte(h[:28]))
					}
					got = append(got, h[28:]...)
					datagrams++
					if o := bufs[i].Offload; o.GSO == packet.GSOUDP {
						datagrams += (len(h)-28+int(o.Size)-1)/int(o.Size) - 1
					}
				}
			}
			if !bytes.Equal(got, want) || datagrams != c.n {
				t.Errorf("%+v: %d datagrams of %d bytes, want %d of %d", c, datagrams, len(got), c.n, len(want))
			}
		}
		foreign, _ := udpSegments(1, 6080, 1, 9, 9)
		if _, err := s.Send(foreign); err == nil {
			t.Error("sent from a port that is not ours")
		}
		big, _ := udpSegments(s.Ports()[0], 6080, 2, 1473, 1473)
		if n, err := s.Send(big); err == nil {
			t.Errorf("%d segments larger than the MTU were sent", n)
		} else {
			t.Logf("larger than the MTU: %v", err)
		}
		s.Close()
		if _, err := s.Send(big); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Send after Close: %v", err)
		}
	})
}

// TestUDPWithoutSegments is about a kernel that would send all segments as one datagram: none is sent.
func TestUDPWithoutSegments(t *testing.T) {
	inNamespace(t, func() {
		s, err := NewUDPSender(1)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if !s.able {
			t.Error("this kernel has no UDP_SEGMENT")
		}
		s.able = false
		segs, _ := udpSegments(s.Ports()[0], 6080, 2, 100, 100)
		if n, err := s.Send(segs); n != 0 || err != unix.EOPNOTSUPP {
			t.Errorf("%d sent, %v", n, err)
		}
	})
}

// TestUDPTOS: the receiver reports the outer TOS, which is not part of the payload.
func TestUDPTOS(t *testing.T) {
	inNamespace(t, func() {
		rs, err := NewReceivers(2, Socket{Protocol: packet.ProtoUDP, Port: 6080})
		if err != nil {
			t.Fatal(err)
		}
		defer rs[0].Close()
		rs[1].Close() // all flows are the other's then
		raw := mustSender(t)
		segs, want := udpSegments(5000, 6080, 1, 100, 100)
		segs[0].Head[1] = 0xb9
		binary.BigEndian.PutUint16(segs[0].Head[24:], 108)
		if n, err := raw.Send(segs); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		bufs := packet.NewBufs(1)
		n, err := rs[0].ReadBatch(bufs)
		if err != nil || n != 1 || packet.IPv4(bufs[0].Bytes()).TOS() != 0xb9 || !bytes.Equal(bufs[0].Bytes()[28:],
			want) {
			t.Errorf("%d %v %x", n, err, bufs[0].Bytes())
		}
	})
}

func TestUDPAllocatesNothing(t *testing.T) {
	inNamespace(t, func() {
		rs := mustReceivers(t, 1, Socket{Protocol: packet.ProtoUDP, Port: 6080})
		s, err := NewUDPSender(1)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		segs, _ := udpSegments(s.Ports()[0], 6080, 4, 1000, 500)
		bufs := packet.NewBufs(4)
		if n := testing.AllocsPerRun(100, func() {
			if _, err := s.Send(segs); err != nil {
				t.Fatal(err)
			}
			for got := 0; got < 3500; {
				n, err := rs[0].ReadBatch(bufs)
				if err != nil {
					t.Fatal(err)
				}
				for i := range bufs[:n] {
					got += bufs[i].Len() - udpHeaders
				}
			}
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
	})
}
