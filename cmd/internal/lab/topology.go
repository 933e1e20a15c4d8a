package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
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
	uplink         = "eth0"          // a host's link to the router, or to the switch
	downlink       = "eth1"          // the director's link to the switch, as a gateway
	bridge         = "br0"           // the switch's bridge
	carrierTimeout = 5 * time.Second // for all links of a lab to come up
	carrierPoll    = 5 * time.Millisecond
	minMTU6        = 1280 // IPv6 is off on links with less
)

// role is what a host does with packets that are not for itself.
type role struct {
	forwards bool // between its links, as a router
	strict   bool // checks the source of packets: RFC 3704, section 2.2
	bridges  bool // between its links, as a switch
}

func (y *layout) role(h *Host) role {
	switch h {
	case y.router:
		// Replies with the VIP as source come from the web servers' links, but the route to the VIP leads to the
		// director, so a strict check drops them.
		return role{forwards: true}
	case y.bridge:
		return role{bridges: true}
	case y.director:
		// A gateway forwards with and without our program.
		return role{forwards: y.isGateway(h), strict: true}
	}
	// Strict, as many machines are: this is the hardest setting for packets that come out of a tunnel.
	return role{strict: true}
}

// isGateway reports whether another host's default routes lead to h.
func (y *layout) isGateway(h *Host) bool {
	return slices.ContainsFunc(y.wires, func(w *wire) bool {
		return w.far.gateway != nil && w.far.gateway.host == h
	})
}

// ipv6Sysctls returns the IPv6 settings of a lab's hosts. Addresses can be used at once, since duplicate address
// detection (RFC 4862, section 5.4) is off. Hosts solicit no other router. A switch sends nothing of its own. Other
// settings are the kernel's defaults.
func ipv6Sysctls(r role) [][2]string {
	return [][2]string{
		{"net.ipv6.conf.all.forwarding", digit(r.forwards)}, // first: changing it resets others
		{"net.ipv6.conf.all.disable_ipv6", digit(r.bridges)},
		{"net.ipv6.conf.default.disable_ipv6", digit(r.bridges)},
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
func (h *Host) prepare(r role) error {
	values := [][2]string{
		{"net.ipv4.ip_forward", digit(r.forwards)}, // first: changing it resets others
		{"net.ipv4.conf.all.rp_filter", digit(r.strict)},
		{"net.ipv4.conf.default.rp_filter", digit(r.strict)},
	}
	if hasIPv6() {
		values = append(values, ipv6Sysctls(r)...)
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
		if r.bridges {
			return addBridge()
		}
		return nil
	})
}

// digit returns a sysctl's value.
func digit(on bool) string {
	if on {
		return "1"
	}
	return "0"
}

// addBridge creates the bridge in this thread's namespace, and sets it up.
func addBridge() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = bridge
	br := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(br); err != nil {
		return fmt.Errorf("make a bridge (does the kernel have bridge?): %w", err)
	}
	if err := netlink.LinkSetUp(br); err != nil {
		return fmt.Errorf("bring %s up: %w", bridge, err)
	}
	for _, key := range []string{"iptables", "ip6tables", "arptables"} { // a switch has no firewall
		err := setSysctl("net.bridge.bridge-nf-call-"+key, "0")
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // without br_netfilter
			return err
		}
	}
	return nil
}

// setSysctl writes one value of this thread's namespace.
func setSysctl(key, value string) error {
	if err := os.WriteFile("/proc/sys/"+strings.ReplaceAll(key, ".", "/"), []byte(value), 0); err != nil {
		return fmt.Errorf("set %s=%s: %w", key, value, err)
	}
	return nil
}

// connect creates the link, adds the addresses, and sets the default routes of the host at the far end.
func (w *wire) connect() error {
	err := w.near.host.Do(func() error {
		peer, err := netns.GetFromName(w.far.host.Namespace)
		if err != nil {
			return err
		}
		defer peer.Close()
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = w.near.name, w.MTU
		// Each end is created in its own namespace, so that it takes no name on the machine itself.
		veth := &netlink.Veth{
			LinkAttrs: attrs, PeerName: w.far.name, PeerMTU: uint32(w.MTU), PeerNamespace: netlink.NsFd(int(peer)),
		}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("make a veth pair (does the kernel have veth?): %w", err)
		}
		return w.near.raise()
	})
	if err != nil {
		return fmt.Errorf("%s: %w", w, err)
	}
	err = w.far.host.Do(func() error {
		if err := w.far.raise(); err != nil || w.far.gateway == nil {
			return err
		}
		return addRoutes([2]netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0),
			netip.PrefixFrom(netip.IPv6Unspecified(), 0)}, w.far.gateway)
	})
	if err != nil {
		return fmt.Errorf("%s: %w", w, err)
	}
	return w.offload()
}

func (w *wire) String() string {
	return fmt.Sprintf("link between %s and %s", w.far.host.Name, w.near.host.Name)
}

// addRoutes adds routes to this thread's namespace, in the families that the gateway has.
func addRoutes(to [2]netip.Prefix, gateway *end) error {
	for i, via := range gateway.addr {
		if !via.IsValid() {
			continue
		}
		if err := addRoute(to[i], via); err != nil {
			return err
		}
	}
	return nil
}

// awaitCarrier waits until both ends of a link are up. Until then the kernel may drop packets, although both ends are
// set up.
func (w *wire) awaitCarrier(ctx context.Context) error {
	tick := time.NewTicker(carrierPoll)
	defer tick.Stop()
	for {
		near, err := w.near.host.operational(w.near.name)
		far, err2 := w.far.host.operational(w.far.name)
		if err := errors.Join(err, err2); err != nil {
			return fmt.Errorf("%s: %w", w, err)
		}
		if near && far {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s: no carrier after %v", w, carrierTimeout)
		}
	}
}

