package doctor

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"vstun/encap/packet"
)

// What nftables, and with it iptables where that is iptables-nft, would do with a packet. Each rule's conditions are
// computed as the kernel does (net/netfilter/nf_tables_core.c, nft_do_chain), in three values: those that hang on what
// is not known of the packet hold perhaps.

// suspect is a packet as the firewall sees it.
type suspect struct {
	packet   []byte // from the IP header on, without options or extension headers
	anybody  bool   // its source address and port are not known
	iif, oif string // "" where the hook has none
	index    map[string]int
	state    uint32 // of conntrack: expr.CtStateBitNEW, …
	back     bool   // the host would answer its source by iif (the expression fib); else by another device
}

// rules is the firewall of this network namespace.
type rules struct {
	chains   []*nftables.Chain
	rules    map[*nftables.Chain][]*nftables.Rule
	elements map[setName][]nftables.SetElement
	sets     map[setName]*nftables.Set
}

type setName struct {
	family nftables.TableFamily
	table  string
	set    string
}

// errNoTables says that the kernel has no nftables.
var errNoTables = errors.New("the kernel has no nftables")

// readRules reads the firewall. It changes nothing, and needs CAP_NET_ADMIN.
func readRules() (*rules, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	r := &rules{rules: map[*nftables.Chain][]*nftables.Rule{}, elements: map[setName][]nftables.SetElement{},
		sets: map[setName]*nftables.Set{}}
	tables, err := conn.ListTables()
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EINVAL):
		return nil, errNoTables
	case err != nil:
		return nil, fmt.Errorf("nftables: %w: run as root, or with CAP_NET_ADMIN", err)
	}
	if r.chains, err = conn.ListChains(); err != nil {
		return nil, fmt.Errorf("nftables: list chains: %w", err)
	}
	for _, c := range r.chains {
		if r.rules[c], err = conn.GetRules(c.Table, c); err != nil {
			return nil, fmt.Errorf("nftables: list rules of %s: %w", c.Name, err)
		}
	}
	for _, t := range tables {
		sets, err := conn.GetSets(t)
		if err != nil {
			return nil, fmt.Errorf("nftables: list sets of %s: %w", t.Name, err)
		}
		for _, s := range sets {
			name := setName{t.Family, t.Name, s.Name}
			r.sets[name] = s
			if r.elements[name], err = conn.GetSetElements(s); err != nil {
				return nil, fmt.Errorf("nftables: list set %s: %w", s.Name, err)
			}
		}
	}
	return r, nil
}

// truth is what is known of a condition.
type truth int

const (
	no truth = iota
	perhaps
	yes
)

// fate is what becomes of a packet.
type fate struct {
	drops truth
	where *nftables.Chain // that drops it
}

// judge is what becomes of a packet of a family at a hook: each base chain there is asked in the order of priority,
// until one drops it.
func (r *rules) judge(s *suspect, hook nftables.ChainHook) fate {
	family := nftables.TableFamilyIPv4
	if packet.Version(s.packet) == 6 {
		family = nftables.TableFamilyIPv6
	}
	var bases []*nftables.Chain
	for _, c := range r.chains {
		if c.Hooknum != nil && *c.Hooknum == hook && c.Type != nftables.ChainTypeNAT && (c.Table.Family == family ||
			c.Table.Family == nftables.TableFamilyINet) {
			bases = append(bases, c)
		}
	}
	slices.SortStableFunc(bases, func(a, b *nftables.Chain) int { return int(*a.Priority) - int(*b.Priority) })
	worst := fate{}
	for _, c := range bases {
		w := walk{rules: r, suspect: s}
		end := w.chain(c, yes, 0)
		if end == passes && c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
			w.drop(yes)
		}
		if w.drops > worst.drops {
			worst = fate{w.drops, c}
		}
		if worst.drops == yes {
			break
		}
	}
	return worst
}

// walk is the way of a packet through a base chain.
type walk struct {
	*rules
	*suspect
	spared bool // a rule that holds perhaps has accepted it
	drops  truth
}

// drop notes that a rule which holds so drops the packet.
func (w *walk) drop(holds truth) {
	if w.spared {
		holds = min(holds, perhaps)
	}
	w.drops = max(w.drops, holds)
}

