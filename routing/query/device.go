package query

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/routing/kernel"
)

// Device is a network device.
type Device struct {
	Name     string
	Index    int
	Up       bool
	Loopback bool
	Addrs    []netip.Prefix // with the host's bits
	MAC      [6]byte        // of Ethernet; all zero: it has none

	Running bool // it is up and has a link
	// Neighbours reports whether hosts on its link are found by ARP and neighbour discovery: it is Ethernet, and has
	// broadcast and a MAC address.
	Neighbours bool
	Ethernet   bool   // its packets have Ethernet headers
	Kind       string // the kernel's name of its driver's kind: "veth", "vlan"; "device" for a card
	MTU        int    // bytes
	Master     int    // index of the bridge, bond or VRF whose port it is; 0: none
	Losses     int    // greater each time that Running has ended, as a DeviceWatch has seen it
	// Removals is greater each time that a device of this index has been removed, as a DeviceWatch has seen it. A
	// device that is made anew may have the same index and name, but no socket is in a multicast group on it, and no
	// program is attached to it.
	Removals int
}

// VRF is the Kind of a VRF's device. By it comes no frame: packets of its ports pass it behind ingress.
const VRF = "vrf"

// Uplink reports whether packets of other hosts come in by the device as Ethernet frames for this host: it is up, and
// no port of a bridge, bond or VRF. A container's end of a veth pair counts, the host's end does not: by it comes what
// containers send, unless it has an address.
func (d *Device) Uplink() bool {
	if !d.Up || !d.Ethernet || d.Loopback || d.Master != 0 || d.Kind == VRF {
		return false
	}
	virtual := d.Kind == "veth" || d.Kind == "tuntap"
	return !virtual || slices.ContainsFunc(d.Addrs, func(a netip.Prefix) bool {
		return !a.Addr().IsLinkLocalUnicast()
	})
}

// Devices lists the network devices with their addresses.
func Devices() ([]Device, error) {
	return ask(func(h *netlink.Handle) ([]Device, error) {
		links, err := kernel.Links(h)
		if err != nil {
			return nil, err
		}
		addrs, err := kernel.Addrs(h, netlink.FAMILY_ALL)
		if err != nil {
			return nil, err
		}
		var all []Device
		for _, l := range links {
			at := l.Attrs()
			d := Device{Name: at.Name, Index: at.Index, Up: kernel.IsUp(l), Loopback: at.Flags&net.FlagLoopback != 0,
				Running: at.RawFlags&unix.IFF_RUNNING != 0, MTU: at.MTU, Master: at.MasterIndex,
				Ethernet: at.EncapType == "ether", Kind: l.Type()}
			if len(at.HardwareAddr) == len(d.MAC) {
				d.MAC = [6]byte(at.HardwareAddr)
				d.Neighbours = d.Ethernet && at.Flags&net.FlagBroadcast != 0 &&
					at.RawFlags&unix.IFF_NOARP == 0
			}
			for _, a := range addrs {
				if a.LinkIndex == d.Index {
					d.Addrs = append(d.Addrs, kernel.PrefixOf(a.IPNet))
				}
			}
			all = append(all, d)
		}
		return all, nil
	})
}

// LinkExists reports whether there is a device of this name.
func LinkExists(name string) (bool, error) {
	return ask(func(h *netlink.Handle) (bool, error) {
		_, err := h.LinkByName(name)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("device %s: %w", name, err)
		}
		return true, nil
	})
}

// Bridge is a bridge device.
type Bridge struct {
	MAC [6]byte
	MTU int // of its ports' packets, in bytes
	Up  bool
}

