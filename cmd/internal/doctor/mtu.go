package doctor

import (
	"context"
	"fmt"
	"net/netip"

	"vstun/encap/packet"
	"vstun/routing/query"
)

// sizesAtOnce is the number of packet sizes that are tried at once.
const sizesAtOnce = 40

// measure returns the path MTU in bytes, tunnel headers included. It records a finding if the path MTU is less than the
// route's MTU.
func (x *targetExam) measure(ctx context.Context, vip *targetVIP) int {
	most, headers := x.mtu, overhead(x.Config)
	whole := x.ping(x.Config, vip, most-headers)
	x.sendAll(ctx, whole)
	if whole.answered || most <= probeSize+headers {
		return most
	}
	least, most := probeSize+headers, most // a packet of size least is answered, one of size most is not
	for most-least > 1 && ctx.Err() == nil {
		step := max((most-least)/(sizesAtOnce+1), 1)
		var probes []*probe
		var sizes []int
		for size := least + step; size < most; size += step {
			probes, sizes = append(probes, x.ping(x.Config, vip, size-headers)), append(sizes, size)
		}
		x.sendAll(ctx, probes...)
		for i := len(probes) - 1; i >= 0; i-- {
			if probes[i].answered {
				least = sizes[i]
				break
			}
			most = sizes[i]
		}
	}
	x.narrow(vip, least)
	return least
}

// narrow records that the path MTU is only size bytes, less than the route's MTU.
func (x *targetExam) narrow(vip *targetVIP, size int) {
	f := Finding{Severity: x.grade(), Where: x.where(),
		What: fmt.Sprintf("packets of more than %d bytes get lost without an ICMP error, and the route's MTU is %d",
			size, x.mtu),
		Why: "uploads hang: the network drops large packets, or the answers to them, and their senders get no ICMP " +
			"error (a path MTU black hole)"}
	for _, t := range x.errorsAbout(tunnelFlow(x.Config, vip.addr)) {
		if tooBig(t) {
			f.Severity = Warning
			f.What = fmt.Sprintf("the path MTU is %d, as %s reports, and the route's MTU is %d", size, t.from, x.mtu)
			f.Why = "each client loses its first large packets, until it learns the path MTU"
			break
		}
	}
	f.Fix = routeWithMTU(x.Destination, size)
	f.Remarks = []string{fmt.Sprintf("do the same on the realserver, for %s: its servers derive their MSS from it",
		x.Source)}
	if f.Severity == Error {
		f.Remarks = append(f.Remarks, "let ICMP (fragmentation needed, packet too big) pass on the path")
	}
	x.find(f)
}

// routeWithMTU returns the command that gives the route to a an MTU.
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

// tooBig reports whether the error is about a packet larger than the next link's MTU.
func tooBig(t icmpError) bool {
	if t.from.Is4() {
		return t.kind == packet.ICMPUnreachable && t.code == packet.ICMPCodeFragNeeded
	}
	return t.kind == packet.ICMPv6TooBig
}
