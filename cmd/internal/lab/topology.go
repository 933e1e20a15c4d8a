package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	uplink         = "eth0"          // a host's link to the router
	carrierTimeout = 5 * time.Second // for all links of a lab to come up
	carrierPoll    = 5 * time.Millisecond
	minMTU6        = 1280 // IPv6 is off on links with less
)

// ipv6Sysctls returns the IPv6 settings of a lab's hosts. Addresses can be used at once, since duplicate address
// detection (RFC 4862, section 5.4) is off. Hosts solicit no other router. Other settings are the kernel's defaults.
func ipv6Sysctls(forward string) [][2]string {
	return [][2]string{
		{"net.ipv6.conf.all.forwarding", forward}, // first: changing it resets others
		{"net.ipv6.conf.all.disable_ipv6", "0"},
		{"net.ipv6.conf.default.disable_ipv6", "0"},
		{"net.ipv6.conf.all.accept_dad", "0"},
		{"net.ipv6.conf.default.accept_dad", "0"},
		{"net.ipv6.conf.default.router_solicitations", "0"},
	}
}

// hasIPv6 reports whether the kernel has IPv6.
func hasIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6/conf")
	return err == nil
}

// prepare sets the values that the host needs before it gets a link. It writes every value, since a new namespace may
// inherit some from the machine.
func (h *Host) prepare(router bool) error {
	// The router must not check the source of packets: replies with the VIP as source come from the web servers' links,
	// but its route to the VIP leads to the director, so a strict check drops them (RFC 3704, section 2.2). The other
	// hosts are strict, as many machines are: this is the hardest setting for packets that come out of a tunnel.
	forward, filter := "0", "1"
	if router {
		forward, filter = "1", "0"
	}
	values := [][2]string{
		{"net.ipv4.ip_forward", forward}, // first: changing it resets others
		{"net.ipv4.conf.all.rp_filter", filter},
		{"net.ipv4.conf.default.rp_filter", filter},
	}
	if hasIPv6() {
		values = append(values, ipv6Sysctls(forward)...)
	}
	return h.Do(func() error {
		for _, s := range values {
			if err := setSysctl(s[0], s[1]); err != nil {
				return fmt.Errorf("%s: %w", h.Name, err)
			}
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("%s: lo: %w", h.Name, err)
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return fmt.Errorf("%s: bring lo up: %w", h.Name, err)
		}
		return nil
	})
}

// setSysctl writes one value of this thread's namespace.
func setSysctl(key, value string) error {
	if err := os.WriteFile("/proc/sys/"+strings.ReplaceAll(key, ".", "/"), []byte(value), 0); err != nil {
		return fmt.Errorf("set %s=%s: %w", key, value, err)
	}
	return nil
}

// connect creates the link between a host and the router, adds the addresses, and sets the host's default routes.
func (l *Lab) connect(h *Host, link Link) error {
	if link.MTU == 0 {
		link.MTU = 1500
	}
	gateway, gateway6 := h.Addr.Prev(), h.Addr6.Prev()
	err := l.Router.Do(func() error {
		peer, err := netns.GetFromName(h.Namespace)
		if err != nil {
			return err
		}
		defer peer.Close()
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = h.Name, link.MTU
		// Each end is created in its own namespace, so that it takes no name on the machine itself.
		veth := &netlink.Veth{
			LinkAttrs: attrs, PeerName: uplink, PeerMTU: uint32(link.MTU), PeerNamespace: netlink.NsFd(int(peer)),
		}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("make a veth pair (does the kernel have veth?): %w", err)
		}
		return raise(h.Name, gateway, gateway6)
	})
	if err != nil {
		return fmt.Errorf("router's link to %s: %w", h.Name, err)
	}
	err = h.Do(func() error {
		if err := raise(uplink, h.Addr, h.Addr6); err != nil {
			return err
		}
		if err := addRoute(netip.PrefixFrom(netip.IPv4Unspecified(), 0), gateway); err != nil || !h.Addr6.IsValid() {
			return err
		}
		return addRoute(netip.PrefixFrom(netip.IPv6Unspecified(), 0), gateway6)
	})
	if err != nil {
		return fmt.Errorf("%s's link to the router: %w", h.Name, err)
	}
	return l.offload(h, link)
}

