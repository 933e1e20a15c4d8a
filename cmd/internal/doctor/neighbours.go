package doctor

import (
	"fmt"
	"net/netip"

	"vstun/routing"
)

// neighbours examines whether somebody answers for a VIP that lies in a subnet of this host: there hosts and routers ask for it by ARP or neighbour
// discovery, and the director's kernel does not have it.
func (e *exam) neighbours(vips []netip.Addr) {
	devices, err := routing.Devices()
	if e.failed(err) {
		return
	}
	good := true
	for _, vip := range vips {
		for _, d := range devices {
			subnet, in := subnetOf(d, vip)
			if !in {
				continue
			}
			answers, err := routing.AnswersFor(d.Name, vip)
			if e.failed(err) {
				return
			}
			if !answers {
				good = false
				e.find(Finding{Severity: Warning, Where: fmt.Sprintf("VIP %s", vip), What: fmt.Sprintf("it is in %s, the subnet of %s, and this host does not answer for it there", subnet, d.Name),
					Why:  "neighbours who ask who has it hear nothing, unless they have a route to it by this host",
					Mend: proxyFor(vip, d.Name)})
			}
		}
	}
	if good {
		e.fine("no VIP is in a subnet of this host without its answering there")
	}
}

// subnetOf is the subnet of a device that a lies in.
func subnetOf(d routing.Device, a netip.Addr) (netip.Prefix, bool) {
	for _, p := range d.Addrs {
		if d.Up && !d.Loopback && !p.IsSingleIP() && p.Contains(a) {
			return p.Masked(), true
		}
	}
	return netip.Prefix{}, false
}

// proxyFor is the command that makes a host answer for an address that it does not have.
func proxyFor(a netip.Addr, device string) string {
	if a.Is6() {
		return fmt.Sprintf("sysctl -w net.ipv6.conf.%s.proxy_ndp=1; ip neigh add proxy %s dev %s", device, a, device)
	}
	return fmt.Sprintf("ip neigh add proxy %s dev %s  # or a route to it by this host on the router", a, device)
}
