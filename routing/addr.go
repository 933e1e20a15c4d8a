package routing

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func (m *Manager) planAddrs(want []Addr, own []addrRecord, snap snapshot) (steps []step, next []addrRecord, err error) {
	var errs []error
	for _, w := range want {
		rec := addrRecord{Link: w.Link, Index: snap.links.index(w.Link), Prefix: w.Prefix}
		if rec.Index == 0 {
			errs = append(errs, fmt.Errorf("address %s: no device %s", w.Prefix, w.Link))
			continue
		}
		switch ours := slices.Contains(own, rec); {
		case !snap.hasAddr(rec):
			next = append(next, rec)
			steps = append(steps, step{
				what: fmt.Sprintf("ip addr add %s dev %s scope host", w.Prefix, w.Link),
				do:   func() error { return m.nl.AddrAdd(snap.links[w.Link], kernelAddr(w.Prefix)) },
			})
		case ours:
			next = append(next, rec)
		}
	}
	return steps, next, errors.Join(errs...)
}

func (s snapshot) hasAddr(r addrRecord) bool {
	return slices.ContainsFunc(s.addrs, func(a netlink.Addr) bool {
		return a.LinkIndex == r.Index && prefixOf(a.IPNet) == r.Prefix
	})
}

func (m *Manager) undoAddr(r addrRecord, snap snapshot) error {
	l, ok := snap.links[r.Link]
	if !ok || l.Attrs().Index != r.Index || !snap.hasAddr(r) {
		return nil
	}
	if err := m.nl.AddrDel(l, kernelAddr(r.Prefix)); err != nil && !isGone(err) {
		return fmt.Errorf("ip addr del %s dev %s: %w", r.Prefix, r.Link, err)
	}
	return nil
}

func kernelAddr(p netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: ipNet(p), Scope: unix.RT_SCOPE_HOST}
	if p.Addr().Is4() {
		a.Broadcast = net.IPv4zero // none
	} else {
		a.Flags = unix.IFA_F_NODAD // nobody else answers for an address that every realserver has
	}
	return a
}