// FindBridge returns the bridge of this name. It is an error if there is no such device, or if it is no bridge.
func FindBridge(name string) (Bridge, error) {
	return ask(func(h *netlink.Handle) (b Bridge, err error) {
		l, err := h.LinkByName(name)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return b, fmt.Errorf("bridge %s: there is no such device: make it (ip link add %s type bridge), or name "+
				"another", name, name)
		}
		if err != nil {
			return b, fmt.Errorf("bridge %s: %w", name, err)
		}
		at := l.Attrs()
		if l.Type() != "bridge" || len(at.HardwareAddr) != len(b.MAC) {
			return b, fmt.Errorf("bridge %s: the device is no bridge (%s): name a bridge", name, l.Type())
		}
		return Bridge{MAC: [6]byte(at.HardwareAddr), MTU: at.MTU, Up: kernel.IsUp(l)}, nil
	})
}

// BridgePorts returns the names of the devices that are ports of a bridge. A bridge that does not exist has none.
func BridgePorts(bridge string) ([]string, error) {
	return ask(func(h *netlink.Handle) (ports []string, err error) {
		links, err := h.LinkList()
		if err != nil {
			return nil, fmt.Errorf("devices: %w", err)
		}
		for _, master := range links {
			if master.Attrs().Name != bridge {
				continue
			}
			for _, l := range links {
				if l.Attrs().MasterIndex == master.Attrs().Index {
					ports = append(ports, l.Attrs().Name)
				}
			}
		}
		return ports, nil
	})
}

// Dropped returns how many packets the kernel has dropped on their way out of the device since its creation: tx_dropped
// of rtnl_link_stats64 (linux/if_link.h). On a TUN device they are the packets that its program did not read fast
// enough. It is an error if there is no such device.
//
// It reads /proc/net/dev (proc(5)), which never waits. An answer by netlink waits while anyone on the machine changes a
// device: for seconds where many containers come and go.
func Dropped(link string) (uint64, error) {
	const column = 11 // of sent packets that were dropped
	text, err := os.ReadFile("/proc/thread-self/net/dev")
	if err != nil { // there is no /proc
		return askDropped(link)
	}
	for line := range strings.Lines(string(text)) {
		name, counters, _ := strings.Cut(line, ":")
		if fields := strings.Fields(counters); strings.TrimSpace(name) == link && len(fields) > column {
			return strconv.ParseUint(fields[column], 10, 64)
		}
	}
	return 0, fmt.Errorf("counters of device %s: there is no such device", link)
}

// askDropped is Dropped by netlink.
func askDropped(link string) (uint64, error) {
	return ask(func(h *netlink.Handle) (uint64, error) {
		l, err := h.LinkByName(link)
		if err != nil {
			return 0, fmt.Errorf("counters of device %s: %w", link, err)
		}
		stats := l.Attrs().Statistics
		if stats == nil {
			return 0, fmt.Errorf("counters of device %s: the kernel gives none", link)
		}
		return stats.TxDropped, nil
	})
}

// AnswersFor reports whether the device is set up to answer neighbours' requests for an address that the host does not
// have: by an entry for that address (ip neigh add proxy) or, with IPv4, by proxy_arp. proxy_arp is for all addresses
// that are routed by another device; AnswersFor does not look up the route.
func AnswersFor(link string, a netip.Addr) (bool, error) {
	if a.Is4() {
		for _, device := range []string{"all", link} {
			if v, err := kernel.ReadSysctl("net/ipv4/conf/" + device + "/proxy_arp"); err == nil && v != "0" {
				return true, nil
			}
		}
	}
	return HasProxy(link, a)
}

// HasProxy reports whether the device has an entry for an address (ip neigh add proxy).
func HasProxy(link string, a netip.Addr) (bool, error) {
	return ask(func(h *netlink.Handle) (bool, error) {
		l, err := h.LinkByName(link)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("device %s: %w", link, err)
		}
		list, err := kernel.Dump(func() ([]netlink.Neigh, error) {
			return h.NeighProxyList(l.Attrs().Index, kernel.Family(a))
		})
		if err != nil {
			return false, fmt.Errorf("list neighbours: %w", err)
		}
		for _, n := range list {
			if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.Unmap() == a {
				return true, nil
			}
		}
		return false, nil
	})
}
