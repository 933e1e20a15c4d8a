package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"vstun/cmd/internal/config"
	"vstun/cmd/internal/control"
	"vstun/encap/packet"
	"vstun/encap/wire"
	"vstun/routing"
)

// Realserver is the agent of this machine, as it runs or would run.
type Realserver struct {
	File    string
	Config  *config.Realserver
	Sockets []wire.Socket // by which its tunnels come
	// what keeps it from starting, a line each; while it runs, what would from the next start on
	Obstacles func(running bool) error
}

// Examine examines the machine.
func (s *Realserver) Examine(ctx context.Context) (*Report, error) {
	var st control.RealserverStatus
	running, silence, err := asked(ctx, s.Config.Control, &st)
	if err != nil {
		return nil, err
	}
	r := newReport("realserver", s.File, running)
	checks := []check{
		{"running", func(_ context.Context, e *exam) { e.running(running, "realserver", s.File) }},
		{"privileges", func(_ context.Context, e *exam) { e.privileges(running) }},
		{"start", func(_ context.Context, e *exam) { e.start(running, s.Obstacles) }},
		{"directors", func(_ context.Context, e *exam) { e.directors(s.Config) }},
		{"firewall", func(_ context.Context, e *exam) { e.realserverFirewall(s) }},
		{"servers", func(_ context.Context, e *exam) { e.servers(s.Config) }},
		{"answers", func(_ context.Context, e *exam) { e.answers(s.Config, &st) }},
	}
	if running {
		checks = append(checks,
			check{"vips", func(_ context.Context, e *exam) { e.ownVIPs(s.Config) }},
			check{"rp_filter", func(ctx context.Context, e *exam) { e.realserverFilters(ctx, s.Config) }},
			check{"arp", func(_ context.Context, e *exam) { e.arp(s.Config) }})
	}
	if silence != nil {
		checks = append(checks, check{"control", func(_ context.Context, e *exam) {
			e.silent("vstun-realserver",
				silence)
		}})
	} else {
		// who knows its process
		checks = append(checks, check{"encap_port", func(_ context.Context, e *exam) { e.encapPort(s, st.Pid) }})
	}
	if running && silence == nil {
		checks = append(checks,
			check{"encap", func(ctx context.Context, e *exam) { e.encaps(ctx, s) }},
			check{"drops", func(ctx context.Context, e *exam) { e.realserverDrops(ctx, s, &st) }})
	}
	r.run(ctx, checks...)
	return r.finish(), nil
}

// directors examines whether the directors are other hosts, which this one can reach.
func (e *exam) directors(cfg *config.Realserver) {
	var names []string
	for _, d := range cfg.Directors {
		if !d.IsSingleIP() {
			names = append(names, d.String())
			continue
		}
		if link, local, err := routing.LocalAddr(d.Addr()); err == nil && local {
			e.find(Finding{Severity: Error, Where: fmt.Sprintf("director %s", d.Addr()),
				What: fmt.Sprintf("it is this host itself, on %s", link),
				Why:  "a host drops packets that come from an address of its own", Fix: applyRealserver,
				Remarks: []string{"first set directors to the directors' own addresses"}})
			continue
		}
		names = append(names, d.Addr().String())
	}
	if len(e.findings) == 0 {
		e.fine("%s", brief(names))
	}
}

// ownVIPs examines whether the agent's device has the VIPs, so that the servers get their packets.
func (e *exam) ownVIPs(cfg *config.Realserver) {
	devices, err := routing.Devices()
	if e.failed(err) {
		return
	}
	owner := map[netip.Addr]string{}
	up := false
	for _, d := range devices {
		up = up || d.Name == cfg.TUN && d.Up
		for _, p := range d.Addrs {
			if owner[p.Addr()] != cfg.TUN {
				owner[p.Addr()] = d.Name
			}
		}
	}
	if !up {
		e.find(Finding{Severity: Error, Where: cfg.TUN, What: "the device is gone, or down",
			Why:     "nothing comes out of the tunnel",
			Fix:     fmt.Sprintf("ip link set %s up", cfg.TUN),
			Remarks: []string{"where it is gone: systemctl restart vstun-realserver"}})
	}
	for _, vip := range cfg.VIPs {
		f := Finding{Severity: Error, Where: fmt.Sprintf("VIP %s", vip),
			Fix: fmt.Sprintf("ip addr add %s dev %s", netip.PrefixFrom(vip, vip.BitLen()), cfg.TUN)}
		switch owner[vip] {
		case cfg.TUN:
			continue
		case "":
			f.What, f.Why = "no device has it", "the kernel takes its packets for somebody else's"
		default:
			f.What, f.Why = fmt.Sprintf("it is on %s, not on %s", owner[vip], cfg.TUN),
				"that device may answer ARP for it in the director's place"
			f.Fix = fmt.Sprintf("ip addr del %s dev %s; %s", vip, owner[vip], f.Fix)
		}
		e.find(f)
	}
	if len(e.findings) == 0 {
		e.fine("%s on %s", joinAddrs(cfg.VIPs), cfg.TUN)
	}
}

func joinAddrs(all []netip.Addr) string {
	var names []string
	for _, a := range all {
		names = append(names, a.String())
	}
	return strings.Join(names, ", ")
}

