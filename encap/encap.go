// Package encap implements a tunnel end. It has the tunnel formats. The packages below it have the sending half
// (egress), the receiving half (endpoint), the sockets (wire) and the views over headers (packet).
//
// A Tunnel puts headers before a packet, and a Decapsulator takes them off, in place.
package encap

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"vstun/encap/packet"
)

// Kind is a tunnel's format. Each carries IPv4 and IPv6, and goes over either.
//
//	          ┌──────────┬─────┬──────────┬ ─ ─ ─ ─ ┐
//	KindIPIP  │ outer IP │                 inner IP     RFC 2003, RFC 2473, RFC 4213
//	          ├──────────┼─────┬──────────┤         │
//	KindGRE   │ outer IP │ GRE │            inner IP     RFC 2784, RFC 2890
//	          ├──────────┼─────┼──────────┤         │
//	KindGUE   │ outer IP │ UDP │ GUE      │ inner IP     draft-ietf-intarea-gue
//	          ├──────────┼─────┼──────────┤         │
//	KindFOU   │ outer IP │ UDP │            inner IP     the UDP port selects the format
//	          └──────────┴─────┴──────────┴ ─ ─ ─ ─ ┘
//
// KindWireGuard is KindIPIP that WireGuard carries.
//
// Ethernet frames stand behind a GRE header of the type "Transparent Ethernet Bridging". It is the only header of
// KindGRE behind the outer IP header. In the other formats it stands where the inner IP packet would: in KindGUE with
// IP protocol 47 in the GUE header, as Linux's gretap with `encap gue` has it; in KindFOU as GRE in UDP (RFC 8086); in
// KindWireGuard as GRE between the tunnel addresses. KindIPIP carries no frames.
type Kind uint8

const (
	KindIPIP Kind = iota
	KindGRE
	KindGUE
	KindFOU
	// KindWireGuard is KindIPIP between tunnel addresses, inside WireGuard (package wireguard).
	KindWireGuard
)

// format is a row of the table of tunnel formats.
type format struct {
	name     string // in configurations
	udp      bool   // it goes over UDP, to a port
	key      bool   // it may have a key
	checksum bool   // it may have a checksum
	sealed   bool   // it is KindIPIP inside WireGuard
	frames   bool   // it may carry Ethernet frames
}

var formats = []format{
	KindIPIP: {name: "ipip"},
	KindGRE:  {name: "gre", key: true, checksum: true, frames: true},
	KindGUE:  {name: "gue", udp: true, checksum: true, frames: true},
	KindFOU:  {name: "fou", udp: true, checksum: true, frames: true},

	KindWireGuard: {name: "wireguard", sealed: true, frames: true},
}

// Kinds returns all kinds.
func Kinds() (all []Kind) {
	for k := range formats {
		all = append(all, Kind(k))
	}
	return all
}

// String returns the format's name in configurations.
func (k Kind) String() string {
	if int(k) < len(formats) {
		return formats[k].name
	}
	return "unknown"
}

// ParseKind is the reverse of String. ok is false for an unknown name.
func ParseKind(name string) (k Kind, ok bool) {
	i := slices.IndexFunc(formats, func(f format) bool { return f.name == name })
	return Kind(max(i, 0)), i >= 0
}

// Sealed reports whether packets of k leave inside WireGuard, and not by sockets of their own.
func (k Kind) Sealed() bool { return int(k) < len(formats) && formats[k].sealed }

// bare reports whether a tunnel of kind k has no header but the outer IP header.
func (k Kind) bare() bool { return k == KindIPIP || k == KindWireGuard }

// UDP reports whether k goes over UDP to a port of its own.
func (k Kind) UDP() bool { return int(k) < len(formats) && formats[k].udp }

// HasKey reports whether a tunnel of kind k may have a key.
func (k Kind) HasKey() bool { return int(k) < len(formats) && formats[k].key }

// HasChecksum reports whether a tunnel of kind k may have a checksum.
func (k Kind) HasChecksum() bool { return int(k) < len(formats) && formats[k].checksum }

