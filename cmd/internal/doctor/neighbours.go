package doctor

import (
	"fmt"
	"net"
	"net/netip"
	"sync"

	"vstun/routing/neigh"
	"vstun/routing/query"
)

// neighbours examines whether this host answers for each VIP in one of its subnets. Hosts and routers there ask for the
// VIP by ARP or neighbour discovery, but the director's kernel does not own it.
func (res *result) neighbours(vips []netip.Addr) {
	devices, err := query.Devices()
	if res.failed(err) {
		return
	}
	good := true
	for _, vip := range vips {
		for _, d := range devices {
			subnet, in := subnetOf(d, vip)
			if !in {
				continue
			}
			answers, err := query.AnswersFor(d.Name, vip)
			if res.failed(err) {
				return
			}
			if !answers {
				good = false
				res.find(Finding{Severity: Warning, Where: fmt.Sprintf("VIP %s", vip),
					What: fmt.Sprintf("it is in %s, the subnet of %s, and this host does not answer for it there",
						subnet, d.Name),
					Why: "neighbours that ask for it get no answer, unless they have a route to it by this host",
					Fix: proxyFor(vip, d.Name), Remarks: []string{"or give the router a route to it by this host"}})
			}
		}
	}
	good = res.impostors(devices, vips) && good
	if good {
		res.fine("no other host answers ARP for a VIP, and this host answers for VIPs in its own subnets")
	}
}

// impostors examines whether another host answers ARP for a VIP: a realserver without arp_ignore, or a second director.
func (res *result) impostors(devices []query.Device, vips []netip.Addr) (good bool) {
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
			res.skip("who has %s: %v", q.vip, q.err)
			return false
		}
		for _, mac := range q.answers {
			good = false
			res.find(Finding{Severity: Error, Where: fmt.Sprintf("VIP %s", q.vip),
				What: fmt.Sprintf("the host with MAC address %s answers ARP for it on %s", mac, q.device),
				Why:  "neighbours there send it the VIP's packets, past the director",
				Fix:  fmt.Sprintf("ip neigh show dev %s | grep -i %s", q.device, mac),
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

// proxyFor returns the command that makes a host answer for an address that it does not own.
func proxyFor(a netip.Addr, device string) string {
	if a.Is6() {
		return fmt.Sprintf("sysctl -w net.ipv6.conf.%s.proxy_ndp=1; ip neigh add proxy %s dev %s", device, a, device)
	}
	return fmt.Sprintf("ip neigh add proxy %s dev %s", a, device)
}
