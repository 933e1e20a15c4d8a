package routing

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// table is one routing table. Each family has its own.
type table struct{ family, id int }

func (r routeRecord) in() table { return table{family(r.Dst.Addr()), r.Table} }

// fib lists routes without making the kernel send those that nobody asked for: there may be a million. The kernel
// heeds table and protocol in a listing only on a socket that checks strictly (NETLINK_GET_STRICT_CHK; Linux 4.20), and
// other listings of netlink don't stand that, so this is a socket of its own. Older kernels send everything, and
// netlink leaves out what isn't wanted.
type fib struct{ nl *netlink.Handle }

func openFib() (*fib, error) {
	h, err := newHandle()
	if err != nil {
		return nil, err
	}
	if err := h.SetStrictCheck(true); err != nil && !errors.Is(err, unix.ENOPROTOOPT) {
		h.Close()
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	return &fib{h}, nil
}

func (f *fib) close() { f.nl.Close() }

// everyone stands for routes of any protocol.
const everyone netlink.RouteProtocol = unix.RTPROT_UNSPEC

// list returns the routes in t of protocol by that keep wants, in the kernel's order of preference, and
// errTooManyRoutes if they are more than most.
func (f *fib) list(t table, by netlink.RouteProtocol, most int, keep func(routeRecord) bool) ([]netlink.Route, error) {
	filter, mask := &netlink.Route{Table: t.id, Protocol: by}, uint64(netlink.RT_FILTER_TABLE)
	if by != everyone {
		mask |= netlink.RT_FILTER_PROTOCOL
	}
	routes, err := dump(func() ([]netlink.Route, error) {
		var routes []netlink.Route
		err := f.nl.RouteListFilteredIter(t.family, filter, mask, func(r netlink.Route) bool {
			if keep(recordOf(r)) {
				routes = append(routes, r)
			}
			return len(routes) <= most
		})
		if errors.Is(err, unix.ENOENT) { // no such table: an empty one
			err = nil
		}
		return routes, err
	})
	if err != nil {
		return nil, fmt.Errorf("list routes of table %s: %w", tableName(t.id), err)
	}
	if len(routes) > most {
		return nil, errTooManyRoutes
	}
	return routes, nil
}

// occupied reports whether somebody has a route for one of dsts in t. It looks at every route of the table, but at no
// more than its destination, which takes a quarter of the time that list takes for them. The calling thread's network
// namespace counts.
func occupied(t table, dsts map[netip.Prefix]bool) (found bool, err error) {
	var lengths [256]bool
	for d := range dsts {
		lengths[d.Bits()] = true
	}
	err = scan(t, func(msg []byte) bool {
		rt := nl.DeserializeRtMsg(msg)
		found = int(rt.Family) == t.family && lengths[rt.Dst_len] && dsts[destination(msg)]
		return !found
	})
	if errors.Is(err, netlink.ErrDumpInterrupted) { // the table changed: one may have been missed
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("list routes of table %s: %w", tableName(t.id), err)
	}
	return found, nil
}

// scan calls f with each route message of t (struct rtmsg and what follows it), which it may not keep, until f returns
// false.
func scan(t table, f func(msg []byte) bool) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	timeout := unix.NsecToTimeval(int64(answerTimeout))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return err
	}
	// A kernel that is too old for this sends all tables. More is found then than there is, which costs time only.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)

	req := nl.NewNetlinkRequest(unix.RTM_GETROUTE, unix.NLM_F_DUMP)
	req.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{Family: uint8(t.family)}})
	req.AddData(nl.NewRtAttr(unix.RTA_TABLE, nl.Uint32Attr(uint32(t.id))))
	if err := unix.Sendto(fd, req.Serialize(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, 64<<10) // the kernel fills 32 KB at most
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		for b := buf[:n]; len(b) >= unix.NLMSG_HDRLEN; {
			size := int(nl.NativeEndian().Uint32(b))
			if size < unix.NLMSG_HDRLEN || size > len(b) {
				return errors.New("malformed answer of the kernel")
			}
			if nl.NativeEndian().Uint16(b[6:])&unix.NLM_F_DUMP_INTR != 0 {
				return netlink.ErrDumpInterrupted
			}
			msg := b[unix.NLMSG_HDRLEN:size]
			switch kind := nl.NativeEndian().Uint16(b[4:]); {
			case kind == unix.NLMSG_DONE || kind == unix.NLMSG_ERROR:
				return answerError(msg)
			case kind == unix.RTM_NEWROUTE && len(msg) >= unix.SizeofRtMsg && !f(msg):
				return nil
			}
			b = b[min(len(b), (size+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1)):]
		}
	}
}

// answerError returns the error in an NLMSG_DONE or NLMSG_ERROR, or nil. That there is no such table is none: it is empty.
func answerError(msg []byte) error {
	if len(msg) < 4 {
		return nil
	}
	if errno := unix.Errno(-int32(nl.NativeEndian().Uint32(msg))); errno != 0 && errno != unix.ENOENT {
		return errno
	}
	return nil
}

// destination returns where the route in the message leads, or the zero Prefix if that can't be told.
func destination(msg []byte) netip.Prefix {
	rt := nl.DeserializeRtMsg(msg)
	addr := netip.IPv4Unspecified() // what a default route leaves out
	if rt.Family == unix.AF_INET6 {
		addr = netip.IPv6Unspecified()
	}
	attrs, err := nl.ParseRouteAttr(msg[unix.SizeofRtMsg:])
	if err != nil {
		return netip.Prefix{}
	}
	for _, a := range attrs {
		if a.Attr.Type == unix.RTA_DST {
			addr, _ = netip.AddrFromSlice(a.Value)
		}
	}
	return netip.PrefixFrom(addr, int(rt.Dst_len))
}
