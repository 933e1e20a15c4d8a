package nft

import (
	"encoding/binary"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
)

// match evaluates a condition of xtables as iptables-nft writes it.
func (e *evaluation) match(m *expr.Match) Tristate {
	switch info := m.Info.(type) {
	case *xt.ConntrackMtinfo3:
		return e.conntrack(info.MatchFlags, info.InvertFlags, info.StateMask)
	case *xt.ConntrackMtinfo2:
		return e.conntrack(info.MatchFlags, info.InvertFlags, info.StateMask)
	case *xt.Tcp:
		return e.ports(info.DstPorts, info.SrcPorts == [2]uint16{0, 65535} && info.FlagsMask == 0 && info.Option == 0 &&
			info.InvFlags == 0)
	case *xt.Udp:
		return e.ports(info.DstPorts, info.SrcPorts == [2]uint16{0, 65535} && info.InvFlags == 0)
	}
	if m.Name == "comment" {
		return Yes
	}
	return Maybe
}

// ports reports whether the packet's destination port is in a range. only is false if the match has other conditions as
// well; then the result is at most Maybe.
func (e *evaluation) ports(r [2]uint16, only bool) Tristate {
	b := e.payload(&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2})
	if b == nil {
		return Maybe
	}
	port := binary.BigEndian.Uint16(b)
	in := tristate(port >= r[0] && port <= r[1])
	if !only {
		return min(in, Maybe)
	}
	return in
}

// conntrack evaluates the match conntrack with --ctstate alone. The mask's value 1 means invalid. The states of enum
// ip_conntrack_info have the values from 2 on (include/uapi/linux/netfilter/xt_conntrack.h).
func (e *evaluation) conntrack(flags, invert, mask uint16) Tristate {
	if xt.ConntrackFlags(flags)&^(xt.ConntrackState|xt.ConntrackStateAlias) != 0 {
		return Maybe
	}
	in := uint32(mask)&uint32(e.State) != 0
	return tristate(in != (xt.ConntrackFlags(invert)&xt.ConntrackState != 0))
}

// notracks reports whether a target of xtables keeps the packet from connection tracking: the first field of CT's
// xt_ct_target_info is its flags, of which XT_CT_NOTRACK is 1 (include/uapi/linux/netfilter/xt_CT.h).
func notracks(t *expr.Target) bool {
	info, ok := t.Info.(*xt.Unknown)
	return t.Name == "NOTRACK" || t.Name == "CT" && ok && len(*info) >= 2 && binary.NativeEndian.Uint16(*info)&1 != 0
}
