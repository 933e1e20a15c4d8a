// Package query encodes and parses questions and answers. With a question a director asks a realserver's agent for its
// VIPs and tunnels. It does no I/O.
//
// The question is a UDP datagram to Port inside the director's tunnel. Its inner destination is no VIP. The agent
// therefore looks for questions only among packets that it would refuse. The answer is a plain UDP datagram to the
// outer source of the question. All numbers are big-endian:
//
//	bytes     4       1         1   2       8       up to Len
//	question  magic │ version │ 0 │ first │ nonce │ zeros
//	answer    magic │ version │ 0 │ first │ nonce │ rest
//
//	bytes     8         4     2      2            1         1   n                  5 or 17 each
//	rest      packets │ age │ VIPs │ encap_port │ tunnels │ n │ program's version │ addresses
//
// The first 16 bytes are the same in all versions. An address is a byte, 4 or 6, followed by 4 or 16 bytes.
package query

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"vstun/encap"
	"vstun/encap/packet"
)

const (
	// Port is the UDP port of questions. No program listens on it: a kernel without an agent answers ICMP port
	// unreachable.
	Port = 30323

	// Len is the length of a question, and the largest length of an answer, in bytes. An answer is never longer than
	// its question.
	Len = 448

	// Version is the version of the format.
	Version = 1

	head    = 16
	fixed   = head + 8 + 4 + 2 + 2 + 1 + 1
	textMax = 40 // bytes of a program's version
	noAge   = 1<<32 - 1
)

// The magic numbers.
var magicQuestion, magicAnswer = [4]byte{'V', 'S', 'T', '?'}, [4]byte{'V', 'S', 'T', '!'}

// Question asks an agent for its VIPs from number First on, counted from 0.
type Question struct {
	Version uint8
	First   uint16
	Nonce   uint64
}

// Answer has the VIPs and tunnels that an agent accepts, and the number of packets from the director that asks.
type Answer struct {
	Version   uint8
	First     uint16 // number of the first of VIPs, counted from 0
	Nonce     uint64 // of the question
	Packets   uint64 // from the outer source of the question since the agent's start, without questions
	Age       uint32 // seconds since the last of these packets; NoAge: there was none
	Total     uint16 // VIPs that the agent has in all
	EncapPort uint16 // UDP port of gue and fou; 0: it has neither
	Tunnels   uint8  // a bit 1<<encap.Kind for each kind
	Program   string // version of the agent's program
	VIPs      []netip.Addr
}

// NoAge is the Age if there was no packet.
const NoAge = noAge

// Has reports whether the agent accepts tunnels of kind k.
func (a *Answer) Has(k encap.Kind) bool { return a.Tunnels&(1<<k) != 0 }

// ErrMagic is the error for a datagram of another format, ErrFormat the error for one that contradicts itself.
var (
	ErrMagic  = errors.New("no datagram of this format")
	ErrFormat = errors.New("bad format")
)

// AppendQuestion appends q, Len bytes, to b.
func AppendQuestion(b []byte, q Question) []byte {
	b = appendHead(b, magicQuestion, q.Version, q.First, q.Nonce)
	return append(b, make([]byte, Len-head)...)
}

// ParseQuestion parses a question of any version. A question of this version has Len bytes, one of another version has
// at least Len. ParseQuestion does not allocate.
func ParseQuestion(b []byte) (q Question, err error) {
	if len(b) < head || [4]byte(b) != magicQuestion {
		return q, ErrMagic
	}
	q.Version, q.First, q.Nonce = b[4], binary.BigEndian.Uint16(b[6:]), binary.BigEndian.Uint64(b[8:])
	switch {
	case q.Version == 0 || len(b) < Len:
		return q, ErrFormat
	case q.Version != Version:
		return q, nil
	case len(b) != Len || b[5] != 0:
		return q, ErrFormat
	}
	for _, pad := range b[head:] {
		if pad != 0 {
			return q, ErrFormat
		}
	}
	return q, nil
}

