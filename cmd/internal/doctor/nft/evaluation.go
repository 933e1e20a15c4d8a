package nft

import (
	"bytes"
	"encoding/binary"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"vstun/encap/packet"
)

// evaluation is the evaluation of one base chain for a packet.
type evaluation struct {
	*Ruleset
	*PacketSpec
	early         bool // connection tracking comes later: notrack has an effect
	maybeAccepted bool // a rule whose conditions are Maybe has accepted the packet
	drops         Tristate
}

// drop records that a rule drops the packet; holds is the value of the rule's conditions.
func (e *evaluation) drop(holds Tristate) {
	if e.maybeAccepted {
		holds = min(holds, Maybe)
	}
	e.drops = max(e.drops, holds)
}

// end is the kind of end of a chain's evaluation.
type end int

const (
	passes end = iota // at the chain's end, or by return
	ended             // accepted or dropped
)

// maxDepth is the limit of nested jumps: NFT_JUMP_STACK_SIZE.
const maxDepth = 16

// chain evaluates a chain. entered is the value of the conditions on the path to it.
func (e *evaluation) chain(c *Chain, entered Tristate, depth int) end {
	if depth > maxDepth {
		return passes
	}
	for _, rule := range c.rules {
		holds, verdict := e.rule(c, rule)
		holds = min(holds, entered)
		if holds == No || verdict == nil {
			continue
		}
		switch verdict.Kind {
		case expr.VerdictDrop:
			e.drop(holds)
			if holds == Yes {
				return ended
			}
		case expr.VerdictAccept, expr.VerdictQueue, expr.VerdictStolen:
			if holds == Yes {
				return ended
			}
			e.maybeAccepted = true
		case expr.VerdictJump, expr.VerdictGoto:
			if to := e.named(c, verdict.Chain); to != nil {
				if e.chain(to, holds, depth+1) == ended {
					return ended
				}
				if holds == Yes && verdict.Kind == expr.VerdictGoto { // its end is this chain's
					return passes
				}
			}
		case expr.VerdictReturn:
			if holds == Yes {
				return passes
			}
		}
	}
	return passes
}

// named returns the chain with this name in the table of from, or nil.
func (e *evaluation) named(from *Chain, name string) *Chain {
	at := slices.IndexFunc(e.chains, func(c *Chain) bool {
		return c.Name == name && c.Table == from.Table && c.chain.Table.Family == from.chain.Table.Family
	})
	if at < 0 {
		return nil
	}
	return e.chains[at]
}

// registers are the values that a rule has loaded. An unknown value is absent.
type registers map[uint32][]byte

// rule returns whether a rule's conditions hold, and its verdict; nil means none.
func (e *evaluation) rule(c *Chain, rule *nftables.Rule) (holds Tristate, verdict *expr.Verdict) {
	holds = Yes
	regs := registers{}
	test := func(t Tristate) { holds = min(holds, t) }
	for _, x := range rule.Exprs {
		switch x := x.(type) {
		case *expr.Meta:
			regs.set(x.Register, e.meta(x.Key))
		case *expr.Payload:
			if x.OperationType == expr.PayloadLoad {
				regs.set(x.DestRegister, e.payload(x))
			}
		case *expr.Ct:
			var v []byte
			if x.Key == expr.CtKeySTATE {
				v = native(uint32(e.State))
			}
			regs.set(x.Register, v)
		case *expr.Fib:
			regs.set(x.Register, e.fib(x))
		case *expr.Bitwise:
			regs.set(x.DestRegister, masked(regs[x.SourceRegister], x))
		case *expr.Cmp:
			test(compare(regs[x.Register], x))
		case *expr.Range:
			test(between(regs[x.Register], x))
		case *expr.Lookup:
			t, v := e.lookup(c.chain.Table, regs[x.SourceRegister], x)
			test(t)
			if x.IsDestRegSet && x.DestRegister == unix.NFT_REG_VERDICT && v != nil {
				verdict = v
			}
		case *expr.Match:
			test(e.match(x))
		case *expr.Limit, *expr.Connlimit, *expr.Quota, *expr.Dynset, *expr.Numgen, *expr.Hash, *expr.Exthdr:
			test(Maybe)
		case *expr.Verdict:
			verdict = x
		case *expr.Reject:
			verdict = &expr.Verdict{Kind: expr.VerdictDrop}
		case *expr.Notrack:
			e.notrack(holds)
		case *expr.Target:
			if notracks(x) {
				e.notrack(holds)
			}
			if x.Name == "REJECT" || x.Name == "DROP" {
				verdict = &expr.Verdict{Kind: expr.VerdictDrop}
			}
		}
		if holds == No {
			return No, nil
		}
	}
	return holds, verdict
}

