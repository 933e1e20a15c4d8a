package bpf

import (
	"encoding/binary"
	"net/netip"
	"time"

	"vstun/encap/packet"
)

// Ref refers to a path that a Director has. The zero value refers to none.
type Ref struct{ index, generation uint32 }

// Flow is a flow whose packets the director's program sends on, up to a TCP packet with SYN, FIN or RST: that goes to
// the kernel, as do all later ones until the flow is set again.
type Flow struct {
	packet.Flow // as it stands in the packets: of a reply, from the realserver to the client
	Path        Ref
	// Port is the UDP source port of the tunnels that have one, and a reply's new source port.
	Port uint16
	// VIP is a reply's new source address, invalid for a request. The path is of kind NAT.
	VIP netip.Addr
}

// Count counts packets and bytes of IP packets, both modulo a power of two. GSO packets count once. The difference of
// two Counts is exact if less than 2^26 packets and 2^38 bytes lie between them.
type Count uint64

const packetBits = 26 // PACKETS in src/director.c

// Since returns what has been counted between earlier and c.
func (c Count) Since(earlier Count) (packets, bytes uint64) {
	n := uint64(c - earlier)
	return n & (1<<packetBits - 1), n >> packetBits
}

// State is what the director's program knows of a flow.
type State struct {
	Count Count         // from Set on
	Idle  time.Duration // since the last packet; since Set if there was none
}

// flow4, flow6 and entry are the structs in src/director.c.
type flow4 struct {
	Src, Dst         [4]byte
	SrcPort, DstPort [2]byte
	Proto            uint8
	Pad              [3]byte
}

type flow6 struct {
	Src, Dst         [16]byte
	SrcPort, DstPort [2]byte
	Proto            uint8
	Pad              [3]byte
}

type entry struct {
	Count      uint64
	Last       uint32
	Path       uint32
	Generation uint32
	Port       [2]byte
	VIP        uint16
}

func port(p uint16) (b [2]byte) {
	binary.BigEndian.PutUint16(b[:], p)
	return b
}

func makeFlow4(f *packet.Flow) flow4 {
	return flow4{Src: f.Src.As4(), Dst: f.Dst.As4(), SrcPort: port(f.SrcPort), DstPort: port(f.DstPort), Proto: f.Proto}
}

func makeFlow6(f *packet.Flow) flow6 {
	return flow6{Src: f.Src.As16(), Dst: f.Dst.As16(), SrcPort: port(f.SrcPort), DstPort: port(f.DstPort),
		Proto: f.Proto}
}

func (f *flow4) flow() packet.Flow {
	return packet.Flow{Src: netip.AddrFrom4(f.Src), Dst: netip.AddrFrom4(f.Dst), Proto: f.Proto,
		SrcPort: binary.BigEndian.Uint16(f.SrcPort[:]), DstPort: binary.BigEndian.Uint16(f.DstPort[:])}
}

func (f *flow6) flow() packet.Flow {
	return packet.Flow{Src: netip.AddrFrom16(f.Src), Dst: netip.AddrFrom16(f.Dst), Proto: f.Proto,
		SrcPort: binary.BigEndian.Uint16(f.SrcPort[:]), DstPort: binary.BigEndian.Uint16(f.DstPort[:])}
}

func (e *entry) state(now uint32) State {
	return State{Count: Count(e.Count), Idle: since(e.Last, now)}
}
