package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/doctor/nft"
	"vstun/cmd/internal/tunnel"
	"vstun/encap/packet"
	"vstun/encap/wire"
	"vstun/routing/query"
)

// Realserver describes the agent of this machine, whether it runs or not.
type Realserver struct {
	File    string
	Config  *config.Realserver
	Sockets []wire.Socket // the sockets of its tunnels
	// Obstacles returns the faults that prevent the agent's start or, if it runs, its next start; a line each.
	Obstacles func(running bool) error
}

// Examine examines the machine.
func (s *Realserver) Examine(ctx context.Context) (*Report, error) {
	var st api.RealserverStatus
	running, silence, err := status(ctx, s.Config.Control, &st)
	if err != nil {
		return nil, err
	}
	r := newReport("realserver", s.File, running)
	checks := []check{
		{"running", func(_ context.Context, res *result) { res.running(running, "realserver", s.File) }},
		{"privileges", func(_ context.Context, res *result) { res.privileges(running) }},
		{"start", func(_ context.Context, res *result) { res.start(running, s.Obstacles) }},
		{"directors", func(_ context.Context, res *result) { res.directors(s.Config) }},
		{"firewall", func(_ context.Context, res *result) { res.realserverFirewall(s) }},
		{"servers", func(_ context.Context, res *result) { res.servers(s.Config) }},
		{"answers", func(_ context.Context, res *result) { res.answers(s.Config, &st) }},
	}
	if running {
		checks = append(checks,
			check{"vips", func(_ context.Context, res *result) { res.realserverVIPs(s.Config) }},
			check{"rp_filter", func(ctx context.Context, res *result) { res.realserverFilters(ctx, s.Config) }},
			check{"arp", func(_ context.Context, res *result) { res.arp(s.Config) }})
	}
	if silence != nil {
		checks = append(checks,
			check{"control", func(_ context.Context, res *result) { res.silent("vstun-realserver", silence) }})
	} else {
		// its status names its process
		checks = append(checks, check{"encap_port", func(_ context.Context, res *result) { res.encapPort(s, st.Pid) }})
	}
	if running && silence == nil {
		checks = append(checks,
			check{"wireguard", func(_ context.Context, res *result) {
				res.wireguard("director", &s.Config.WireGuard, st.WireGuard, st.Drops["handshake"])
			}},
			check{"point_to_point", func(_ context.Context, res *result) {
				res.pointToPoint(st.Tunnels, tunnel.Overheads(s.Config.Tunnels))
			}},
			check{"encap", func(ctx context.Context, res *result) { res.encaps(ctx, s) }},
			check{"fast_path", func(_ context.Context, res *result) { res.realserverFastPath(s.Config, &st.FastPath) }},
			check{"second_chance", func(_ context.Context, res *result) { res.secondChance(st.SecondChance) }},
			check{"drops", func(ctx context.Context, res *result) { res.realserverDrops(ctx, s, &st) }})
	}
	r.run(ctx, checks...)
	return r.finish(), nil
}

// directors examines whether all directors are hosts other than this one.
func (res *result) directors(cfg *config.Realserver) {
	var names []string
	for _, d := range cfg.Directors {
		if !d.IsSingleIP() {
			names = append(names, d.String())
			continue
		}
		if link, local, err := query.LocalLink(d.Addr()); err == nil && local {
			res.find(Finding{Severity: Error, Where: fmt.Sprintf("director %s", d.Addr()),
				What: fmt.Sprintf("it is this host itself, on %s", link),
				Why:  "a host drops packets that come from an address of its own", Fix: applyRealserver,
				Remarks: []string{"first set directors to the directors' own addresses"}})
			continue
		}
		names = append(names, d.Addr().String())
	}
	if len(res.findings) == 0 {
		res.fine("%s", brief(names))
	}
}

// realserverVIPs examines whether the agent's device is up, and the VIPs are where they should be.
func (res *result) realserverVIPs(cfg *config.Realserver) {
	devices, err := query.Devices()
	if res.failed(err) {
		return
	}
	up := slices.ContainsFunc(devices, func(d query.Device) bool { return d.Name == cfg.TUN && d.Up })
	if !up {
		res.find(Finding{Severity: Error, Where: cfg.TUN, What: "the device is gone, or down",
			Why:     noDevice(cfg),
			Fix:     fmt.Sprintf("ip link set %s up", cfg.TUN),
			Remarks: []string{"if it is gone: systemctl restart vstun-realserver"}})
	}
	if cfg.ForeignVIPs {
		res.foreignVIPs(cfg, devices)
	} else {
		res.ownVIPs(cfg, devices)
	}
}