// AppendAnswer appends a, at most Len bytes, to b. It leaves out VIPs that do not fit, and shortens a.Program
// (printable).
func AppendAnswer(b []byte, a *Answer) []byte {
	start := len(b)
	b = appendHead(b, magicAnswer, a.Version, a.First, a.Nonce)
	b = binary.BigEndian.AppendUint64(b, a.Packets)
	b = binary.BigEndian.AppendUint32(b, a.Age)
	b = binary.BigEndian.AppendUint16(b, a.Total)
	b = binary.BigEndian.AppendUint16(b, a.EncapPort)
	text := printable(a.Program)
	b = append(b, a.Tunnels, byte(len(text)))
	b = append(b, text...)
	for _, vip := range a.VIPs {
		if len(b)-start+1+vip.BitLen()/8 > Len {
			break
		}
		b = append(b, 6)
		if vip.Is4() {
			b[len(b)-1] = 4
		}
		b = append(b, vip.AsSlice()...)
	}
	return b
}

// printable is the front of s that an answer may have: at most textMax bytes, all of them printable ASCII.
func printable(s string) string {
	for i := range len(s) {
		if i == textMax || s[i] < '!' || s[i] > '~' {
			return s[:i]
		}
	}
	return s
}

// ParseAnswer parses an answer. For another version it returns only the head.
func ParseAnswer(b []byte) (a Answer, err error) {
	if len(b) < head || [4]byte(b) != magicAnswer {
		return a, ErrMagic
	}
	a.Version, a.First, a.Nonce = b[4], binary.BigEndian.Uint16(b[6:]), binary.BigEndian.Uint64(b[8:])
	switch {
	case a.Version == 0:
		return a, ErrFormat
	case a.Version != Version:
		return a, nil
	case len(b) < fixed || len(b) > Len || b[5] != 0:
		return a, ErrFormat
	}
	f := b[head:]
	a.Packets, a.Age = binary.BigEndian.Uint64(f), binary.BigEndian.Uint32(f[8:])
	a.Total, a.EncapPort, a.Tunnels = binary.BigEndian.Uint16(f[12:]), binary.BigEndian.Uint16(f[14:]), f[16]
	n, rest := int(f[17]), b[fixed:]
	if n > textMax || n > len(rest) || a.Tunnels>>(encap.KindFOU+1) != 0 {
		return a, ErrFormat
	}
	a.Program, rest = string(rest[:n]), rest[n:]
	if printable(a.Program) != a.Program {
		return a, ErrFormat
	}
	for len(rest) > 0 {
		size := map[byte]int{4: 4, 6: 16}[rest[0]]
		if size == 0 || len(rest) <= size {
			return a, ErrFormat
		}
		vip, _ := netip.AddrFromSlice(rest[1 : 1+size])
		if vip.Is4In6() {
			return a, ErrFormat
		}
		a.VIPs, rest = append(a.VIPs, vip), rest[1+size:]
	}
	if int(a.First)+len(a.VIPs) > int(a.Total) {
		return a, ErrFormat
	}
	return a, nil
}

func appendHead(b []byte, magic [4]byte, version uint8, first uint16, nonce uint64) []byte {
	b = append(b, magic[:]...)
	b = append(b, version, 0)
	b = binary.BigEndian.AppendUint16(b, first)
	return binary.BigEndian.AppendUint64(b, nonce)
}

// Inner returns the inner source and destination of a question in a tunnel from a director's address to a realserver's
// address. vip selects the inner family. If that is not the outer family, both inner addresses belong to no host: the
// IPv4 dummy address (RFC 7600), or an address of IPv6's discard-only prefix (RFC 6666).
func Inner(director, realserver, vip netip.Addr) (src, dst netip.Addr) {
	if realserver.Is4() == vip.Is4() {
		return director, realserver
	}
	if vip.Is4() {
		a := netip.AddrFrom4([4]byte{192, 0, 0, 8})
		return a, a
	}
	a := netip.AddrFrom16([16]byte{0: 1, 15: 1})
	return a, a
}

// FromUDP returns the question in the UDP datagram u, and its source port. u begins with the UDP header. pseudo is the
// sum of the pseudo-header for len(u) bytes. ok is false unless u is a whole question with a correct checksum. FromUDP
// does not allocate.
func FromUDP(u []byte, pseudo uint64) (q Question, port uint16, ok bool) {
	if len(u) < packet.UDPHeaderLen {
		return q, 0, false
	}
	h := packet.UDP(u)
	port = h.SrcPort()
	if port == 0 || h.DstPort() != Port || h.Len() != len(u) || h.Checksum() == 0 ||
		packet.Fold(packet.Sum(u, pseudo)) != 0xffff {
		return q, 0, false
	}
	q, err := ParseQuestion(h.Payload())
	return q, port, err == nil
}