func (l *Lab) routeVIP() error {
	err := l.Router.Do(func() error {
		if err := addRoute(netip.PrefixFrom(l.VIP, l.VIP.BitLen()), l.Director.Addr); err != nil ||
			!l.Director.Addr6.IsValid() {
			return err
		}
		return addRoute(netip.PrefixFrom(l.VIP6, l.VIP6.BitLen()), l.Director.Addr6)
	})
	if err != nil {
		return fmt.Errorf("router: %w", err)
	}
	return nil
}

// awaitCarrier waits until both ends of a host's link are up. Until then the kernel may drop packets, although both
// ends are set up.
func (l *Lab) awaitCarrier(ctx context.Context, h *Host) error {
	tick := time.NewTicker(carrierPoll)
	defer tick.Stop()
	for {
		near, err := h.operational(uplink)
		far, err2 := l.Router.operational(h.Name)
		if err := errors.Join(err, err2); err != nil {
			return fmt.Errorf("link between %s and router: %w", h.Name, err)
		}
		if near && far {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("link between %s and router: no carrier after %v", h.Name, carrierTimeout)
		}
	}
}

// operational reports whether a link is up and its addresses are usable. IPv6 addresses are usable a moment after they
// were added.
func (h *Host) operational(name string) (up bool, err error) {
	err = h.Do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil || link.Attrs().OperState != netlink.OperUp {
			return err
		}
		if up, err = settled(link); errors.Is(err, netlink.ErrDumpInterrupted) { // the addresses are changing
			return nil
		}
		return err
	})
	return up, err
}

// settled reports whether servers can be bound to the addresses of a link of this thread's namespace.
func settled(link netlink.Link) (bool, error) {
	addrs, err := netlink.AddrList(link, unix.AF_INET6)
	return err == nil && !slices.ContainsFunc(addrs,
		func(a netlink.Addr) bool { return a.Flags&unix.IFA_F_TENTATIVE != 0 }), err
}

// disconnect deletes all links, so that no packet passes any more even if a socket keeps a namespace alive.
func (l *Lab) disconnect() error {
	if len(l.hosts) == 0 {
		return nil
	}
	return l.Router.Do(func() error {
		links, err := netlink.LinkList()
		for try := 1; errors.Is(err, netlink.ErrDumpInterrupted) && try < 10; try++ { // the links are changing
			links, err = netlink.LinkList()
		}
		if err != nil {
			return fmt.Errorf("list the router's links: %w", err)
		}
		var errs []error
		for _, link := range links {
			if link.Type() != "veth" {
				continue
			}
			if err := netlink.LinkDel(link); err != nil {
				errs = append(errs, fmt.Errorf("delete the router's link to %s: %w", link.Attrs().Name, err))
			}
		}
		return errors.Join(errs...)
	})
}

// raise adds the addresses to a link of this thread's namespace, addr in a /24 and addr6, if it is valid, in a /64. It
// then sets the link up.
func raise(name string, addr, addr6 netip.Addr) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	if err := addAddress(link, netip.PrefixFrom(addr, 24)); err != nil {
		return err
	}
	if addr6.IsValid() {
		if err := addAddress(link, netip.PrefixFrom(addr6, 64)); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	return nil
}

// addAddress adds an address, with the length of its subnet's prefix, to a link of this thread's namespace.
func addAddress(link netlink.Link, addr netip.Prefix) error {
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(addr)}); err != nil {
		return fmt.Errorf("add %s to %s: %w", addr, link.Attrs().Name, err)
	}
	return nil
}

// addRoute adds a route to this thread's namespace.
func addRoute(to netip.Prefix, via netip.Addr) error {
	if err := netlink.RouteAdd(&netlink.Route{Dst: ipNet(to), Gw: via.AsSlice()}); err != nil {
		return fmt.Errorf("add the route to %s via %s: %w", to, via, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
