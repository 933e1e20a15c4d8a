package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/doctor/nft"
	"vstun/routing/kernel"
	"vstun/routing/query"
)

// forTAP replaces checks for a director with a TAP device. The host forwards no packet for it, so the checks about
// forwarding, firewalls, filters and routes of VIPs are left out. st is the status of the running director; nil: there
// is none.
func (d *Director) forTAP(checks []check, running bool, st *api.DirectorStatus) []check {
	without := []string{"forwarding", "firewall", "rp_filter", "neighbours", "device"}
	rest := slices.DeleteFunc(checks, func(c check) bool { return slices.Contains(without, c.name) })
	return append(rest, check{"bridge", func(_ context.Context, res *result) { res.bridge(d.Config, running, st) }})
}

// bridge examines whether the TAP device is in the network, alone with its VIPs.
func (res *result) bridge(cfg *config.Director, running bool, st *api.DirectorStatus) {
	devices, err := query.Devices()
	if res.failed(err) {
		return
	}
	find := func(name string) *query.Device {
		i := slices.IndexFunc(devices, func(d query.Device) bool { return name != "" && d.Name == name })
		if i < 0 {
			return nil
		}
		return &devices[i]
	}
	port, bridge := find(cfg.TUN), find(cfg.Bridge)
	switch {
	case running && (port == nil || !port.Up):
		res.find(Finding{Severity: Error, Where: cfg.TUN, What: "the device is gone, or down",
			Why:     "no packet gets to the director",
			Fix:     fmt.Sprintf("ip link set %s up", cfg.TUN),
			Remarks: []string{"if it is gone: systemctl restart vstun-director"}})
	case cfg.Bridge != "" && bridge == nil:
		res.find(Finding{Severity: Error, Where: cfg.Bridge, What: "the bridge is gone",
			Why: "the VIPs are in no network", Fix: fmt.Sprintf("ip link add %s type bridge", cfg.Bridge)})
	case bridge != nil && !bridge.Up:
		res.find(Finding{Severity: Error, Where: cfg.Bridge, What: "the bridge is down",
			Why: "the VIPs are in no network", Fix: fmt.Sprintf("ip link set %s up", cfg.Bridge)})
	case running && bridge != nil && port.Master != bridge.Index:
		res.find(Finding{Severity: Error, Where: cfg.TUN, What: fmt.Sprintf("the device is no port of %s", cfg.Bridge),
			Why: "the VIPs are in no network", Fix: fmt.Sprintf("ip link set %s master %s", cfg.TUN, cfg.Bridge)})
	}
	if bridge != nil && bridge.Up && !slices.ContainsFunc(devices, func(d query.Device) bool {
		return d.Master == bridge.Index && d.Name != cfg.TUN && d.Running
	}) {
		res.find(Finding{Severity: Warning, Where: cfg.Bridge, What: "no other port of the bridge has a link",
			Why: "only programs on this host reach the VIPs", Fix: fmt.Sprintf("ip link show master %s", cfg.Bridge)})
	}
	res.bridgeFirewall(cfg)
	if st != nil {
		res.conflicts(st)
	}
	if len(res.findings) == 0 {
		res.fine("the device is in the network, and no other host uses a VIP")
	}
}

// bridgeFirewall examines whether the firewall lets clients' packets through the bridge. They pass it only if
// br_netfilter of Linux makes them.
func (res *result) bridgeFirewall(cfg *config.Director) {
	var all []pathCheck
	for _, s := range cfg.Services {
		for _, vip := range s.VIPs {
			key := map[bool]string{false: "iptables", true: "ip6tables"}[vip.Is6()]
			if v, err := kernel.ReadSysctl("net/bridge/bridge-nf-call-" + key); err != nil || v == "0" {
				continue
			}
			to := netip.AddrPortFrom(vip, s.Ports[0].First)
			c := pathCheck{
				name: fmt.Sprintf("clients' packets for %s in the bridge", vip), grade: Error,
				why: fmt.Sprintf("net.bridge.bridge-nf-call-%s is 1, so packets in the bridge pass this host's "+
					"firewall: 0 is another remedy", key),
				hooks: []nft.Hook{nft.Prerouting, nft.Forward, nft.Postrouting},
				spec: nft.PacketSpec{Packet: request(anyClient[vip.Is6()], protocolNumbers[s.Protocol], to),
					UnknownSource: true, IIF: cfg.Bridge, OIF: cfg.Bridge, State: nft.New, ReversePath: true},
				nft: fmt.Sprintf("oifname %q", cfg.Bridge), xtables: "-o " + cfg.Bridge,
			}
			all = append(all, c)
			if s.Protocol == "tcp" {
				c.spec.State = nft.Invalid
				all = append(all, c)
			}
		}
	}
	if cfg.Bridge != "" && len(all) > 0 {
		res.firewall(all, "FORWARD -o "+cfg.Bridge)
	}
}
