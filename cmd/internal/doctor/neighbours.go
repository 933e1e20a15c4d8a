package doctor

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/director/plan"
	"vstun/routing/neigh"
	"vstun/routing/query"
)

// neighbours examines whether the director answers for each VIP in one of this host's subnets, alone. Hosts and routers
// there ask for the VIP by ARP or neighbour discovery. st is the status of the running director; nil: there is none.
func (res *result) neighbours(cfg *config.Director, vips []netip.Addr, st *api.DirectorStatus) {
	devices, err := query.Devices()
	if res.failed(err) {
		return
	}
	good := true
	for _, vip := range vips {
		for _, d := range devices {
			subnet, in := subnetOf(d, vip)
			if !in || d.Name == cfg.TUN || d.Name == cfg.LocalTUN() || backup(cfg, st, vip) {
				continue
			}
			announced := plan.Announces(cfg, d.Name)
			if st != nil {
				announced = slices.ContainsFunc(st.Announced, func(a api.Announced) bool {
					return a.VIP == vip.String() && slices.Contains(a.Devices, d.Name)
				})
			}
			found, err := res.neighbour(vip, subnet, d, announced)
			if res.failed(err) {
				return
			}
			good = good && !found
		}
	}
	asked := vips
	if len(cfg.VRRP) > 0 { // the master is no impostor, unless this director is the master, too
		asked = slices.DeleteFunc(slices.Clone(vips), func(a netip.Addr) bool { return !announces(st, a) })
	}
	good = res.impostors(devices, asked, elected(st)) && good
	if st != nil {
		good = res.conflicts(st) && good
	}
	if good {
		res.fine("no other host uses a VIP, and the director alone answers for VIPs in this host's subnets")
	}
}

// announces reports whether the running director answers for a VIP on any device.
func announces(st *api.DirectorStatus, vip netip.Addr) bool {
	return st != nil && slices.ContainsFunc(st.Announced, func(a api.Announced) bool {
		return a.VIP == vip.String() && len(a.Devices) > 0
	})
}

// elected returns the possible causes of a second host with a VIP, if there is an election.
func elected(st *api.DirectorStatus) []string {
	if st == nil || len(st.VRRP) == 0 {
		return nil
	}
	return []string{"another director is master, too: director peers there; let IP protocol 112 pass between both",
		"a realserver or another host has the VIP"}
}

// backup reports whether another director has the VIP, by an election.
func backup(cfg *config.Director, st *api.DirectorStatus, vip netip.Addr) bool {
	return st != nil && slices.ContainsFunc(st.VRRP, func(v api.VRRP) bool {
		return v.Role != "master" && slices.ContainsFunc(cfg.VRRP, func(c config.VRRP) bool {
			return c.Name == v.Name && slices.Contains(c.VIPs, vip) // which has those in excluded, too
		})
	})
}

// neighbour examines a VIP in a subnet of the device d, and reports whether it has found a fault.
func (res *result) neighbour(vip netip.Addr, subnet netip.Prefix, d query.Device, announced bool) (bool, error) {
	where := fmt.Sprintf("VIP %s", vip)
	if announced {
		proxy, err := query.HasProxy(d.Name, vip)
		if proxy {
			res.find(Finding{Severity: Warning, Where: where,
				What: fmt.Sprintf("the kernel answers for it on %s, too", d.Name),
				Why:  "a proxy entry goes on to answer when the director has ended",
				Fix:  fmt.Sprintf("ip neigh del proxy %s dev %s", vip, d.Name)})
		}
		return proxy, err
	}
	answers, err := query.AnswersFor(d.Name, vip)
	if err != nil || answers {
		return false, err
	}
	res.find(Finding{Severity: Warning, Where: where,
		What: fmt.Sprintf("it is in %s, the subnet of %s, and this host does not answer for it there", subnet, d.Name),
		Why:  "neighbours that ask for it get no answer, unless they have a route to it by this host",
		Fix:  "director reload",
		Remarks: []string{fmt.Sprintf("first set announce = \"auto\" in [director], and add %q to announce_devices if "+
			"there is that key", d.Name), "or give the router a route to it by this host"}})
	return true, nil
}

// recent is the age up to which a conflict is a finding, in seconds.
const recent = 600

// conflicts examines the conflicts that the director has seen, and reports whether there is none of late.
func (res *result) conflicts(st *api.DirectorStatus) (good bool) {
	good = true
	for _, a := range st.Announced {
		for _, c := range a.Conflicts {
			if c.Last > recent {
				continue
			}
			good = false
			res.find(Finding{Severity: Error, Where: "VIP " + a.VIP,
				What:   fmt.Sprintf("the host with MAC address %s uses it on %s", c.MAC, c.Device),
				Why:    "neighbours there may send it the VIP's packets, past the director",
				Causes: elected(st),
				Fix:    fmt.Sprintf("ip neigh show dev %s | grep -i %s", c.Device, c.MAC),
				Remarks: []string{"on that host, remove the VIP from devices other than the agent's",
					fmt.Sprintf("the director saw it %.0f s ago", c.Last)}})
		}
	}
	return good
}

// impostors examines whether another host answers ARP for a VIP: a realserver without arp_ignore, or a second director.
// causes are the possible ones.
func (res *result) impostors(devices []query.Device, vips []netip.Addr, causes []string) (good bool) {
	type question struct {
		device    string
		vip, from netip.Addr
		answers   []net.HardwareAddr
		err       error
	}
	var all []*question
	for _, d := range devices {
		for _, p := range d.Addrs {
			if !d.Up || d.Loopback || !p.Addr().Is4() || p.IsSingleIP() {
				continue
			}
			for _, vip := range vips {
				if vip.Is4() && len(all) < mostQuestions {
					all = append(all, &question{device: d.Name, vip: vip, from: p.Addr()})
				}
			}
			break
		}
	}
	var wait sync.WaitGroup
	for _, q := range all {
		wait.Go(func() { q.answers, q.err = neigh.Resolve(q.device, q.vip, q.from, sampled) })
	}
	wait.Wait()
	good = true
	for _, q := range all {
		if q.err != nil {
			res.skip("whether another host has %s: %v", q.vip, q.err)
			return false
		}
		for _, mac := range q.answers {
			good = false
			res.find(Finding{Severity: Error, Where: fmt.Sprintf("VIP %s", q.vip),
				What:   fmt.Sprintf("the host with MAC address %s answers ARP for it on %s", mac, q.device),
				Why:    "neighbours there send it the VIP's packets, past the director",
				Causes: causes,
				Fix:    fmt.Sprintf("ip neigh show dev %s | grep -i %s", q.device, mac),
				Remarks: []string{"on that host: realserver doctor",
					"or there: sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2"}})
		}
	}
	return good
}

// mostQuestions is the maximum number of ARP requests.
const mostQuestions = 256

// subnetOf returns the subnet of a device that contains a.
func subnetOf(d query.Device, a netip.Addr) (netip.Prefix, bool) {
	for _, p := range d.Addrs {
		if d.Up && !d.Loopback && !p.IsSingleIP() && p.Contains(a) {
			return p.Masked(), true
		}
	}
	return netip.Prefix{}, false
}