// realserverFilters examines whether rp_filter drops what comes out of the tunnel, or the tunnel's own packets.
func (e *exam) realserverFilters(ctx context.Context, cfg *config.Realserver) {
	v4 := false
	for _, vip := range cfg.VIPs {
		v4 = v4 || vip.Is4()
	}
	if v4 && sysctlOf(cfg.TUN, "rp_filter") == strict {
		e.find(Finding{Severity: Error, Where: cfg.TUN, What: "rp_filter is strict",
			Why: "clients' packets, whom this host reaches by another device, are dropped",
			Fix: loosen([]string{cfg.TUN})})
		return
	}
	devices, err := strictDevices(cfg.TUN)
	if e.failed(err) {
		return
	}
	if len(devices) == 0 {
		e.fine("no device filters strictly")
		return
	}
	e.reversePath(ctx, devices)
}

// arp examines whether this host keeps from answering ARP for the VIPs where it shares a subnet with a director.
func (e *exam) arp(cfg *config.Realserver) {
	devices, err := routing.Devices()
	if e.failed(err) {
		return
	}
	for _, d := range devices {
		for _, p := range d.Addrs {
			if !d.Up || d.Loopback || d.Name == cfg.TUN || !p.Addr().Is4() || p.IsSingleIP() || !sharesSubnet(p, cfg) {
				continue
			}
			where := fmt.Sprintf("%s, in %s", d.Name, p.Masked())
			if sysctlOf(d.Name, "arp_ignore") < 1 {
				e.find(Finding{Severity: Error, Where: where, What: "arp_ignore is 0, and a director is in that subnet",
					Why: "this host answers ARP for the VIPs, and takes clients' packets past the director",
					Fix: "sysctl -w net.ipv4.conf.all.arp_ignore=1"})
			}
			if sysctlOf(d.Name, "arp_announce") < 2 {
				e.find(Finding{Severity: Error, Where: where, What: "arp_announce is below 2, and a director is in " +
					"that subnet", Why: "this host asks for its neighbours in the VIPs' name, and they send the " +
					"VIPs' packets here",
					Fix: "sysctl -w net.ipv4.conf.all.arp_announce=2"})
			}
			break
		}
	}
	if len(e.findings) == 0 {
		e.fine("no answers for the VIPs where a director may be")
	}
}

// sharesSubnet reports whether a director is in a subnet, or may be.
func sharesSubnet(subnet netip.Prefix, cfg *config.Realserver) bool {
	for _, d := range cfg.Directors {
		if d.Overlaps(subnet.Masked()) {
			return true
		}
	}
	return false
}

// realserverFirewall examines whether the firewall lets the tunnel's packets in, what comes out of it, and the answers
// out.
func (e *exam) realserverFirewall(s *Realserver) {
	in := []nftables.ChainHook{*nftables.ChainHookPrerouting, *nftables.ChainHookInput}
	out := []nftables.ChainHook{*nftables.ChainHookOutput, *nftables.ChainHookPostrouting}
	var all []crossing
	for _, d := range s.Config.Directors {
		for _, socket := range s.Sockets {
			from := d.Addr()
			if socket.Over6 != from.Is6() {
				continue
			}
			if !d.IsSingleIP() {
				from = from.Next()
			}
			hop, ok, err := routing.Lookup(from, netip.Addr{})
			if err != nil || !ok || !hop.Source.IsValid() {
				continue
			}
			b := request(hop.Source, socket.Protocol, socket.Port)
			ipHeader(b, from, hop.Source, socket.Protocol)
			protocol, family := fmt.Sprintf("protocol %d", socket.Protocol), "ip protocol"
			if socket.Over6 {
				family = "ip6 nexthdr"
			}
			match, xtables := fmt.Sprintf("%s %d", family, socket.Protocol), fmt.Sprintf("-p %d", socket.Protocol)
			if socket.Protocol == packet.ProtoUDP {
				protocol = fmt.Sprintf("UDP port %d", socket.Port)
				match, xtables = fmt.Sprintf("udp dport %d", socket.Port), fmt.Sprintf("-p udp --dport %d", socket.Port)
			}
			all = append(all, crossing{name: fmt.Sprintf("tunnel packets (%s) from %s", protocol, d), grade: Error,
				why: "the agent never sees them", hooks: in,
				suspect: suspect{packet: b, iif: hop.Link, state: expr.CtStateBitNEW, back: true}, nft: match,
				xtables: fmt.Sprintf("%s -s %s", xtables, d)})
		}
	}
	listeners, err := listening("tcp")
	if e.failed(err) {
		return
	}
	for _, vip := range s.Config.VIPs {
		for _, port := range portsFor(listeners, vip) {
			all = append(all, crossing{name: fmt.Sprintf("requests for %s that come out of the tunnel",
				netip.AddrPortFrom(vip, port)), grade: Error, why: "its server never gets them", hooks: in,
				suspect: suspect{packet: request(vip, packet.ProtoTCP, port), anybody: true, iif: s.Config.TUN,
					state: expr.CtStateBitNEW},
				nft: fmt.Sprintf("iifname %q", s.Config.TUN), xtables: "-i " + s.Config.TUN})
		}
		if hop, ok, err := routing.Lookup(outside[vip.Is6()], netip.Addr{}); err == nil && ok {
			b := segment(netip.AddrPortFrom(vip, 80), netip.AddrPortFrom(anybody[vip.Is6()], 1024), 0, 0,
				packet.FlagSYN|packet.FlagACK)
			all = append(all, crossing{name: fmt.Sprintf("answers from %s", vip), grade: Error,
				why: "clients hear nothing", hooks: out,
				suspect: suspect{packet: b, oif: hop.Link, state: expr.CtStateBitESTABLISHED},
				nft:     fmt.Sprintf("%s saddr %s", ipFamily(vip), vip), xtables: fmt.Sprintf("-s %s", vip)})
		}
	}
	e.firewall(all, "INPUT -i "+s.Config.TUN)
}

func ipFamily(a netip.Addr) string {
	if a.Is4() {
		return "ip"
	}
	return "ip6"
}
