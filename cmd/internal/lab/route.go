package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// UnknownMAC returns a MAC address that no host of a lab has. The kernel counts a frame to it on its link and drops it
// before it parses the packet (ip_rcv in net/ipv4/ip_input.c, PACKET_OTHERHOST), at the least cost.
func UnknownMAC() net.HardwareAddr { return net.HardwareAddr{0x02, 0, 0, 0, 0, 0x01} }

// policyTables is the priority of RouteFrom's rules. RouteFrom's table for a link has the number policyTables plus the
// link's index.
const policyTables = 1000

// Route routes the host's packets to addr via its neighbour via.
func (h *Host) Route(addr, via netip.Addr) error {
	return h.do("route", func() error { return addRoute(netip.PrefixFrom(addr, addr.BitLen()), via) })
}

// RouteFrom is Route for only those packets that arrive on link.
func (h *Host) RouteFrom(link string, addr, via netip.Addr) error {
	return h.do("route", func() error {
		dev, err := net.InterfaceByName(link)
		if err != nil {
			return fmt.Errorf("find %s: %w", link, err)
		}
		table := policyTables + dev.Index
		rule := netlink.NewRule()
		rule.IifName, rule.Table, rule.Priority = link, table, policyTables
		if addr.Is6() {
			rule.Family = unix.AF_INET6
		}
		if err := netlink.RuleAdd(rule); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("rule for packets that come in by %s: %w", link, err)
		}
		route := &netlink.Route{Dst: ipNet(netip.PrefixFrom(addr, addr.BitLen())), Gw: via.AsSlice(), Table: table}
		if err := netlink.RouteAdd(route); err != nil {
			return fmt.Errorf("route to %s via %s for packets that come in by %s: %w", addr, via, link, err)
		}
		return nil
	})
}

// Sink sends packets to addr, in a link's subnet, to UnknownMAC on that link. The host at the other end counts and
// drops them.
func (h *Host) Sink(link string, addr netip.Addr) error {
	return h.do("sink", func() error {
		dev, err := net.InterfaceByName(link)
		if err != nil {
			return fmt.Errorf("find %s: %w", link, err)
		}
		neighbour := &netlink.Neigh{LinkIndex: dev.Index, State: netlink.NUD_PERMANENT, IP: addr.AsSlice(),
			HardwareAddr: UnknownMAC()}
		if err := netlink.NeighSet(neighbour); err != nil {
			return fmt.Errorf("neighbour %s on %s: %w", addr, link, err)
		}
		return nil
	})
}

// Own adds an address to the host's lo, and returns when servers can be bound to it.
func (h *Host) Own(addr netip.Addr) error {
	err := h.do("own address", func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("find lo: %w", err)
		}
		return addAddress(lo, netip.PrefixFrom(addr, addr.BitLen()))
	})
	for deadline := time.Now().Add(carrierTimeout); err == nil; time.Sleep(carrierPoll) {
		ready, e := h.ready(addr)
		if ready || e != nil {
			return e
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: own address %v: the kernel has not made it ready within %v", h.Name, addr,
				carrierTimeout)
		}
	}
	return err
}

// ready reports whether a server can be bound to an address of the loopback device.
func (h *Host) ready(addr netip.Addr) (ready bool, err error) {
	err = h.do("own address", func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		ready, err = settled(lo)
		return err
	})
	return ready, err
}

// Sysctl sets a value of the host's network: "net.ipv4.ip_forward" to "1".
func (h *Host) Sysctl(key, value string) error {
	return h.do("sysctl", func() error { return setSysctl(key, value) })
}

// MAC returns the MAC address of a link of the host.
func (h *Host) MAC(link string) (mac net.HardwareAddr, err error) {
	err = h.do("MAC address", func() error {
		dev, err := net.InterfaceByName(link)
		if err != nil {
			return fmt.Errorf("find %s: %w", link, err)
		}
		mac = dev.HardwareAddr
		return nil
	})
	return mac, err
}

// Received returns the number of frames that a link of the host has received since the link was created, from its own
// statistics. Unlike a Counter it adds no cost per frame, and has no filter.
func (h *Host) Received(link string) (frames uint64, err error) {
	err = h.do("frames received", func() error {
		dev, err := netlink.LinkByName(link)
		if err != nil {
			return fmt.Errorf("find %s: %w", link, err)
		}
		if dev.Attrs().Statistics == nil {
			return fmt.Errorf("%s has no statistics", link)
		}
		frames = dev.Attrs().Statistics.RxPackets
		return nil
	})
	return frames, err
}

// do is Do, but its error names the host and the operation.
func (h *Host) do(what string, fn func() error) error {
	if err := h.Do(fn); err != nil {
		return fmt.Errorf("%s: %s: %w", h.Name, what, err)
	}
	return nil
}