// notrack keeps the packet from connection tracking. holds is the value of the rule's conditions.
func (e *evaluation) notrack(holds Tristate) {
	if e.early && holds == Yes {
		e.State = Untracked
	}
}

func (r registers) set(register uint32, value []byte) {
	if value == nil {
		delete(r, register)
	} else {
		r[register] = value
	}
}

func native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// meta returns a fact about the packet that is not in its bytes, or nil if it is unknown.
func (e *evaluation) meta(key expr.MetaKey) []byte {
	name := func(device string) []byte { return append([]byte(device), make([]byte, unix.IFNAMSIZ-len(device))...) }
	six := packet.Version(e.Packet) == 6
	switch key {
	case expr.MetaKeyIIFNAME:
		return name(e.IIF)
	case expr.MetaKeyOIFNAME:
		return name(e.OIF)
	case expr.MetaKeyIIF:
		return native(uint32(e.Index[e.IIF]))
	case expr.MetaKeyOIF:
		return native(uint32(e.Index[e.OIF]))
	case expr.MetaKeyL4PROTO:
		return []byte{e.protocol()}
	case expr.MetaKeyNFPROTO:
		if six {
			return []byte{unix.NFPROTO_IPV6}
		}
		return []byte{unix.NFPROTO_IPV4}
	case expr.MetaKeyPROTOCOL:
		return binary.BigEndian.AppendUint16(nil, packet.EtherType(packet.Version(e.Packet)))
	}
	return nil
}

// protocol returns the number of the packet's transport protocol.
func (e *evaluation) protocol() uint8 {
	if packet.Version(e.Packet) == 6 {
		return packet.IPv6(e.Packet).NextHeader()
	}
	return packet.IPv4(e.Packet).Protocol()
}

// payload returns bytes of the packet, or nil if they are unknown.
func (e *evaluation) payload(x *expr.Payload) []byte {
	// Where the source address begins and ends, and the length of the IP header.
	source, at, transport := [2]uint32{12, 16}, x.Offset, uint32(packet.IPv4HeaderLen)
	if packet.Version(e.Packet) == 6 {
		source, transport = [2]uint32{8, 24}, packet.IPv6HeaderLen
	}
	switch x.Base {
	case expr.PayloadBaseNetworkHeader:
		if e.UnknownSource && at < source[1] && at+x.Len > source[0] {
			return nil
		}
	case expr.PayloadBaseTransportHeader:
		if e.UnknownSource && at < 2 && e.hasPorts() {
			return nil
		}
		at += transport
	default:
		return nil
	}
	if at+x.Len > uint32(len(e.Packet)) {
		return nil
	}
	return e.Packet[at : at+x.Len]
}

// hasPorts reports whether the packet's transport header begins with its source port.
func (e *evaluation) hasPorts() bool {
	p := e.protocol()
	return p == packet.ProtoTCP || p == packet.ProtoUDP || p == packet.ProtoSCTP
}

// fib returns the device on which the host reaches the packet's source, if a rule asks for it: IIF, or 0. If a rule
// asks only whether a route leads out of IIF, fib returns 1 or 0. It returns nil for other questions. See
// net/ipv4/netfilter/nft_fib_ipv4.c.
func (e *evaluation) fib(x *expr.Fib) []byte {
	switch {
	case !x.FlagSADDR || !x.FlagIIF || x.ResultADDRTYPE:
		return nil
	case x.FlagPRESENT && e.ReversePath:
		return native(1)
	case x.ResultOIFNAME && !x.FlagPRESENT && e.ReversePath:
		return e.meta(expr.MetaKeyIIFNAME)
	case x.ResultOIFNAME && !x.FlagPRESENT:
		return make([]byte, unix.IFNAMSIZ)
	case e.ReversePath:
		return e.meta(expr.MetaKeyIIF)
	}
	return native(0)
}

