package secondchance

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"vstun/balancer/maglev"
	"vstun/encap"
)

// Table is what a director's scheduler mh chooses by, for the TCP connections of one service.
type Table struct {
	Service  string
	VIPs     []netip.Addr
	Ports    []Ports
	Port     uint16   // in the hash of members without a port of their own
	SrcPort  bool     // the client's port is part of the key ("mh-port")
	Fallback bool     // a member that is not available is replaced by another ("mh-fallback")
	Members  []Member // in the order of their turns
}

// Ports are the ports from First to Last, both included. 0 to 0 are all ports.
type Ports struct{ First, Last uint16 }

// Member is a realserver of a table.
type Member struct {
	Via
	Port      uint16 // its own; 0: the table's
	Weight    uint32 // by which it has slots
	Available bool   // it gets new connections
}

// Via is the tunnel to a member.
type Via struct {
	Address  netip.Addr
	Kind     encap.Kind
	Key      uint32 // of GRE, where HasKey is set
	HasKey   bool
	Checksum bool
}

// Reaches reports whether realservers send packets on by tunnels of a kind.
func Reaches(k encap.Kind) bool {
	return k == encap.KindIPIP || k == encap.KindGRE || k == encap.KindGUE
}

// Bounds of a table, by its encoding. MaxSize is in bytes: a datagram carries one table.
const (
	MaxMembers = maglev.Slots
	MaxSize    = 60_000
)

var errTable = errors.New("malformed table")

// Flags of a table, and of a member.
const (
	flagSrcPort = 1 << iota
	flagFallback
	flagKnown = flagSrcPort | flagFallback

	memberAvailable   = 1
	memberKey         = 2
	memberChecksum    = 4
	memberFlagsKnown  = memberAvailable | memberKey | memberChecksum
	memberSizeNoKey   = 1 + 1 + 2 + 4
	portsSize         = 4
	everyPortOfNumber = 1<<16 - 1
)

// append appends the encoding of t: two equal tables have the same.
//
//	flags, port of the hash, service's name, VIPs, ports, members
//
// A name has its length in a byte before it, an address its length in bytes, and a list the number of its elements in
// two bytes. A member is its address, flags, encapsulation, port, weight, and key if it has one.
func (t *Table) append(b []byte) []byte {
	flags := byte(0)
	if t.SrcPort {
		flags |= flagSrcPort
	}
	if t.Fallback {
		flags |= flagFallback
	}
	b = binary.BigEndian.AppendUint16(append(b, flags), t.Port)
	b = append(append(b, byte(len(t.Service))), t.Service...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(t.VIPs)))
	for _, a := range t.VIPs {
		b = appendAddr(b, a)
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(t.Ports)))
	for _, p := range t.Ports {
		b = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, p.First), p.Last)
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(t.Members)))
	for i := range t.Members {
		b = t.Members[i].append(b)
	}
	return b
}

func (m *Member) append(b []byte) []byte {
	flags := byte(0)
	if m.Available {
		flags |= memberAvailable
	}
	if m.HasKey {
		flags |= memberKey
	}
	if m.Checksum {
		flags |= memberChecksum
	}
	b = append(appendAddr(b, m.Address), flags, byte(m.Kind))
	b = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(b, m.Port), m.Weight)
	if m.HasKey {
		b = binary.BigEndian.AppendUint32(b, m.Key)
	}
	return b
}

func appendAddr(b []byte, a netip.Addr) []byte {
	return append(append(b, byte(a.BitLen()/8)), a.AsSlice()...)
}

// fits reports whether t has an encoding that a datagram can carry.
func (t *Table) fits() bool {
	return len(t.Service) <= 255 && len(t.VIPs) <= everyPortOfNumber && len(t.Ports) <= everyPortOfNumber &&
		len(t.Members) <= MaxMembers && len(t.append(nil)) <= MaxSize
}

// parse returns the table that b holds, and nothing else.
func parse(b []byte) (*Table, error) {
	r := reader{b: b}
	flags := r.byte()
	t := &Table{SrcPort: flags&flagSrcPort != 0, Fallback: flags&flagFallback != 0, Port: r.uint16()}
	t.Service = string(r.take(int(r.byte())))
	for range r.count(1 + 4) {
		t.VIPs = append(t.VIPs, r.addr())
	}
	for range r.count(portsSize) {
		p := Ports{r.uint16(), r.uint16()}
		r.bad = r.bad || p.First > p.Last || p.First == 0 && p.Last != 0
		t.Ports = append(t.Ports, p)
	}
	for range r.count(1 + 4 + memberSizeNoKey) {
		t.Members = append(t.Members, r.member())
	}
	if r.bad || len(r.b) > 0 || flags&^flagKnown != 0 || t.Service == "" || len(t.Members) > MaxMembers {
		return nil, errTable
	}
	return t, nil
}

// reader reads a table. After bad it yields zeros.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if n > len(r.b) {
		r.bad, r.b = true, nil
		return nil
	}
	p := r.b[:n]
	r.b = r.b[n:]
	return p
}

func (r *reader) byte() byte {
	if p := r.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (r *reader) uint16() uint16 {
	if p := r.take(2); p != nil {
		return binary.BigEndian.Uint16(p)
	}
	return 0
}

func (r *reader) uint32() uint32 {
	if p := r.take(4); p != nil {
		return binary.BigEndian.Uint32(p)
	}
	return 0
}

// count returns the number of a list's elements, each of at least size bytes: no number makes the list larger than the
// datagram.
func (r *reader) count(size int) int {
	n := int(r.uint16())
	if n*size > len(r.b) {
		r.bad, r.b = true, nil
		return 0
	}
	return n
}

func (r *reader) addr() netip.Addr {
	a, ok := netip.AddrFromSlice(r.take(int(r.byte())))
	if !ok || a.Is4In6() {
		r.bad = true
		return netip.IPv4Unspecified()
	}
	return a
}

func (r *reader) member() Member {
	m := Member{Via: Via{Address: r.addr()}}
	flags := r.byte()
	m.Available, m.HasKey, m.Checksum = flags&memberAvailable != 0, flags&memberKey != 0, flags&memberChecksum != 0
	m.Kind = encap.Kind(r.byte())
	m.Port, m.Weight = r.uint16(), r.uint32()
	if m.HasKey {
		m.Key = r.uint32()
	}
	r.bad = r.bad || flags&^memberFlagsKnown != 0 || m.Weight > 1<<31-1
	return m
}