// HasFrames reports whether a tunnel of kind k may carry Ethernet frames.
func (k Kind) HasFrames() bool { return int(k) < len(formats) && formats[k].frames }

// Overhead4 is what a tunnel of kind k over IPv4, without checksum and key, adds to a packet, in bytes. Of
// KindWireGuard it is the part inside WireGuard.
func (k Kind) Overhead4() int {
	switch k {
	case KindGRE:
		return packet.IPv4HeaderLen + packet.GREMinLen
	case KindGUE:
		return packet.IPv4HeaderLen + packet.UDPHeaderLen + packet.GUEHeaderLen
	case KindFOU:
		return packet.IPv4HeaderLen + packet.UDPHeaderLen
	}
	return packet.IPv4HeaderLen
}

// MaxOverhead is the largest Tunnel.Overhead, in bytes: IPv6 with UDP, GUE, and GRE for frames.
const MaxOverhead = packet.IPv6HeaderLen + 16

// Config describes a Tunnel for New.
type Config struct {
	Kind Kind
	// Source and Destination are of one family. An invalid Source leaves the choice to the kernel's route: possible
	// only over IPv4 and without a UDP checksum.
	Source, Destination netip.Addr
	Port                uint16 // UDP destination port of KindGUE and KindFOU
	Checksum            bool   // GRE: with checksum; GUE and FOU: with UDP checksum
	Key                 uint32 // of GRE, where HasKey is set
	HasKey              bool
	// Hop: the GUE header names one host that the packet may go on to, see Hops.
	Hop bool
	// Ethernet: the tunnel carries Ethernet frames, and not IP packets.
	Ethernet bool
	// TTL is the TTL or hop limit of the outer header; 0: that of the inner packet, as IPVS has it. With Ethernet it is
	// not 0. RFC 2003, section 3.1: the outer TTL is one by which the packet reaches the tunnel's end.
	TTL uint8
}

// check returns every contradiction in c.
func (c *Config) check() error {
	var errs []error
	refuse := func(wrong bool, format string, args ...any) {
		if wrong {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	refuse(int(c.Kind) >= len(formats), "kind %d: want one of %v", c.Kind, Kinds())
	refuse(!plain(c.Destination), "destination %v: want an IPv4 or IPv6 address without zone", c.Destination)
	if c.Source.IsValid() {
		refuse(!plain(c.Source) || c.Source.BitLen() != c.Destination.BitLen(),
			"source %v: want an address of the destination's family", c.Source)
	} else {
		refuse(!c.Destination.Is4(), "no source: needed over IPv6")
		refuse(c.Kind.Sealed(), "no source: needed for %v", c.Kind)
		refuse(c.Kind.UDP() && c.Checksum, "no source: needed for a UDP checksum")
	}
	refuse(c.Kind.UDP() != (c.Port != 0), "port %d: want one from 1 on for gue and fou, none for others", c.Port)
	refuse(!c.Kind.HasChecksum() && c.Checksum, "checksum: %v has none", c.Kind)
	refuse(!c.Kind.HasKey() && c.HasKey, "key: only gre has one")
	refuse(!c.Kind.HasFrames() && c.Ethernet, "Ethernet: %v carries IP packets only", c.Kind)
	refuse(c.Hop && (c.Kind != KindGUE || c.Ethernet || !c.Destination.Is4()),
		"hop: only gue over IPv4 has one, with IP packets inside")
	refuse(c.Ethernet && c.TTL == 0, "TTL 0: a frame has none to copy")
	return errors.Join(errs...)
}

// plain reports whether a can stand in an IP header: it is neither IPv4-mapped nor has a zone.
func plain(a netip.Addr) bool { return a.IsValid() && !a.Is4In6() && a.Zone() == "" }

// protocol is the IP protocol number of packets of version 4 or 6.
func protocol(version int) byte {
	if version == 6 {
		return packet.ProtoIPv6
	}
	return packet.ProtoIPIP
}
