package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"vstun/cmd/internal/control"
	"vstun/encap/packet"
	"vstun/routing"
)

// routed is one VIP's packet that this host gives its router.
type routed struct {
	*shot
	vip    netip.Addr
	source netip.Addr
}

// routerHops is the TTL of such a packet. It comes back, or ends at the second router, whose ICMP error shows where it
// went.
const routerHops = 2

// router examines whether this host's router sends the VIPs' packets here. The doctor gives it a packet for each VIP,
// from this host's own address: one that comes back is seen before the kernel drops it, and gets neither to the
// director nor to a realserver.
func (d *Director) router(ctx context.Context, e *exam, running bool, before *control.DirectorStatus) {
	devices, err := routing.Devices()
	if e.failed(err) {
		return
	}
	p, err := newProber()
	if e.failed(err) {
		return
	}
	defer func() { _ = p.close() }()
	var all []routed
	var shots []*shot
	for _, vip := range d.vips() {
		r, why := d.routed(p, vip, devices, running)
		if why != "" {
			e.skip("VIP %s: %s", vip, why)
			continue
		}
		if r.shot != nil {
			all, shots = append(all, r), append(shots, r.shot)
		}
	}
	p.volley(ctx, shots...)
	var after control.DirectorStatus
	if running {
		_ = control.Get(ctx, d.Config.Control, "/status", &after) // a director that hangs has no figure
	}
	for _, r := range all {
		e.arrives(p, &r, before, &after)
	}
}

// routed makes the packet for a VIP; why is the reason if there can't be one. A VIP in a subnet of this host gets none:
// its neighbours ask for it there, which is examined elsewhere.
func (d *Director) routed(p *prober, vip netip.Addr, devices []routing.Device, running bool) (r routed, why string) {
	for _, device := range devices {
		if _, in := subnetOf(device, vip); in {
			return r, ""
		}
	}
	if vip.Is6() && !running { // a router may redirect it to this host itself, which a host that forwards does not heed
		return r, "whether a router sends its packets here shows while the director runs"
	}
	hop, ok, err := routing.Lookup(outside[vip.Is6()], netip.Addr{})
	if err != nil || !ok || !hop.Gateway.IsValid() ||
		!slices.ContainsFunc(devices, func(d routing.Device) bool { return d.Name == hop.Link }) ||
		hop.Link == d.Config.TUN || !hop.Source.IsValid() || hop.Source.IsLinkLocalUnicast() {
		return r, "this host has no default route to a router, to ask whether it sends the VIP's packets here"
	}
	r = routed{vip: vip, source: hop.Source}
	if r.shot, err = p.echo(hop.Source, vip, probeSize, bare); err != nil {
		return r, err.Error()
	}
	r.via, r.device = hop.Gateway, devices[slices.IndexFunc(devices,
		func(d routing.Device) bool { return d.Name == hop.Link })].Index
	if vip.Is4() {
		h := packet.IPv4(r.packet)
		h.SetTTL(routerHops)
		h.SetChecksum()
	} else {
		packet.IPv6(r.packet).SetHopLimit(routerHops)
	}
	return r, ""
}

// arrives notes whether a VIP's packets come here.
func (e *exam) arrives(p *prober, r *routed, before, after *control.DirectorStatus) {
	was, _ := forwarded(before, r.vip)
	total, alone := forwarded(after, r.vip)
	switch {
	case r.back:
		e.fine("%s sends packets for %s here", r.via, r.vip)
		return
	case alone && total > was:
		e.fine("clients' packets for %s come", r.vip)
		return
	case r.err != nil:
		e.skip("VIP %s: this host's kernel does not send a packet to the router %s: %v", r.vip, r.via, r.err)
		return
	}
	f := Finding{Severity: Warning, Where: fmt.Sprintf("VIP %s", r.vip),
		What: fmt.Sprintf("the router %s does not send its packets here", r.via),
		Why:  "clients whose packets come by that router get no answer", On: r.via.String(),
		Fix: fmt.Sprintf("ip route replace %s via %s", r.vip, r.source),
		Remarks: []string{"the command is that of a router with Linux",
			"no fault where another router brings clients' packets"}}
	ip := road{to: r.vip, protocol: packet.ProtoICMP}
	if r.vip.Is6() {
		ip.protocol = packet.ProtoICMPv6
	}
	said := p.about(ip)
	switch {
	case r.answered:
		f.Causes = []string{"another host gets them, and answers as the VIP"}
	case len(said) > 0 && expired(said[0]):
		f.Causes = []string{fmt.Sprintf("they go to %s", said[0].from)}
	case len(said) > 0 && (unreachable(said[0]) || prohibited(said[0])):
		f.Causes = []string{fmt.Sprintf("%s says that it can't be reached: it has no route to it", said[0].from)}
	default:
		f.Remarks = append(f.Remarks, "no fault where the network sends no packet back to the host that it comes from")
		if total > 0 { // of some clients, though none now: this may be such a network
			f.Severity = Hint
		}
	}
	e.find(f)
}

// forwarded is the number of clients' packets of the services that have a VIP; alone reports whether each of them has
// no other VIP.
func forwarded(st *control.DirectorStatus, vip netip.Addr) (packets uint64, alone bool) {
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