// ownVIPs examines whether the agent's device has the VIPs.
func (res *result) ownVIPs(cfg *config.Realserver, devices []query.Device) {
	owner := map[netip.Addr]string{}
	for _, d := range devices {
		for _, p := range d.Addrs {
			if owner[p.Addr()] != cfg.TUN {
				owner[p.Addr()] = d.Name
			}
		}
	}
	for _, vip := range cfg.VIPs {
		f := Finding{Severity: Error, Where: fmt.Sprintf("VIP %s", vip),
			Fix: fmt.Sprintf("ip addr add %s dev %s", netip.PrefixFrom(vip, vip.BitLen()), cfg.TUN)}
		switch owner[vip] {
		case cfg.TUN:
			continue
		case "":
			f.What, f.Why = "no device has it", "the kernel takes its packets for another host's"
		default:
			f.What, f.Why = fmt.Sprintf("it is on %s, not on %s", owner[vip], cfg.TUN),
				"that device may answer ARP for it in the director's place"
			f.Fix = fmt.Sprintf("ip addr del %s dev %s; %s", vip, owner[vip], f.Fix)
		}
		res.find(f)
	}
	if len(res.findings) == 0 {
		res.fine("%s on %s", joinAddrs(cfg.VIPs), cfg.TUN)
	}
}

// noDevice returns the effect of a missing device.
func noDevice(cfg *config.Realserver) string {
	if len(cfg.Encaps) == 0 {
		return "the host does not take the VIPs' packets"
	}
	return "no packet comes out of the tunnel"
}

func joinAddrs(all []netip.Addr) string {
	var names []string
	for _, a := range all {
		names = append(names, a.String())
	}
	return strings.Join(names, ", ")
}

// realserverFilters examines whether rp_filter drops packets that come out of the tunnel, or the tunnel's packets.
func (res *result) realserverFilters(ctx context.Context, cfg *config.Realserver) {
	v4 := false
	for _, vip := range cfg.VIPs {
		v4 = v4 || vip.Is4()
	}
	if v4 && sysctlOf(cfg.TUN, "rp_filter") == strict {
		res.find(Finding{Severity: Error, Where: cfg.TUN, What: "rp_filter is strict",
			Why: "packets from clients that this host reaches by another device are dropped",
			Fix: loosenRPFilter([]string{cfg.TUN})})
		return
	}
	devices, err := strictDevices(cfg.TUN)
	if res.failed(err) {
		return
	}
	if len(devices) == 0 {
		res.fine("no device filters strictly")
		return
	}
	res.reversePath(ctx, devices)
}

// arp examines whether this host leaves ARP requests for the VIPs unanswered where it shares a subnet with a director.
func (res *result) arp(cfg *config.Realserver) {
	devices, err := query.Devices()
	if res.failed(err) {
		return
	}
	for _, d := range devices {
		for _, p := range d.Addrs {
			if !d.Up || d.Loopback || d.Name == cfg.TUN || !p.Addr().Is4() || p.IsSingleIP() || !sharesSubnet(p, cfg) {
				continue
			}
			where := fmt.Sprintf("%s, in %s", d.Name, p.Masked())
			if sysctlOf(d.Name, "arp_ignore") < 1 {
				res.find(Finding{Severity: Error, Where: where,
					What: "arp_ignore is 0, and a director may be in that subnet",
					Why:  "this host answers ARP for the VIPs, and takes clients' packets past the director",
					Fix:  "sysctl -w net.ipv4.conf.all.arp_ignore=1"})
			}
			if sysctlOf(d.Name, "arp_announce") < 2 {
				res.find(Finding{Severity: Error, Where: where,
					What: "arp_announce is below 2, and a director may be in that subnet",
					Why: "this host sends ARP requests from the VIPs, and neighbours send the " +
						"VIPs' packets here",
					Fix: "sysctl -w net.ipv4.conf.all.arp_announce=2"})
			}
			break
		}
	}
	if len(res.findings) == 0 {
		res.fine("this host does not answer for the VIPs in a director's subnet")
	}
}

// sharesSubnet reports whether a director may be in a subnet. A realserver of VS/DR alone need not name its directors,
// which are in one of its subnets.
func sharesSubnet(subnet netip.Prefix, cfg *config.Realserver) bool {
	if len(cfg.Directors) == 0 {
		return true
	}
	for _, d := range cfg.Directors {
		if d.Overlaps(subnet.Masked()) {
			return true
		}
	}
	return false
}

