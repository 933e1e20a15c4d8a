package e2e

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"vstun/cmd/internal/lab"
)

// rawSender sends packets with the test's own headers from a host (raw(7), IP_HDRINCL). The kernel only fills in total
// length and checksum of the outermost header, and an ID or source of 0.
type rawSender struct {
	t  *testing.T
	fd int
}

func (s *site) rawSender(h *lab.Host) *rawSender {
	s.t.Helper()
	w := &rawSender{t: s.t}
	err := h.Do(func() (err error) {
		w.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { unix.Close(w.fd) })
	return w
}

// inject sends a packet to the destination in its header.
func (w *rawSender) inject(b []byte) {
	w.t.Helper()
	if err := unix.Sendto(w.fd, b, 0, &unix.SockaddrInet4{Addr: [4]byte(b[16:20])}); err != nil {
		w.t.Fatalf("send %x: %v", b[:min(len(b), 64)], err)
	}
}

// ip4 returns an IPv4 header. build fills in length and checksum.
func ip4(src, dst netip.Addr, protocol layers.IPProtocol) *layers.IPv4 {
	return &layers.IPv4{Version: 4, TTL: 64, Protocol: protocol, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
}

// ip6 returns an IPv6 header. build fills in the length.
func ip6(src, dst netip.Addr, protocol layers.IPProtocol) *layers.IPv6 {
	return &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: protocol, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
}

// build returns a packet of these layers, with correct lengths and checksums.
func build(t *testing.T, all ...gopacket.SerializableLayer) []byte {
	t.Helper()
	for i, l := range all {
		if ip, ok := l.(gopacket.NetworkLayer); ok && i+1 < len(all) {
			switch next := all[i+1].(type) {
			case *layers.UDP:
				_ = next.SetNetworkLayerForChecksum(ip) // fails only for what is no network layer
			case *layers.TCP:
				_ = next.SetNetworkLayerForChecksum(ip)
			}
		}
	}
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		all...); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// udpPacket returns an IP packet with a UDP datagram.
func udpPacket(t *testing.T, src, dst netip.Addr, sport, dport uint16, data string) []byte {
	t.Helper()
	var ip gopacket.SerializableLayer = ip4(src, dst, layers.IPProtocolUDP)
	if src.Is6() {
		ip = ip6(src, dst, layers.IPProtocolUDP)
	}
	return build(t, ip, &layers.UDP{SrcPort: layers.UDPPort(sport), DstPort: layers.UDPPort(dport)},
		gopacket.Payload(data))
}

// fixChecksum corrects the checksum of an IPv4 header, over its length or the bytes that there are (RFC 1071).
func fixChecksum(b []byte) []byte {
	b[10], b[11] = 0, 0
	var total uint32
	for i := 0; i+1 < min(int(b[0]&15)*4, len(b)); i += 2 {
		total += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for total>>16 != 0 {
		total = total&0xffff + total>>16
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(total))
	return b
}
