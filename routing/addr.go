package routing

import (
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/routing/kernel"
)

func (m *Manager) planAddrs(want []Addr, own []addrRecord, snap snapshot) (steps []step, next []addrRecord) {
	mine := setOf(own)
	for _, w := range want {
		rec := addrRecord{Link: w.Link, Index: snap.links.index(w.Link), Prefix: w.Prefix}
		switch {
		case !snap.hasAddr(rec):
			next = append(next, rec)
			steps = append(steps, step{
				what: fmt.Sprintf("ip addr add %s dev %s scope host", w.Prefix, w.Link),
				name: fmt.Sprintf("address %s dev %s", w.Prefix, w.Link), old: "none", new: "present",
				recorded: mine[rec],
				do:       func() error { return m.addAddr(snap.links[w.Link], w.Prefix) },
			})
		case mine[rec]:
			next = append(next, rec)
		}
	}
	return steps, next
}

// addrPatience is how long addAddr waits for the kernel.
const addrPatience = time.Second

// addAddr adds an address, and waits until servers can be bound to it. The kernel makes an IPv6 address ready later
// (addrconf_dad_work in net/ipv6/addrconf.c), even without duplicate address detection. If the address is not ready
// after addrPatience, addAddr returns nil all the same.
func (m *Manager) addAddr(l netlink.Link, p netip.Prefix) error {
	if err := m.nl.AddrAdd(l, kernelAddr(p)); err != nil || p.Addr().Is4() {
		return err
	}
	for deadline := time.Now().Add(addrPatience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		addrs, err := kernel.Dump(func() ([]netlink.Addr, error) { return m.nl.AddrList(l, unix.AF_INET6) })
		if err != nil {
			return fmt.Errorf("list addresses: %w", err)
		}
		if !slices.ContainsFunc(addrs, func(a netlink.Addr) bool {
			return kernel.PrefixOf(a.IPNet) == p &&
				a.Flags&unix.IFA_F_TENTATIVE != 0
		}) {
			break
		}
	}
	return nil
}

func setOf[T comparable](list []T) map[T]bool {
	set := make(map[T]bool, len(list))
	for _, v := range list {
		set[v] = true
	}
	return set
}

func (s snapshot) hasAddr(r addrRecord) bool { return s.addrs[addrKey{r.Index, r.Prefix}] }

func (m *Manager) undoAddr(r addrRecord, snap snapshot) error {
	l, ok := snap.links[r.Link]
	if !ok || l.Attrs().Index != r.Index || !snap.hasAddr(r) {
		return nil
	}
	if err := m.nl.AddrDel(l, kernelAddr(r.Prefix)); err != nil && !kernel.IsGone(err) {
		return fmt.Errorf("ip addr del %s dev %s: %w", r.Prefix, r.Link, err)
	}
	return nil
}

func kernelAddr(p netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: kernel.IPNet(p), Scope: unix.RT_SCOPE_HOST}
	if p.Addr().Is4() {
		a.Broadcast = net.IPv4zero // none
	} else {
		a.Flags = unix.IFA_F_NODAD // every realserver has the address
		// The address is deprecated from the start and for ever: the kernel uses it as the source of answers only (RFC
		// 4862, section 5.5.4; RFC 6724, section 5, rule 3).
		forever := uint32(math.MaxUint32)
		a.ValidLft, a.PreferedLft = int(forever), 0
	}
	return a
}
