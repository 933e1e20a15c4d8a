package doctor

import (
	"fmt"
	"net/netip"
	"slices"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/routing/kernel"
	"vstun/routing/query"
)

// served returns the VIPs whose packets this host's own servers get. If the agent does not own the VIPs, these are the
// ones that are addresses of the host. The packets of all others can only be translated, for another host or a pod.
func served(cfg *config.Realserver) ([]netip.Addr, error) {
	if !cfg.ForeignVIPs {
		return cfg.VIPs, nil
	}
	local, err := query.LocalLinks(cfg.VIPs...)
	return slices.DeleteFunc(slices.Clone(cfg.VIPs), func(vip netip.Addr) bool { return local[vip] == "" }), err
}

// foreignVIPs examines the VIPs that the agent does not own: a device that has one answers no ARP for it, and the host
// forwards the packets of all others.
func (res *result) foreignVIPs(cfg *config.Realserver, devices []query.Device) {
	translated := map[bool]bool{} // the families of VIPs that no device has, by whether it is IPv6
	for _, vip := range cfg.VIPs {
		i := slices.IndexFunc(devices, func(d query.Device) bool {
			return slices.ContainsFunc(d.Addrs, func(p netip.Prefix) bool { return p.Addr() == vip })
		})
		switch {
		case i < 0:
			translated[vip.Is6()] = true
			res.fine("%s: no device has it; other programs translate its packets", vip)
		case devices[i].Neighbours:
			res.find(Finding{Severity: Warning, Where: fmt.Sprintf("VIP %s", vip),
				What: fmt.Sprintf("it is on %s, which has neighbours", devices[i].Name),
				Why:  "that device answers ARP for it in the director's place",
				Fix: fmt.Sprintf("ip addr del %s dev %s", netip.PrefixFrom(vip, vip.BitLen()),
					devices[i].Name),
				Remarks: []string{"a device of type dummy can have it"}})
		default:
			res.fine("%s on %s", vip, devices[i].Name)
		}
	}
	for _, c := range []struct {
		six       bool
		key, name string
	}{
		{false, "net/ipv4/ip_forward", "net.ipv4.ip_forward"},
		{false, "net/ipv4/conf/" + cfg.TUN + "/forwarding", "net.ipv4.conf." + cfg.TUN + ".forwarding"},
		{true, "net/ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding"},
	} {
		if value, err := kernel.ReadSysctl(c.key); translated[c.six] && err == nil && value == "0" {
			translated[c.six] = false // one finding is enough
			res.find(Finding{Severity: Error, What: c.name + " is 0",
				Why: "packets that are translated for another host or a pod do not get there",
				Fix: fmt.Sprintf("sysctl -w %s=1", c.name)})
		}
	}
}

// forwardedAnswers records that the agent lowers no MSS of answers from a VIP that no device has: this host only
// forwards them, and they have the VIP as source after their route was chosen.
func (res *result) forwardedAnswers(cfg *config.Realserver, st *api.RealserverStatus, vip netip.Addr) {
	mss := st.MSS
	if vip.Is6() {
		mss = st.MSS6
	}
	res.find(Finding{Severity: Hint, Where: fmt.Sprintf("VIP %s", vip),
		What: "this host forwards its answers, with the MSS that their servers advertise",
		Why: fmt.Sprintf("an MSS above %d does not fit the tunnel: clients lower it when the director's ICMP error "+
			"comes", mss),
		Remarks: []string{fmt.Sprintf("a rule of nftables can lower it: tcp flags & (syn | rst) == syn "+
			"ct direction reply ct original %s daddr %s tcp option maxseg size set %d", ipFamily(vip), vip, mss),
			"mss = \"off\" if the servers' MSS is smaller, or a rule lowers it"}})
}