// masked evaluates Bitwise: (value & mask) ^ xor.
func masked(value []byte, x *expr.Bitwise) []byte {
	if len(value) < len(x.Mask) || len(x.Mask) != len(x.Xor) || len(x.Mask) == 0 {
		return nil
	}
	out := make([]byte, len(x.Mask))
	for i := range out {
		out[i] = value[i]&x.Mask[i] ^ x.Xor[i]
	}
	return out
}

func tristate(b bool) Tristate {
	if b {
		return Yes
	}
	return No
}

// compare evaluates Cmp. A shorter operand is compared with the front of the value: "eth*".
func compare(value []byte, x *expr.Cmp) Tristate {
	if value == nil || len(value) < len(x.Data) {
		return Maybe
	}
	c := bytes.Compare(value[:len(x.Data)], x.Data)
	switch x.Op {
	case expr.CmpOpEq:
		return tristate(c == 0)
	case expr.CmpOpNeq:
		return tristate(c != 0)
	case expr.CmpOpLt:
		return tristate(c < 0)
	case expr.CmpOpLte:
		return tristate(c <= 0)
	case expr.CmpOpGt:
		return tristate(c > 0)
	case expr.CmpOpGte:
		return tristate(c >= 0)
	}
	return Maybe
}

// between evaluates Range.
func between(value []byte, x *expr.Range) Tristate {
	if value == nil || len(value) < len(x.FromData) || len(x.FromData) != len(x.ToData) {
		return Maybe
	}
	value = value[:len(x.FromData)]
	in := bytes.Compare(value, x.FromData) >= 0 && bytes.Compare(value, x.ToData) <= 0
	return tristate(in == (x.Op == expr.CmpOpEq))
}

// lookup evaluates Lookup: it returns whether the value is in a set and, if the set is a map of verdicts, the value's
// verdict.
func (e *evaluation) lookup(t *nftables.Table, value []byte, x *expr.Lookup) (Tristate, *expr.Verdict) {
	name := setName{t.Family, t.Name, x.SetName}
	elements := e.elements[name]
	set, known := e.sets[name]
	if value == nil || !known || set.Concatenation {
		return Maybe, worstVerdict(elements)
	}
	found := slices.IndexFunc(elements, func(el nftables.SetElement) bool {
		return !el.IntervalEnd && len(el.Key) <= len(value) && bytes.Equal(el.Key, value[:len(el.Key)])
	})
	if set.Interval {
		found = findInterval(elements, value)
	}
	if found < 0 {
		return tristate(x.Invert), nil
	}
	return tristate(!x.Invert), elementVerdict(elements[found])
}

// findInterval returns the index of the element whose interval contains the value, or -1. It finds the greatest element
// that is at most the value. That element must not be the end of an interval.
func findInterval(elements []nftables.SetElement, value []byte) int {
	best := -1
	for i, el := range elements {
		if len(el.Key) > len(value) || bytes.Compare(el.Key, value[:len(el.Key)]) > 0 {
			continue
		}
		if best < 0 || bytes.Compare(el.Key, elements[best].Key) > 0 ||
			bytes.Equal(el.Key, elements[best].Key) && elements[best].IntervalEnd {
			best = i
		}
	}
	if best >= 0 && elements[best].IntervalEnd {
		return -1
	}
	return best
}

// worstVerdict returns the worst verdict of a map, for an unknown key; nil for a set.
func worstVerdict(elements []nftables.SetElement) (worst *expr.Verdict) {
	for _, el := range elements {
		if v := elementVerdict(el); v != nil && (worst == nil || v.Kind == expr.VerdictDrop) {
			worst = v
		}
	}
	return worst
}

// elementVerdict returns the verdict of a map's element, or nil in a set. The library does not decode the kernel's
// attributes of it.
func elementVerdict(el nftables.SetElement) *expr.Verdict {
	if el.VerdictData != nil || len(el.Val) == 0 {
		return el.VerdictData
	}
	attributes, err := netlink.UnmarshalAttributes(el.Val)
	if err != nil {
		return nil
	}
	v := &expr.Verdict{}
	for _, a := range attributes {
		switch {
		case a.Type == unix.NFTA_VERDICT_CODE && len(a.Data) == 4:
			v.Kind = expr.VerdictKind(int32(binary.BigEndian.Uint32(a.Data)))
		case a.Type == unix.NFTA_VERDICT_CHAIN:
			v.Chain = string(bytes.TrimRight(a.Data, "\x00"))
		}
	}
	return v
}