// end is how the way through a chain ends.
type end int

const (
	passes end = iota // it comes to the chain's end
	ended             // accepted or dropped
)

// deepest is how far jumps may go: NFT_JUMP_STACK_SIZE.
const deepest = 16

// chain goes through a chain that is entered so.
func (w *walk) chain(c *nftables.Chain, entered truth, depth int) end {
	if depth > deepest {
		return passes
	}
	for _, rule := range w.rules.rules[c] {
		holds, verdict := w.rule(c, rule)
		holds = min(holds, entered)
		if holds == no || verdict == nil {
			continue
		}
		switch verdict.Kind {
		case expr.VerdictDrop:
			w.drop(holds)
			if holds == yes {
				return ended
			}
		case expr.VerdictAccept, expr.VerdictQueue, expr.VerdictStolen:
			if holds == yes {
				return ended
			}
			w.spared = true
		case expr.VerdictJump, expr.VerdictGoto:
			if to := w.named(c.Table, verdict.Chain); to != nil {
				if w.chain(to, holds, depth+1) == ended {
					return ended
				}
				if holds == yes && verdict.Kind == expr.VerdictGoto { // its end is this chain's
					return passes
				}
			}
		case expr.VerdictReturn:
			if holds == yes {
				return passes
			}
		}
	}
	return passes
}

func (w *walk) named(t *nftables.Table, name string) *nftables.Chain {
	for _, c := range w.chains {
		if c.Name == name && c.Table.Name == t.Name && c.Table.Family == t.Family {
			return c
		}
	}
	return nil
}

// registers are what a rule has loaded: absent is what is not known.
type registers map[uint32][]byte

// rule reports whether a rule's conditions hold, and its verdict, nil for none.
func (w *walk) rule(c *nftables.Chain, rule *nftables.Rule) (holds truth, verdict *expr.Verdict) {
	holds = yes
	regs := registers{}
	test := func(t truth) { holds = min(holds, t) }
	for _, e := range rule.Exprs {
		switch e := e.(type) {
		case *expr.Meta:
			regs.set(e.Register, w.meta(e.Key))
		case *expr.Payload:
			if e.OperationType == expr.PayloadLoad {
				regs.set(e.DestRegister, w.payload(e))
			}
		case *expr.Ct:
			var v []byte
			if e.Key == expr.CtKeySTATE {
				v = native(w.state)
			}
			regs.set(e.Register, v)
		case *expr.Fib:
			regs.set(e.Register, w.fib(e))
		case *expr.Bitwise:
			regs.set(e.DestRegister, masked(regs[e.SourceRegister], e))
		case *expr.Cmp:
			test(compare(regs[e.Register], e))
		case *expr.Range:
			test(between(regs[e.Register], e))
		case *expr.Lookup:
			t, v := w.lookup(c.Table, regs[e.SourceRegister], e)
			test(t)
			if e.IsDestRegSet && e.DestRegister == unix.NFT_REG_VERDICT && v != nil {
				verdict = v
			}
		case *expr.Match:
			test(w.match(e))
		case *expr.Limit, *expr.Connlimit, *expr.Quota, *expr.Dynset, *expr.Numgen, *expr.Hash, *expr.Exthdr:
			test(perhaps)
		case *expr.Verdict:
			verdict = e
		case *expr.Reject:
			verdict = &expr.Verdict{Kind: expr.VerdictDrop}
		case *expr.Target:
			if e.Name == "REJECT" || e.Name == "DROP" {
				verdict = &expr.Verdict{Kind: expr.VerdictDrop}
			}
		}
		if holds == no {
			return no, nil
		}
	}
	return holds, verdict
}

func (r registers) set(register uint32, value []byte) {
	if value == nil {
		delete(r, register)
	} else {
		r[register] = value
	}
}

