// Package method has the forwarding methods: how packets get to a realserver (Linux net/netfilter/ipvs/ip_vs_xmit.c).
package method

import (
	"net/netip"

	"vstun/encap"
	"vstun/encap/egress"
	"vstun/encap/packet"
)

// Kind is a forwarding method, as `ipvsadm -a` names it.
type Kind uint8

// TUN sends packets through a tunnel (`ipvsadm -i`). The realserver answers its clients directly.
const TUN Kind = 0

// Config is how packets get to a realserver.
type Config struct {
	Kind     Kind
	Encap    encap.Kind // of TUN, as are all fields below
	Port     uint16     // UDP destination port of encap.KindGUE and KindFOU
	Key      uint32     // of encap.KindGRE, where HasKey is set
	HasKey   bool       // encap.KindGRE only
	Checksum bool       // GRE's or UDP's
	// Source is the outer source address. If it is unset, and encap.Config needs none, the kernel sets its route's
	// source address.
	Source netip.Addr
	MTU    int // largest packet that the path to the realserver takes, in bytes
}

// A Method forwards packets to one realserver. It is immutable: any number of goroutines may use it.
type Method interface {
	Kind() Kind
	// Overhead is the number of bytes that Out adds to a packet.
	Overhead() int
	// Out turns the packet in b into one to the realserver, in place, and returns its hop. p describes the packet's
	// headers. Its checksums must be finished, except for a GSO packet. port is the UDP source port, for tunnels over
	// UDP. Each segment of a GSO packet still needs Seal.
	Out(b *packet.Buf, p *packet.Info, port uint16) egress.Hop
	// Seal sets lengths and checksums in the headers that Out has put before the segment s.
	Seal(s packet.Segment)
	// Quoted returns the client's packet in q, as far as q goes. q is the beginning of a packet that an ICMP error
	// quotes. payload is the offset of the data behind q's IP headers. ok reports whether Out can have made the quoted
	// packet.
	Quoted(q []byte, payload int) (inner []byte, ok bool)
}

// New returns the method that c describes for the realserver at address. Its error names every contradiction in c.
func New(address netip.Addr, c Config) (Method, error) { return newTUN(address, c) }
