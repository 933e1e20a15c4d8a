package doctor

import (
	"fmt"
	"net/netip"
	"strconv"

	"vstun/routing/kernel"
	"vstun/routing/query"
)

// forwarding examines whether the kernel forwards the VIPs' packets to the director's device. The director switches
// forwarding on when it starts.
func (res *result) forwarding(running bool, tun string, v4, v6 bool) {
	if !running {
		res.fine("the director switches it on when it starts")
		return
	}
	for _, c := range []struct {
		on   bool
		key  string
		name string
	}{{v4, "net/ipv4/ip_forward", "net.ipv4.ip_forward"}, {v6, "net/ipv6/conf/all/forwarding",
		"net.ipv6.conf.all.forwarding"}} {
		if !c.on {
			continue
		}
		if value, err := kernel.ReadSysctl(c.key); !res.failed(err) && value != "1" {
			res.find(Finding{Severity: Error, What: fmt.Sprintf("%s is %s", c.name, value),
				Why:     fmt.Sprintf("the kernel forwards no packet to %s", tun),
				Fix:     fmt.Sprintf("sysctl -w %s=1", c.name),
				Remarks: []string{"find out what switches it off: grep -r forward /etc/sysctl.conf /etc/sysctl.d"}})
		}
	}
	if v4 {
		res.forwardingOfDevices(tun)
	}
	if len(res.findings) == 0 {
		res.fine("on")
	}
}

// forwardingOfDevices examines each device's own IPv4 switch, which exists beside the host's (IN_DEV_FORWARD in
// net/ipv4/route.c).
func (res *result) forwardingOfDevices(tun string) {
	devices, err := query.Devices()
	if res.failed(err) {
		return
	}
	clients, _, _ := query.Lookup(outside[false], netip.Addr{}) // without a default route they may come by any device
	for _, d := range devices {
		key := "net/ipv4/conf/" + d.Name + "/forwarding"
		if value, err := kernel.ReadSysctl(key); err == nil && value == "0" && d.Up && !d.Loopback && d.Name != tun &&
			hasIPv4(d) {
			severity := Warning
			if d.Name == clients.Link {
				severity = Error
			}
			res.find(Finding{Severity: severity, Where: d.Name, What: fmt.Sprintf("net.ipv4.conf.%s.forwarding is 0",
				d.Name),
				Why: "packets for a VIP that come in there are dropped",
				Fix: fmt.Sprintf("sysctl -w net.ipv4.conf.%s.forwarding=1", d.Name)})
		}
	}
}

func hasIPv4(d query.Device) bool {
	for _, p := range d.Addrs {
		if p.Addr().Is4() {
			return true
		}
	}
	return false
}

// sysctlOf returns a device's effective value of a setting: the larger of its own and the one for all (IN_DEV_MAXCONF
// in include/linux/inetdevice.h).
func sysctlOf(device, name string) (n int) {
	for _, d := range []string{"all", device} {
		if v, err := kernel.ReadSysctl("net/ipv4/conf/" + d + "/" + name); err == nil {
			if have, err := strconv.Atoi(v); err == nil {
				n = max(n, have)
			}
		}
	}
	return n
}