// realserverFirewall examines whether the firewall accepts the tunnel's packets, the packets that come out of the
// tunnel, and the answers.
func (res *result) realserverFirewall(s *Realserver) {
	in := []nft.Hook{nft.Prerouting, nft.Input}
	out := []nft.Hook{nft.Output, nft.Postrouting}
	var all []pathCheck
	for _, d := range s.Config.Directors {
		for _, socket := range s.Sockets {
			from := d.Addr()
			if socket.Over6 != from.Is6() {
				continue
			}
			if !d.IsSingleIP() {
				from = from.Next()
			}
			hop, ok, err := query.Lookup(from, netip.Addr{})
			if err != nil || !ok || !hop.Source.IsValid() {
				continue
			}
			b := request(from, socket.Protocol, netip.AddrPortFrom(hop.Source, socket.Port))
			protocol, family := fmt.Sprintf("protocol %d", socket.Protocol), "ip protocol"
			if socket.Over6 {
				family = "ip6 nexthdr"
			}
			match, xtables := fmt.Sprintf("%s %d", family, socket.Protocol), fmt.Sprintf("-p %d", socket.Protocol)
			if socket.Protocol == packet.ProtoUDP {
				protocol = fmt.Sprintf("UDP port %d", socket.Port)
				match, xtables = fmt.Sprintf("udp dport %d", socket.Port), fmt.Sprintf("-p udp --dport %d", socket.Port)
			}
			all = append(all, pathCheck{name: fmt.Sprintf("tunnel packets (%s) from %s", protocol, d), grade: Error,
				why: "the agent never receives them", hooks: in,
				spec: nft.PacketSpec{Packet: b, IIF: hop.Link, State: nft.New, ReversePath: true}, nft: match,
				xtables: fmt.Sprintf("%s -s %s", xtables, d)})
		}
	}
	listeners, err := listening("tcp")
	if res.failed(err) {
		return
	}
	here, err := served(s.Config)
	if res.failed(err) {
		return
	}
	for _, vip := range here {
		for _, port := range portsFor(listeners, vip) {
			all = append(all, requestsTo(s.Config, netip.AddrPortFrom(vip, port), func(a netip.Addr) string {
				hop, _, _ := query.Lookup(a, netip.Addr{})
				return hop.Link
			}))
		}
		if hop, ok, err := query.Lookup(outside[vip.Is6()], netip.Addr{}); err == nil && ok {
			b := segment(netip.AddrPortFrom(vip, 80), netip.AddrPortFrom(anyClient[vip.Is6()], 1024), 0, 0,
				packet.FlagSYN|packet.FlagACK)
			all = append(all, pathCheck{name: fmt.Sprintf("answers from %s", vip), grade: Error,
				why: "clients get no answer", hooks: out,
				spec: nft.PacketSpec{Packet: b, OIF: hop.Link, State: nft.Established},
				nft:  fmt.Sprintf("%s saddr %s", ipFamily(vip), vip), xtables: fmt.Sprintf("-s %s", vip)})
		}
	}
	all = append(all, portChecks(&s.Config.WireGuard, lookup)...)
	var legacy []string
	if len(s.Config.Encaps) > 0 && len(here) > 0 {
		legacy = append(legacy, "INPUT -i "+s.Config.TUN)
	}
	if len(here) < len(s.Config.VIPs) {
		legacy = append(legacy, "FORWARD -i "+s.Config.TUN)
	}
	res.firewall(all, legacy...)
}

// requestsTo returns the requests to a port of a VIP. They come out of the tunnel or, without one, by the device that
// leads to the director, else to the clients. link returns the device that leads to an address.
func requestsTo(cfg *config.Realserver, to netip.AddrPort, link func(netip.Addr) string) pathCheck {
	client := anyClient[to.Addr().Is6()]
	c := pathCheck{name: fmt.Sprintf("requests for %s", to), grade: Error, why: "its server never gets them",
		hooks: []nft.Hook{nft.Prerouting, nft.Input},
		spec: nft.PacketSpec{Packet: request(client, packet.ProtoTCP, to), UnknownSource: true, IIF: cfg.TUN,
			State: nft.New}, nft: fmt.Sprintf("iifname %q", cfg.TUN), xtables: "-i " + cfg.TUN}
	if len(cfg.Encaps) > 0 {
		c.name += " that come out of the tunnel"
		return c
	}
	clients := link(outside[to.Addr().Is6()])
	c.spec.IIF = clients
	if len(cfg.Directors) > 0 {
		c.spec.IIF = link(cfg.Directors[0].Addr())
	}
	c.spec.ReversePath = c.spec.IIF == clients
	c.nft = fmt.Sprintf("%s daddr %s tcp dport %d", ipFamily(to.Addr()), to.Addr(), to.Port())
	c.xtables = fmt.Sprintf("-d %s -p tcp --dport %d", to.Addr(), to.Port())
	return c
}

func ipFamily(a netip.Addr) string {
	if a.Is4() {
		return "ip"
	}
	return "ip6"
}
