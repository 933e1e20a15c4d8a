package vrrp

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// Instance is the configuration of one virtual router.
type Instance struct {
	Name     string // unique
	Device   string // the device by which it sends and receives
	RouterID uint8  // 1 to 255
	Version  uint8  // Version2 or Version3; IPv6 has Version3 alone
	Priority uint8  // 1 to 254; Owner
	Interval time.Duration
	// Addrs are in the advertisements, in this order: 1 to 255 addresses of one family.
	Addrs        []netip.Addr
	Excluded     []netip.Addr  // follow the role, too, but are in no advertisement; of any families
	Source       netip.Addr    // an address of Device to send from; the zero value: the first that fits
	Preempt      bool          // take the role from a master with a lower priority
	PreemptDelay time.Duration // from the first advertisement of such a master on
	Password     string        // version 2: the first 8 bytes count; "": no authentication
	Key          *Key          // nil: no HMAC
	Peers        []netip.Addr  // unicast to these; none: multicast
	Group        string        // instances of one group change their roles together; "": none
	Checksum     Checksum
}

// Owner is the priority of the router that owns the addresses: it is the master whenever it runs.
const Owner = 255

// is6 reports whether the instance is of IPv6.
func (i *Instance) is6() bool { return i.Addrs[0].Is6() }

// addresses returns the addresses that follow the role.
func (i *Instance) addresses() []netip.Addr { return slices.Concat(i.Addrs, i.Excluded) }

// unicast reports whether the instance sends to peers.
func (i *Instance) unicast() bool { return len(i.Peers) > 0 }

// same reports whether o is the same virtual router: what its peers know it by.
func (i *Instance) same(o *Instance) bool {
	return i.Name == o.Name && i.Device == o.Device && i.RouterID == o.RouterID && i.Version == o.Version &&
		i.is6() == o.is6()
}

func (i *Instance) equal(o *Instance) bool {
	key := i.Key == o.Key || i.Key != nil && o.Key != nil && *i.Key == *o.Key
	return i.same(o) && key && i.Priority == o.Priority && i.Interval == o.Interval && i.Preempt == o.Preempt &&
		i.PreemptDelay == o.PreemptDelay && i.Password == o.Password && i.Group == o.Group &&
		i.Checksum == o.Checksum && slices.Equal(i.Addrs, o.Addrs) && slices.Equal(i.Excluded, o.Excluded) &&
		i.Source == o.Source && slices.Equal(i.Peers, o.Peers)
}

// authData returns the type and the data of version 2's authentication.
func (i *Instance) auth() (kind uint8, data [authLen]byte) {
	if i.Password == "" {
		return AuthNone, data
	}
	copy(data[:], i.Password)
	return AuthPassword, data
}

// Device is a network device of this host.
type Device struct {
	Name    string
	Index   int
	Running bool // it is up and has a link
	Addrs   []netip.Prefix
	// Removals is another number if the device has been made anew with the same index.
	Removals int
}

// Track is something that an instance depends on.
type Track struct {
	Name string // as messages name it: "service web"
	Up   bool
	// Unknown: whether it is up is not known yet. Up is true then. The instance takes the role from no other master
	// before it is known.
	Unknown bool
	// Weight is added to the priority while it is up, if it is positive, and while it is down, if it is negative. 0:
	// the instance has a fault while it is down.
	Weight int
}

// Moment is a point in time by two clocks. Boot counts also while the machine is suspended.
type Moment struct {
	Boot time.Duration // since the boot
	Wall time.Time     // of the HMAC
}

// source returns the address from which an instance sends to an address, or the zero Addr if the device has none.
// moving are the addresses of all instances. They do not count: they come and go with the roles, and Linux puts a new
// IPv6 address before the others.
func (d *Device) source(i *Instance, to netip.Addr, moving map[netip.Addr]bool) netip.Addr {
	var best netip.Addr
	for _, p := range d.Addrs {
		a := p.Addr()
		switch {
		case a.Is6() != to.Is6() || moving[a]:
		case to == group6 && !a.IsLinkLocalUnicast(): // RFC 9568, section 5.1.2.1
		case i.Source.IsValid():
			if a == i.Source {
				return a
			}
		case p.Contains(to):
			return a
		case a.Is6() && a.IsLinkLocalUnicast() != (to == group6):
		default:
			best = cmp.Or(best, a)
		}
	}
	return best
}
