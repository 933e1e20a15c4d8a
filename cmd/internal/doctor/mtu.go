package doctor

import (
	"context"
	"fmt"
	"net/netip"

	"vstun/encap/packet"
	"vstun/routing/query"
)

// sizesAtOnce is how many sizes are tried side by side.
const sizesAtOnce = 40

// measure finds the largest packet that the way takes, tunnel included, notes it if that is less than the route says,
// and returns it.
func (v *visit) measure(ctx context.Context, vip *targetVIP) int {
	most, headers := v.mtu, overhead(v.Config)
	whole := v.ping(v.Config, vip, most-headers)
	v.volley(ctx, whole)
	if whole.answered || most <= probeSize+headers {
		return most
	}
	least, most := probeSize+headers, most // the first is answered, the second is not
	for most-least > 1 && ctx.Err() == nil {
		step := max((most-least)/(sizesAtOnce+1), 1)
		var shots []*shot
		var sizes []int
		for size := least + step; size < most; size += step {
			shots, sizes = append(shots, v.ping(v.Config, vip, size-headers)), append(sizes, size)
		}
		v.volley(ctx, shots...)
		for i := len(shots) - 1; i >= 0; i-- {
			if shots[i].answered {
				least = sizes[i]
				break
			}
			most = sizes[i]
		}
	}
	v.narrow(vip, least)
	return least
}

// narrow notes that the way takes packets of size bytes at most, less than the route says.
func (v *visit) narrow(vip *targetVIP, size int) {
	f := Finding{Severity: v.grade(), Where: v.where(),
		What: fmt.Sprintf("packets of more than %d bytes vanish without a word, and the route says %d", size, v.mtu),
		Why: "uploads hang: what lies between swallows large packets, or the answers to them, and nobody is told " +
			"(a path MTU black hole)"}
	for _, t := range v.about(roadOf(v.Config, vip.addr)) {
		if tooBig(t) {
			f.Severity = Warning
			f.What = fmt.Sprintf("the way takes %d bytes, as %s says, and the route says %d", size, t.from, v.mtu)
			f.Why = "each client's first large packets are lost until he is told"
			break
		}
	}
	f.Fix = routeWithMTU(v.Destination, size)
	f.Remarks = []string{fmt.Sprintf("do the same on the realserver, for %s: its servers advertise an MSS by it",
		v.Source)}
	if f.Severity == Error {
		f.Remarks = append(f.Remarks, "let ICMP (fragmentation needed, packet too big) pass on the way")
	}
	v.find(f)
}

// routeWithMTU is the command that gives the route to a an MTU.
func routeWithMTU(a netip.Addr, mtu int) string {
	command := fmt.Sprintf("ip route replace %s", netip.PrefixFrom(a, a.BitLen()))
	if hop, ok, err := query.Lookup(a, netip.Addr{}); ok && err == nil {
		if hop.Gateway.IsValid() {
			command += fmt.Sprintf(" via %s", hop.Gateway)
		}
		command += " dev " + hop.Link
	}
	return fmt.Sprintf("%s mtu %d", command, mtu)
}

// tooBig reports whether the error says that a packet was too big for what comes.
func tooBig(t trouble) bool {
	if t.from.Is4() {
		return t.kind == packet.ICMPUnreachable && t.code == packet.ICMPCodeFragNeeded
	}
	return t.kind == packet.ICMPv6TooBig
}
