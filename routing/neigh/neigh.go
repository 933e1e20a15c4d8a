// Package neigh is about the hosts on this host's links: ARP (RFC 826, RFC 5227) and neighbour discovery (RFC 4861),
// also on behalf of addresses that this host does not own, such as a director's VIPs.
//
// An [Answerer] answers the neighbours' requests for them and announces them. A [Prober] asks whether another host has
// them. Both have packet sockets for all devices, and need CAP_NET_RAW only when these are opened. They leave nothing
// in the kernel when the process ends, however it ends. [Resolve] asks for the MAC address of any IPv4 address. A
// [Watcher] follows the kernel's own table of neighbours.
//
// The kernel's proxy entries (ip neigh add proxy) do not serve: they answer up to 0.8 s late, need forwarding, ignore
// probes (sender 0.0.0.0, source ::), and outlive the process.
package neigh

import (
	"net/netip"
	"slices"
)

// Device is a device with addresses to answer for.
type Device struct {
	Name  string
	Index int
	MAC   MAC
	// Own is MAC addresses of this host besides MAC, in ascending order: other devices may be on the same link.
	Own []MAC
	// Losses counts how often the device has lost its link. Neighbours and switches may have forgotten its addresses
	// since then.
	Losses int
	// Addrs are answered for and announced, in ascending order, each once.
	Addrs []netip.Addr
	// Former are addresses that are given up, in ascending order. Only a request to this host's MAC address is
	// answered: a neighbour makes sure that its entry is still right. Another host can take the address over.
	Former []netip.Addr
	// Elected: an election decides which host has the addresses. The former master or the next one announces them at a
	// change. So another host's use of one is no conflict within contestTime after a change, or if this host gives the
	// address up within contestWait.
	Elected bool
}

// Equal reports whether d and o are the same.
func (d Device) Equal(o Device) bool {
	return d.Name == o.Name && d.Index == o.Index && d.MAC == o.MAC && d.Losses == o.Losses &&
		d.Elected == o.Elected && slices.Equal(d.Own, o.Own) && slices.Equal(d.Addrs, o.Addrs) &&
		slices.Equal(d.Former, o.Former)
}

// EqualDevices reports whether two lists are the same.
func EqualDevices(a, b []Device) bool { return slices.EqualFunc(a, b, Device.Equal) }
