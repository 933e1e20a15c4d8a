package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"vstun/encap"
	"vstun/encap/packet"
)

// Kind is how packets get to a realserver.
type Kind uint8

const (
	// Tunnel puts the headers of Path.Tunnel before a packet. Tunnels with a checksum are not possible: outer checksums
	// of GSO packets cannot be made.
	Tunnel Kind = iota + 1
	// Link sends a packet unchanged to Path.MAC.
	Link
	// NAT replaces the destination of requests by Path.Realserver, and the source of replies by the flow's VIP.
	NAT
)

// Path is how the packets of some flows get to one realserver.
type Path struct {
	Kind    Kind
	IPv6    bool          // the family of the flows; that of the tunnel is the tunnel's
	Device  int           // interface index of the device to the realserver
	NextHop netip.Addr    // neighbour on Device, of Tunnel and NAT; invalid: the kernel looks the route up
	MTU     int           // largest packet that the path takes, in bytes: with the tunnel's headers
	Tunnel  *encap.Tunnel // of Tunnel

	MAC, OwnMAC [6]byte // of Link: of the realserver and of Device

	// Of NAT. Port 0 is the packet's own. The kernel looks up the route of each reply, as if it came in by TUN: the
	// interface index of the director's TUN device.
	Realserver netip.AddrPort
	TUN        int
}

// Flags of bpf_skb_adjust_room (linux/bpf.h).
const (
	fixedGSO = 1 << iota
	encapIPv4
	encapIPv6
	encapGRE
	encapUDP
)

// pathRecord is struct path in src/director.c.
type pathRecord struct {
	Flags      uint64
	Generation uint32
	Device     uint32
	NextFamily uint32
	Next       [16]byte
	Sum        uint32
	MTU        uint16
	Kind       Kind
	Length     uint8
	Outer6     uint8
	UDP        uint8
	Family     uint8
	Pad        uint8
	Header     [56]byte
}

// record returns the record of p, without generation. Its error names the first contradiction in p.
func (p *Path) record() (r pathRecord, err error) {
	if p.Device <= 0 || p.MTU <= 0 || p.MTU > packet.MaxLen {
		return r, fmt.Errorf("device %d, MTU %d: want a device's index, and an MTU of 1 to %d", p.Device, p.MTU,
			packet.MaxLen)
	}
	r = pathRecord{Device: uint32(p.Device), MTU: uint16(p.MTU), Kind: p.Kind, Family: 4}
	if p.IPv6 {
		r.Family = 6
	}
	switch next := p.NextHop; {
	case next.Is4():
		a := next.As4()
		r.NextFamily = unix.AF_INET
		copy(r.Next[:], a[:])
	case next.IsValid():
		r.NextFamily, r.Next = unix.AF_INET6, next.As16()
	}
	switch p.Kind {
	case Tunnel:
		return r, p.tunnel(&r)
	case Link:
		if p.MAC == [6]byte{} {
			return r, errors.New("no MAC address")
		}
		copy(r.Header[:], p.MAC[:])
		copy(r.Header[6:], p.OwnMAC[:])
		packet.Ethernet(r.Header[:]).SetType(packet.EtherType(int(r.Family)))
		return r, nil
	case NAT:
		a := p.Realserver.Addr()
		if !a.IsValid() || a.Is4() == p.IPv6 || p.TUN <= 0 {
			return r, fmt.Errorf("realserver %v, TUN device %d: want an address of the flows' family, and a device's "+
				"index", a, p.TUN)
		}
		copy(r.Header[:], a.AsSlice()) // struct nat in src/director.c
		binary.BigEndian.PutUint16(r.Header[16:], p.Realserver.Port())
		binary.NativeEndian.PutUint32(r.Header[20:], uint32(p.TUN))
		return r, nil
	}
	return r, fmt.Errorf("kind %d: want Tunnel, Link or NAT", p.Kind)
}

// tunnel completes the record of a tunnel.
func (p *Path) tunnel(r *pathRecord) error {
	if p.Tunnel == nil {
		return errors.New("no tunnel")
	}
	version := int(r.Family)
	h := p.Tunnel.Header(version)
	r.Length = uint8(copy(r.Header[:], h))
	r.Flags = fixedGSO | encapIPv4
	if packet.Version(h) == 6 {
		r.Outer6 = 1
		r.Flags = fixedGSO | encapIPv6
	} else if packet.IPv4(h).Src().IsUnspecified() {
		return errors.New("tunnel without source")
	}
	switch k := p.Tunnel.Kind(); {
	case k.Sealed():
		return fmt.Errorf("%v: the program cannot encrypt", k)
	case p.Tunnel.Checksum():
		return fmt.Errorf("%v with checksum: the checksum of GSO packets cannot be made", k)
	case k == encap.KindGRE:
		r.Flags |= encapGRE
	case k.UDP():
		r.UDP = 1
		r.Flags |= encapUDP
	}
	if r.Outer6 == 0 {
		for i := 0; i < packet.IPv4HeaderLen; i += 2 {
			r.Sum += uint32(binary.NativeEndian.Uint16(h[i:]))
		}
	}
	return nil
}