// Plug pulls the cable of a host's eth0 out of the switch, or puts it in again and returns when the link carries
// packets. It is for hosts at the switch of the networks LAN and NAT.
func (l *Lab) Plug(h *Host, in bool) error {
	if l.bridge == nil {
		return fmt.Errorf("%s: plug: the network has no switch", h.Name)
	}
	set := netlink.LinkSetDown
	if in {
		set = netlink.LinkSetUp
	}
	err := l.bridge.do("plug", func() error {
		port, err := netlink.LinkByName(h.Name)
		if err != nil {
			return fmt.Errorf("find %s: %w", h.Name, err)
		}
		return set(port)
	})
	if err != nil || !in {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), carrierTimeout)
	defer cancel()
	w := wire{near: &end{host: l.bridge, name: h.Name}, far: &end{host: h, name: uplink}}
	return w.awaitCarrier(ctx)
}

// Renew removes a host's eth0 and makes it anew, as a driver that is loaded again does: with the same index, name, MAC
// address, addresses and routes. It is for hosts at the switch of the networks LAN and NAT.
func (l *Lab) Renew(h *Host) error {
	if l.bridge == nil {
		return fmt.Errorf("%s: renew: the network has no switch", h.Name)
	}
	err := h.Do(func() error {
		old, err := netlink.LinkByName(uplink)
		if err != nil {
			return fmt.Errorf("find %s: %w", uplink, err)
		}
		addrs, err := netlink.AddrList(old, netlink.FAMILY_ALL)
		if err != nil {
			return fmt.Errorf("addresses of %s: %w", uplink, err)
		}
		routes, err := netlink.RouteList(old, netlink.FAMILY_ALL)
		if err != nil {
			return fmt.Errorf("routes by %s: %w", uplink, err)
		}
		far, err := netns.GetFromName(l.bridge.Namespace)
		if err != nil {
			return err
		}
		defer far.Close()
		attrs := netlink.NewLinkAttrs()
		was := old.Attrs()
		attrs.Name, attrs.Index, attrs.HardwareAddr, attrs.MTU = uplink, was.Index, was.HardwareAddr, was.MTU
		if err := netlink.LinkDel(old); err != nil {
			return fmt.Errorf("remove %s: %w", uplink, err)
		}
		is := &netlink.Veth{LinkAttrs: attrs, PeerName: h.Name, PeerMTU: uint32(was.MTU),
			PeerNamespace: netlink.NsFd(int(far))}
		if err := netlink.LinkAdd(is); err != nil {
			return fmt.Errorf("make %s anew: %w", uplink, err)
		}
		return restore(is, addrs, routes)
	})
	if err != nil {
		return fmt.Errorf("%s: renew: %w", h.Name, err)
	}
	w := wire{near: &end{host: l.bridge, name: h.Name}, far: &end{host: h, name: uplink}}
	if err := l.bridge.do("renew", w.near.raise); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), carrierTimeout)
	defer cancel()
	return w.awaitCarrier(ctx)
}

// restore sets a device up with addresses and routes. Those that the kernel has added itself are there already.
func restore(l netlink.Link, addrs []netlink.Addr, routes []netlink.Route) error {
	for _, a := range addrs {
		err := netlink.AddrAdd(l, &netlink.Addr{IPNet: a.IPNet})
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add %s: %w", a.IPNet, err)
		}
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("bring %s up: %w", l.Attrs().Name, err)
	}
	for i := range routes {
		if routes[i].Gw == nil {
			continue
		}
		if err := netlink.RouteReplace(&routes[i]); err != nil {
			return fmt.Errorf("add the route %s: %w", routes[i], err)
		}
	}
	return nil
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
	var errs []error
	for _, h := range l.hosts {
		errs = append(errs, h.do("delete links", deleteVeths))
	}
	return errors.Join(errs...)
}

// deleteVeths deletes the veth pairs of this thread's namespace.
func deleteVeths() error {
	links, err := netlink.LinkList()
	for try := 1; errors.Is(err, netlink.ErrDumpInterrupted) && try < 10; try++ { // the links are changing
		links, err = netlink.LinkList()
	}
	if err != nil {
		return fmt.Errorf("list the links: %w", err)
	}
	var errs []error
	for _, link := range links {
		if link.Type() != "veth" {
			continue
		}
		// A link goes with its other end, which may be in the list, too.
		if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("delete %s: %w", link.Attrs().Name, err))
		}
	}
	return errors.Join(errs...)
}

// raise sets a link of this thread's namespace up. Before, it adds the addresses, IPv4 in a /24 and IPv6 in a /64. A
// link without an address becomes a port of the bridge.
func (e *end) raise() error {
	link, err := netlink.LinkByName(e.name)
	if err != nil {
		return fmt.Errorf("find %s: %w", e.name, err)
	}
	if !e.addr[0].IsValid() {
		br, err := netlink.LinkByName(bridge)
		if err != nil {
			return fmt.Errorf("find %s: %w", bridge, err)
		}
		if err := netlink.LinkSetMaster(link, br); err != nil {
			return fmt.Errorf("put %s into %s: %w", e.name, bridge, err)
		}
	}
	for i, bits := range []int{24, 64} {
		if !e.addr[i].IsValid() {
			continue
		}
		if err := addAddress(link, netip.PrefixFrom(e.addr[i], bits)); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring %s up: %w", e.name, err)
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
