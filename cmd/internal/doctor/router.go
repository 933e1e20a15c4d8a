package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"vstun/cmd/internal/api"
	"vstun/encap/packet"
	"vstun/routing/query"
)

// routed is a probe for one VIP that this host sends to its router.
type routed struct {
	*probe
	vip    netip.Addr
	source netip.Addr
}

// routerHops is the TTL of such a probe. The probe comes back, or ends at the second router: that router's ICMP error
// shows its path.
const routerHops = 2

// router examines whether this host's router sends the VIPs' packets here. It sends the router a probe for each VIP,
// from this host's own address. The sniffer sees a probe that comes back before the kernel drops it: neither the
// director nor a realserver receives the probe.
func (d *Director) router(ctx context.Context, res *result, running bool, before *api.DirectorStatus) {
	devices, err := query.Devices()
	if res.failed(err) {
		return
	}
	p, err := newProber()
	if res.failed(err) {
		return
	}
	defer func() { _ = p.close() }()
	var all []routed
	var probes []*probe
	for _, vip := range d.vips() {
		r, why := d.routed(p, vip, devices, running)
		if why != "" {
			res.skip("VIP %s: %s", vip, why)
			continue
		}
		if r.probe != nil {
			all, probes = append(all, r), append(probes, r.probe)
		}
	}
	p.sendAll(ctx, probes...)
	var after api.DirectorStatus
	if running {
		_ = api.Get(ctx, d.Config.Control, "/status", &after) // a director that hangs has no counters
	}
	for _, r := range all {
		res.arrives(p, &r, before, &after)
	}
}

// routed makes the probe for a VIP. If it cannot, why is the reason. A VIP in a subnet of this host gets no probe: the
// check neighbours examines it.
func (d *Director) routed(p *prober, vip netip.Addr, devices []query.Device, running bool) (r routed, why string) {
	for _, device := range devices {
		if _, in := subnetOf(device, vip); in {
			return r, ""
		}
	}
	if vip.Is6() && !running { // a router may redirect it to this host itself; hosts that forward ignore that
		return r, "whether a router sends its packets here can be examined only while the director runs"
	}
	hop, ok, err := query.Lookup(outside[vip.Is6()], netip.Addr{})
	if err != nil || !ok || !hop.Gateway.IsValid() ||
		!slices.ContainsFunc(devices, func(d query.Device) bool { return d.Name == hop.Link }) ||
		hop.Link == d.Config.TUN || !hop.Source.IsValid() || hop.Source.IsLinkLocalUnicast() {
		return r, "this host has no default route to a router that could send the VIP's packets here"
	}
	r = routed{vip: vip, source: hop.Source}
	if r.probe, err = p.echo(hop.Source, vip, probeSize, untunnelled); err != nil {
		return r, err.Error()
	}
	r.via, r.device = hop.Gateway, devices[slices.IndexFunc(devices,
		func(d query.Device) bool { return d.Name == hop.Link })].Index
	if vip.Is4() {
		h := packet.IPv4(r.packet)
		h.SetTTL(routerHops)
		h.SetChecksum()
	} else {
		packet.IPv6(r.packet).SetHopLimit(routerHops)
	}
	return r, ""
}

// arrives records whether a VIP's packets come here.
func (res *result) arrives(p *prober, r *routed, before, after *api.DirectorStatus) {
	was, _ := forwarded(before, r.vip)
	total, alone := forwarded(after, r.vip)
	switch {
	case r.back:
		res.fine("%s sends packets for %s here", r.via, r.vip)
		return
	case alone && total > was:
		res.fine("clients' packets for %s arrive", r.vip)
		return
	case r.err != nil:
		res.skip("VIP %s: this host's kernel does not send a packet to the router %s: %v", r.vip, r.via, r.err)
		return
	}
	f := Finding{Severity: Warning, Where: fmt.Sprintf("VIP %s", r.vip),
		What: fmt.Sprintf("the router %s does not send its packets here", r.via),
		Why:  "clients whose packets come by that router get no answer", On: r.via.String(),
		Fix: fmt.Sprintf("ip route replace %s via %s", r.vip, r.source),
		Remarks: []string{"the command is for a router with Linux",
			"this is no fault if another router sends clients' packets here"}}
	key := flowKey{to: r.vip, protocol: packet.ProtoICMP}
	if r.vip.Is6() {
		key.protocol = packet.ProtoICMPv6
	}
	icmpErrors := p.errorsAbout(key)
	switch {
	case r.answered:
		f.Causes = []string{"another host gets them, and answers as the VIP"}
	case len(icmpErrors) > 0 && expired(icmpErrors[0]):
		f.Causes = []string{fmt.Sprintf("they go to %s", icmpErrors[0].from)}
	case len(icmpErrors) > 0 && (unreachable(icmpErrors[0]) || prohibited(icmpErrors[0])):
		f.Causes = []string{fmt.Sprintf("%s reports that the VIP is unreachable: it has no route to it",
			icmpErrors[0].from)}
	default:
		f.Remarks = append(f.Remarks, "this is no fault if the network sends no packet back to its sender")
		if total > 0 { // clients' packets have come before, so this may be such a network
			f.Severity = Hint
		}
	}
	res.find(f)
}

// forwarded returns the number of forwarded packets of the services with a VIP. alone reports whether none of these
// services has another VIP.
func forwarded(st *api.DirectorStatus, vip netip.Addr) (packets uint64, alone bool) {
	alone = true
	for _, s := range st.Services {
		has := false
		for _, v := range s.VIPs {
			has = has || v == vip.String()
		}
		if !has {
			continue
		}
		alone = alone && len(s.VIPs) == 1
		for _, r := range s.Realservers {
			packets += r.Forwarded.Packets
		}
	}
	return packets, alone
}