func native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// meta is what is known of the packet beside its bytes; nil is nothing.
func (w *walk) meta(key expr.MetaKey) []byte {
	name := func(device string) []byte { return append([]byte(device), make([]byte, unix.IFNAMSIZ-len(device))...) }
	six := packet.Version(w.packet) == 6
	switch key {
	case expr.MetaKeyIIFNAME:
		return name(w.iif)
	case expr.MetaKeyOIFNAME:
		return name(w.oif)
	case expr.MetaKeyIIF:
		return native(uint32(w.index[w.iif]))
	case expr.MetaKeyOIF:
		return native(uint32(w.index[w.oif]))
	case expr.MetaKeyL4PROTO:
		if six {
			return []byte{packet.IPv6(w.packet).NextHeader()}
		}
		return []byte{packet.IPv4(w.packet).Protocol()}
	case expr.MetaKeyNFPROTO:
		if six {
			return []byte{unix.NFPROTO_IPV6}
		}
		return []byte{unix.NFPROTO_IPV4}
	case expr.MetaKeyPROTOCOL:
		return binary.BigEndian.AppendUint16(nil, packet.EtherType(packet.Version(w.packet)))
	}
	return nil
}

// payload is bytes of the packet; nil where they are not known.
func (w *walk) payload(e *expr.Payload) []byte {
	source, at, transport := [2]uint32{12, 16}, e.Offset, uint32(20)
	if packet.Version(w.packet) == 6 {
		source, transport = [2]uint32{8, 24}, 40
	}
	switch e.Base {
	case expr.PayloadBaseNetworkHeader:
		if w.anybody && at < source[1] && at+e.Len > source[0] {
			return nil
		}
	case expr.PayloadBaseTransportHeader:
		if w.anybody && at < 2 && w.hasPorts() {
			return nil
		}
		at += transport
	default:
		return nil
	}
	if at+e.Len > uint32(len(w.packet)) {
		return nil
	}
	return w.packet[at : at+e.Len]
}

// hasPorts reports whether the packet's transport header begins with its source port.
func (w *walk) hasPorts() bool {
	protocol := w.meta(expr.MetaKeyL4PROTO)[0]
	return protocol == packet.ProtoTCP || protocol == packet.ProtoUDP || protocol == packet.ProtoSCTP
}

// fib is what the host's routes say of the packet's source, where it is asked by which device that is reached: the one
// by which the packet came in, or 0 (net/ipv4/netfilter/nft_fib_ipv4.c).
func (w *walk) fib(e *expr.Fib) []byte {
	switch {
	case !e.FlagSADDR || !e.FlagIIF || e.ResultADDRTYPE:
		return nil
	case e.FlagPRESENT && w.back:
		return native(1)
	case e.ResultOIFNAME && !e.FlagPRESENT && w.back:
		return w.meta(expr.MetaKeyIIFNAME)
	case e.ResultOIFNAME && !e.FlagPRESENT:
		return make([]byte, unix.IFNAMSIZ)
	case w.back:
		return w.meta(expr.MetaKeyIIF)
	}
	return native(0)
}

// masked is Bitwise: (value & mask) ^ xor.
func masked(value []byte, e *expr.Bitwise) []byte {
	if len(value) < len(e.Mask) || len(e.Mask) != len(e.Xor) || len(e.Mask) == 0 {
		return nil
	}
	out := make([]byte, len(e.Mask))
	for i := range out {
		out[i] = value[i]&e.Mask[i] ^ e.Xor[i]
	}
	return out
}

func truthOf(b bool) truth {
	if b {
		return yes
	}
	return no
}

// compare is Cmp. A shorter operand is compared with the front: "eth*".
func compare(value []byte, e *expr.Cmp) truth {
	if value == nil || len(value) < len(e.Data) {
		return perhaps
	}
	c := bytes.Compare(value[:len(e.Data)], e.Data)
	switch e.Op {
	case expr.CmpOpEq:
		return truthOf(c == 0)
	case expr.CmpOpNeq:
		return truthOf(c != 0)
	case expr.CmpOpLt:
		return truthOf(c < 0)
	case expr.CmpOpLte:
		return truthOf(c <= 0)
	case expr.CmpOpGt:
		return truthOf(c > 0)
	case expr.CmpOpGte:
		return truthOf(c >= 0)
	}
	return perhaps
}

func between(value []byte, e *expr.Range) truth {
	if value == nil || len(value) < len(e.FromData) || len(e.FromData) != len(e.ToData) {
		return perhaps
	}
	value = value[:len(e.FromData)]
	in := bytes.Compare(value, e.FromData) >= 0 && bytes.Compare(value, e.ToData) <= 0
	return truthOf(in == (e.Op == expr.CmpOpEq))
}

