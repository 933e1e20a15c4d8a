package bpf

import (
	"encoding/binary"
	"net/netip"
	"os"
	"testing"

	"github.com/cilium/ebpf"

	"vstun/encap"
	"vstun/encap/packet"
)

const (
	next     = -1 // TCX_NEXT
	redirect = 7  // TC_ACT_REDIRECT
	loopback = 1  // interface index in every namespace
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root, to load a BPF program")
	}
}

// frame returns the IP packet p in an Ethernet frame to this host's loopback device, by which the kernel runs programs
// for a test.
func frame(p []byte) []byte {
	f := make(packet.Ethernet, packet.EthernetHeaderLen, packet.EthernetHeaderLen+len(p))
	f.SetSrc([6]byte{2, 0, 0, 0, 0, 1})
	f.SetType(packet.EtherType(packet.Version(p)))
	return append(f, p...)
}

// run runs a program on a frame and returns its action, and the frame behind it.
func run(t testing.TB, p *ebpf.Program, f []byte) (action int, out []byte) {
	t.Helper()
	o := ebpf.RunOptions{Data: f, DataOut: make([]byte, len(f)+256)}
	r, err := p.Run(&o)
	if err != nil {
		t.Fatalf("%v: %x", err, f)
	}
	return int(int32(r)), o.DataOut
}

// Hosts of the tests, by family: see pick.
var (
	clients     = [2]netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")}
	virtuals    = [2]netip.Addr{netip.MustParseAddr("198.51.100.80"), netip.MustParseAddr("2001:db8:1::80")}
	directors   = [2]netip.Addr{netip.MustParseAddr("10.0.2.2"), netip.MustParseAddr("fd00:2::2")}
	realservers = [2]netip.Addr{netip.MustParseAddr("10.0.11.2"), netip.MustParseAddr("fd00:11::2")}
	nowhere     = [2]netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:9::1")}
)

// pick returns the address of IPv4, or of IPv6.
func pick(of [2]netip.Addr, six bool) netip.Addr {
	if six {
		return of[1]
	}
	return of[0]
}

// spec describes a packet of a flow for a test.
type spec struct {
	src, dst         netip.AddrPort
	proto            uint8
	class, ttl       uint8
	noDF             bool
	id               uint16
	flags            uint8 // of TCP
	payload          int
	noChecksum       bool // UDP
	options, padding int  // of TCP; of the frame
}

// request is a packet from the client to the VIP.
func request(six bool, proto uint8) spec {
	return spec{src: netip.AddrPortFrom(pick(clients, six), 40007), dst: netip.AddrPortFrom(pick(virtuals, six), 80),
		proto: proto, ttl: 63, flags: packet.FlagACK, payload: 100}
}

func (s *spec) flow() packet.Flow {
	return packet.Flow{Src: s.src.Addr(), Dst: s.dst.Addr(), SrcPort: s.src.Port(), DstPort: s.dst.Port(),
		Proto: s.proto}
}

// bytes returns the packet with right checksums.
func (s *spec) bytes() []byte {
	ip, header := packet.IPv4HeaderLen, packet.TCPHeaderLen+s.options
	six := s.src.Addr().Is6()
	if six {
		ip = packet.IPv6HeaderLen
	}
	if s.proto != packet.ProtoTCP {
		header = packet.UDPHeaderLen
	}
	b := make([]byte, ip+header+s.payload)
	for i := range b[ip+header:] {
		b[ip+header+i] = byte(i * 7)
	}
	if six {
		packet.IPv6(b).Encode(packet.IPv6Fields{TrafficClass: s.class, TotalLen: len(b), HopLimit: s.ttl,
			NextHeader: s.proto, Src: s.src.Addr().As16(), Dst: s.dst.Addr().As16()})
	} else {
		h := packet.IPv4(b)
		h.Encode(packet.IPv4Fields{TOS: s.class, TotalLen: len(b), TTL: s.ttl, Protocol: s.proto,
			Src: s.src.Addr().As4(), Dst: s.dst.Addr().As4()})
		h.SetDF(!s.noDF)
		h.SetID(s.id)
		h.SetChecksum()
	}
	t := b[ip:]
	binary.BigEndian.PutUint16(t, s.src.Port())
	binary.BigEndian.PutUint16(t[2:], s.dst.Port())
	pseudo := packet.PseudoSum(b, s.proto, len(t))
	switch s.proto {
	case packet.ProtoTCP:
		h := packet.TCP(t)
		h.SetSeq(12345)
		h.SetHeaderLen(header)
		h.SetFlags(s.flags)
		for i := range s.options {
			t[packet.TCPHeaderLen+i] = 1
		}
		h.SetChecksum(pseudo)
	case packet.ProtoUDP:
		h := packet.UDP(t)
		h.SetLen(len(t))
		if !s.noChecksum {
			h.SetChecksum(pseudo)
		}
	}
	return append(b, make([]byte, s.padding)...)
}

// tunnels are the tunnels that the fast path can have, to the realserver over one family.
func tunnels(six bool) (all []encap.Config) {
	c := encap.Config{Source: pick(directors, six), Destination: pick(realservers, six)}
	for _, k := range encap.Kinds() {
		if k.Sealed() { // the kernel cannot encrypt
			continue
		}
		c := c
		c.Kind = k
		if k.UDP() {
			c.Port = 6080
		}
		all = append(all, c)
		if k.HasKey() {
			c.Key, c.HasKey = 0x01020304, true
			all = append(all, c)
		}
	}
	return all
}
