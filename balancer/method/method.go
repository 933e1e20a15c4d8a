// Package method has the forwarding methods: how packets get to a realserver (Linux net/netfilter/ipvs/ip_vs_xmit.c).
package method

import (
	"fmt"
	"net/netip"
	"slices"

	"vstun/encap"
	"vstun/encap/egress"
	"vstun/encap/packet"
)

// Kind is a forwarding method.
type Kind uint8

const (
	// TUN sends packets through a tunnel (`ipvsadm -i`). The realserver answers its clients directly.
	TUN Kind = iota
	// DR sends packets unchanged to the realserver's link-layer address (`ipvsadm -g`). The realserver is in a subnet
	// of the director and answers its clients directly.
	DR
	// NAT rewrites the destination of packets, and the source of the replies, which pass the director (`ipvsadm -m`).
	NAT
)

// row is a row of the table of methods.
type row struct {
	name  string // in configurations
	title string // as `ipvsadm -Ln` prints it
	make  func(address netip.Addr, c Config) (Method, error)
}

var rows = []row{
	TUN: {"tun", "Tunnel", newTUN},
	DR:  {"dr", "Route", newDR},
	NAT: {"nat", "Masq", newNAT},
}

// Kinds returns the names of all methods in configurations.
func Kinds() (names []string) {
	for _, r := range rows {
		names = append(names, r.name)
	}
	return names
}

// String returns the method's name in configurations.
func (k Kind) String() string { return rows[k].name }

// Title returns ipvsadm's name of the method: Tunnel, Route or Masq.
func (k Kind) Title() string { return rows[k].title }

// ParseKind is the reverse of String. ok is false for an unknown name.
func ParseKind(name string) (k Kind, ok bool) {
	i := slices.IndexFunc(rows, func(r row) bool { return r.name == name })
	return Kind(max(i, 0)), i >= 0
}

// Config is how packets get to a realserver.
type Config struct {
	Kind      Kind
	Encap     encap.Kind // of TUN
	EncapPort uint16     // of TUN: UDP destination port of encap.KindGUE and KindFOU
	Key       uint32     // of encap.KindGRE, where HasKey is set
	HasKey    bool       // encap.KindGRE only
	Checksum  bool       // of TUN: GRE's or UDP's
	Hop       bool       // of TUN, for encap.KindGUE over IPv4: packets may name a host to go on to, see Hopper
	Port      uint16     // of NAT: the realserver's port; 0: the port that the client has sent the packet to
	Own       bool       // of NAT: the realserver is an address of this host
	// Source is the outer source address of TUN. If it is unset, and encap.Config needs none, the kernel sets its
	// route's source address.
	Source netip.Addr
	Link   Link // of DR: where the realserver is
	MTU    int  // largest packet that the path to the realserver takes, in bytes
}

// Link is a neighbour: a device of this host, and the neighbour's link-layer address there.
type Link struct {
	Device int     // interface index; 0: not known
	MAC    [6]byte // of Ethernet; all zero: the neighbour has not answered yet
	OwnMAC [6]byte // of the device
}

// Resolved reports whether packets can be sent to the neighbour.
func (l Link) Resolved() bool { return l.Device != 0 && l.MAC != [6]byte{} }

// A Method forwards packets to one realserver. It is immutable: any number of goroutines may use it.
type Method interface {
	Kind() Kind
	// Overhead is the number of bytes that Out adds to a packet.
	Overhead() int
	// Out turns the packet in b into one to the realserver, in place, and returns its hop. p describes the packet's
	// headers. For TUN its checksums must be finished, except for a GSO packet. port is the UDP source port, for
	// tunnels over UDP. Each segment of a GSO packet in a tunnel still needs Seal.
	Out(b *packet.Buf, p *packet.Info, port uint16) egress.Hop
	// Seal sets lengths and checksums in the headers that Out has put before the segment s.
	Seal(s packet.Segment)
	// Quoted returns the client's packet in q, as far as q goes. q is the beginning of a packet that an ICMP error
	// quotes. payload is the offset of the data behind q's IP headers. ok reports whether Out can have made the quoted
	// packet.
	Quoted(q []byte, payload int) (inner []byte, ok bool)
}

// A Hopper is a Method whose packets may name the host that they may go on to, as encap.Hops.
type Hopper interface {
	Method
	// OutHop is Out for a packet that may go on to next.
	OutHop(b *packet.Buf, port uint16, next [4]byte) egress.Hop
}

// A Returner is a Method whose replies pass the director.
type Returner interface {
	Method
	// Back turns the realserver's reply in b into the VIP's, in place. p describes its headers. vip is the address and
	// port that the client has sent its requests to.
	Back(b *packet.Buf, p *packet.Info, vip netip.AddrPort)
}

// New returns the method that c describes for the realserver at address. Its error names every contradiction in c.
func New(address netip.Addr, c Config) (Method, error) {
	if int(c.Kind) >= len(rows) {
		return nil, fmt.Errorf("realserver %v: forwarding method %d: want one of %v", address, c.Kind, Kinds())
	}
	return rows[c.Kind].make(address, c)
}
