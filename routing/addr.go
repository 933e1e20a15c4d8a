package routing

import (
	"fmt"
	"math"
	"net"
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
				what: fmt.Sprintf("ip addr add %s dev %s%s", w.Prefix, w.Link, w.scope()),
				name: fmt.Sprintf("address %s dev %s", w.Prefix, w.Link), old: "none", new: "present",
				recorded: mine[rec],
				do:       func() error { return m.addAddr(snap.links[w.Link], w) },
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
func (m *Manager) addAddr(l netlink.Link, a Addr) error {
	p := a.Prefix
	if err := m.nl.AddrAdd(l, a.kernel()); err != nil || p.Addr().Is4() {
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
	if err := m.nl.AddrDel(l, Addr{Prefix: r.Prefix}.kernel()); err != nil && !kernel.IsGone(err) {
		return fmt.Errorf("ip addr del %s dev %s: %w", r.Prefix, r.Link, err)
	}
	return nil
}

// scope is the scope in the command that adds a.
func (a Addr) scope() string {
	if a.Global || a.Preferred {
		return ""
	}
	return " scope host"
}

// kernel returns a as netlink has it.
func (a Addr) kernel() *netlink.Addr {
	k := &netlink.Addr{IPNet: kernel.IPNet(a.Prefix), Scope: unix.RT_SCOPE_HOST}
	if a.Global || a.Preferred {
		k.Scope = unix.RT_SCOPE_UNIVERSE
	}
	if a.Prefix.Addr().Is4() {
		k.Broadcast = net.IPv4zero // none
	} else {
		k.Flags = unix.IFA_F_NODAD // every realserver has the address, or another director had it just now
		if a.Preferred {
			return k
		}
		// The address is deprecated from the start and for ever: the kernel uses it as the source of answers only (RFC
		// 4862, section 5.5.4; RFC 6724, section 5, rule 3).
		forever := uint32(math.MaxUint32)
		k.ValidLft, k.PreferedLft = int(forever), 0
	}
	return k
}
