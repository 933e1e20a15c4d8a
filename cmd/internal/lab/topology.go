package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

const (
	uplink         = "eth0"          // a host's link to the router
	carrierTimeout = 5 * time.Second // for all links of a lab to come up
	carrierPoll    = 5 * time.Millisecond
)

// prepare sets what must be so before the host gets a link. Every value is written, for a new namespace may inherit
// some from the machine that it is made on.
func (h *Host) prepare(router bool) error {
	// The router must not check where packets come from: replies enter from the web servers' links with the VIP as
	// source, and its route to the VIP leads to the director; a strict check drops them (RFC 3704, section 2.2). The
	// other hosts are strict, as many machines are, which is the hardest setting for what comes out of a tunnel.
	forward, filter := "0", "1"
	if router {
		forward, filter = "1", "0"
	}
	return h.Do(func() error {
		for _, s := range [][2]string{
			{"net.ipv4.ip_forward", forward}, // first: changing it resets others
			{"net.ipv4.conf.all.rp_filter", filter},
			{"net.ipv4.conf.default.rp_filter", filter},
		} {
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

// connect makes the link between a host and the router, with addresses, and the host's default route.
func (l *Lab) connect(h *Host, link Link) error {
	if link.MTU == 0 {
		link.MTU = 1500
	}
	gateway := h.Addr.Prev()
	err := l.Router.Do(func() error {
		peer, err := netns.GetFromName(h.Namespace)
		if err != nil {
			return err
		}
		defer peer.Close()
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = h.Name, link.MTU
		// Both ends are made where they belong, so that no name is ever taken on the machine itself.
		veth := &netlink.Veth{
			LinkAttrs: attrs, PeerName: uplink, PeerMTU: uint32(link.MTU), PeerNamespace: netlink.NsFd(int(peer)),
		}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("make a veth pair (does the kernel have veth?): %w", err)
		}
		return raise(h.Name, gateway)
	})
	if err != nil {
		return fmt.Errorf("router's link to %s: %w", h.Name, err)
	}
	err = h.Do(func() error {
		if err := raise(uplink, h.Addr); err != nil {
			return err
		}
		return addRoute(netip.PrefixFrom(netip.IPv4Unspecified(), 0), gateway)
	})
	if err != nil {
		return fmt.Errorf("%s's link to the router: %w", h.Name, err)
	}
	return l.offload(h, link)
}

func (l *Lab) routeVIP() error {
	err := l.Router.Do(func() error {
		return addRoute(netip.PrefixFrom(l.VIP, l.VIP.BitLen()), l.Director.Addr)
	})
	if err != nil {
		return fmt.Errorf("router: %w", err)
	}
	return nil
}

// awaitCarrier waits until both ends of a host's link are up: until then the kernel may drop what is sent, even
// though both have been set up.
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

func (h *Host) operational(name string) (up bool, err error) {
	err = h.Do(func() error {
		link, err := netlink.LinkByName(name)
		if err == nil {
			up = link.Attrs().OperState == netlink.OperUp
		}
		return err
	})
	return up, err
}

// disconnect deletes all links, so that nothing flows any more even when something keeps a namespace alive.
func (l *Lab) disconnect() error {
	if len(l.hosts) == 0 {
		return nil
	}
	return l.Router.Do(func() error {
		links, err := netlink.LinkList()
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

// raise gives a link of this thread's namespace its address, in a /24, and sets it up.
func raise(name string, addr netip.Addr) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	ipnet := &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(24, 32)}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipnet}); err != nil {
		return fmt.Errorf("add %s to %s: %w", ipnet, name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	return nil
}

// addRoute adds a route to this thread's namespace.
func addRoute(to netip.Prefix, via netip.Addr) error {
	dst := &net.IPNet{IP: to.Addr().AsSlice(), Mask: net.CIDRMask(to.Bits(), to.Addr().BitLen())}
	if err := netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: via.AsSlice()}); err != nil {
		return fmt.Errorf("add the route to %s via %s: %w", to, via, err)
	}
	return nil
}