// lookup is Lookup: whether the value is in a set, and in a map of verdicts, which one it has there.
func (w *walk) lookup(t *nftables.Table, value []byte, e *expr.Lookup) (truth, *expr.Verdict) {
	name := setName{t.Family, t.Name, e.SetName}
	set, known := w.sets[name]
	if value == nil || !known || set.Concatenation {
		return perhaps, anyVerdict(w.elements[name])
	}
	found := slices.IndexFunc(w.elements[name], func(x nftables.SetElement) bool {
		return !x.IntervalEnd && len(x.Key) <= len(value) && bytes.Equal(x.Key, value[:len(x.Key)])
	})
	if set.Interval {
		found = inInterval(w.elements[name], value)
	}
	if found < 0 {
		return truthOf(e.Invert), nil
	}
	return truthOf(!e.Invert), verdictOf(w.elements[name][found])
}

// inInterval is the element of a set of intervals in which the value lies: the greatest that is not greater, if it is
// no interval's end; or -1.
func inInterval(all []nftables.SetElement, value []byte) int {
	best := -1
	for i, x := range all {
		if len(x.Key) > len(value) || bytes.Compare(x.Key, value[:len(x.Key)]) > 0 {
			continue
		}
		if best < 0 || bytes.Compare(x.Key, all[best].Key) > 0 || bytes.Equal(x.Key, all[best].Key) &&
			all[best].IntervalEnd {
			best = i
		}
	}
	if best >= 0 && all[best].IntervalEnd {
		return -1
	}
	return best
}

// anyVerdict is the worst verdict of a map whose key is not known; nil for a set.
func anyVerdict(all []nftables.SetElement) (worst *expr.Verdict) {
	for _, x := range all {
		if v := verdictOf(x); v != nil && (worst == nil || v.Kind == expr.VerdictDrop) {
			worst = v
		}
	}
	return worst
}

// verdictOf is the verdict that a map has for an element; nil in a set. The library leaves it as the kernel's
// attributes.
func verdictOf(x nftables.SetElement) *expr.Verdict {
	if x.VerdictData != nil || len(x.Val) == 0 {
		return x.VerdictData
	}
	attributes, err := netlink.UnmarshalAttributes(x.Val)
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

// match is a condition of xtables.
func (w *walk) match(e *expr.Match) truth {
	switch info := e.Info.(type) {
	case *xt.ConntrackMtinfo3:
		return w.conntrack(info.MatchFlags, info.InvertFlags, info.StateMask)
	case *xt.ConntrackMtinfo2:
		return w.conntrack(info.MatchFlags, info.InvertFlags, info.StateMask)
	case *xt.Tcp:
		return w.ports(info.DstPorts, info.SrcPorts == [2]uint16{0, 65535} && info.FlagsMask == 0 && info.Option == 0 &&
			info.InvFlags == 0)
	case *xt.Udp:
		return w.ports(info.DstPorts, info.SrcPorts == [2]uint16{0, 65535} && info.InvFlags == 0)
	}
	if e.Name == "comment" {
		return yes
	}
	return perhaps
}

// ports reports whether the packet's destination port is in a range, and whether that is all that is asked for.
func (w *walk) ports(r [2]uint16, all bool) truth {
	b := w.payload(&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2})
	if b == nil {
		return perhaps
	}
	port := binary.BigEndian.Uint16(b)
	in := truthOf(port >= r[0] && port <= r[1])
	if !all {
		return min(in, perhaps)
	}
	return in
}

// conntrack is the match of that name, with --ctstate alone. A state's bit is 1 for invalid, then those of enum
// ip_conntrack_info, from 2 on (include/uapi/linux/netfilter/xt_conntrack.h).
func (w *walk) conntrack(flags, invert, mask uint16) truth {
	if xt.ConntrackFlags(flags)&^(xt.ConntrackState|xt.ConntrackStateAlias) != 0 {
		return perhaps
	}
	in := uint32(mask)&w.state != 0
	return truthOf(in != (xt.ConntrackFlags(invert)&xt.ConntrackState != 0))
}
