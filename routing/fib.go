package routing

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"vstun/routing/kernel"
)

// table is one routing table. Each family has its own.
type table struct{ family, id int }

func (t table) compare(o table) int {
	return cmp.Or(cmp.Compare(t.id, o.id), cmp.Compare(t.family, o.family))
}

func (r routeRecord) in() table { return table{kernel.Family(r.Dst.Addr()), r.Table} }

// fib lists and changes routes in the form of the kernel's messages. It lists only the routes asked for: there may be a
// million. In a listing the kernel filters by table and protocol only on a socket with NETLINK_GET_STRICT_CHK (Linux
// 4.20). Other listings of netlink fail on such a socket, so fib has a socket of its own. Older kernels list all
// routes.
type fib struct{ sockets map[int]*nl.SocketHandle }

func openFib() (*fib, error) {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	timeout := unix.NsecToTimeval(int64(kernel.AnswerTimeout))
	err = errors.Join(s.SetSendTimeout(&timeout), s.SetReceiveTimeout(&timeout))
	strict := unix.SetsockoptInt(s.GetFd(), unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	if strict != unix.ENOPROTOOPT {
		err = errors.Join(err, strict)
	}
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	return &fib{map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}}, nil
}

func (f *fib) close() { f.sockets[unix.NETLINK_ROUTE].Close() }

// anyProtocol stands for routes of every protocol.
const anyProtocol = unix.RTPROT_UNSPEC

// list returns the routes in t of a protocol for which keep returns true, in the kernel's order of preference. It
// returns errTooManyRoutes if there are more than most.
func (f *fib) list(t table, protocol uint8, most int, keep func(routeRecord) bool) ([]route, error) {
	routes, err := kernel.Dump(func() ([]route, error) {
		var routes []route
		req := nl.NewNetlinkRequest(unix.RTM_GETROUTE, unix.NLM_F_DUMP)
		req.Sockets = f.sockets
		req.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{Family: uint8(t.family), Protocol: protocol}})
		req.AddData(nl.NewRtAttr(unix.RTA_TABLE, nl.Uint32Attr(uint32(t.id))))
		var malformed error
		err := req.ExecuteIter(unix.NETLINK_ROUTE, unix.RTM_NEWROUTE, func(msg []byte) bool {
			if rt := nl.DeserializeRtMsg(msg); rt.Flags&unix.RTM_F_CLONED != 0 || // a path that was looked up
				protocol != anyProtocol && rt.Protocol != protocol {
				return true
			}
			var r route
			if r, malformed = parseRoute(msg); malformed != nil {
				return false
			}
			if rec := r.record(); rec.in() == t && keep(rec) {
				routes = append(routes, r)
			}
			return len(routes) <= most
		})
		if errors.Is(err, unix.ENOENT) { // no such table: an empty one
			err = nil
		}
		return routes, errors.Join(err, malformed)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes of table %s: %w", tableName(t.id), err)
	}
	if len(routes) > most {
		return nil, errTooManyRoutes
	}
	return routes, nil
}

// add adds r. It fails if a route of r's key exists.
func (f *fib) add(r route) error {
	return f.change(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, r)
}

// append adds r after the routes of its key.
func (f *fib) append(r route) error {
	return f.change(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, r)
}

// replace replaces the route of r's key by r, or adds r if there is none.
func (f *fib) replace(r route) error {
	return f.change(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, r)
}

// remove deletes the first route that matches r.
func (f *fib) remove(r route) error { return f.change(unix.RTM_DELROUTE, 0, r) }

func (f *fib) change(kind, flags int, r route) error {
	req := nl.NewNetlinkRequest(kind, flags|unix.NLM_F_ACK)
	req.Sockets = f.sockets
	req.AddRawData(r.bytes())
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// nexthopDevices returns the indexes of the devices of each nexthop object and group (ip nexthop), by its id.
func (f *fib) nexthopDevices() (map[uint32][]int, error) {
	devices, groups := map[uint32][]int{}, map[uint32][]byte{}
	msgs, err := kernel.Dump(func() ([][]byte, error) {
		req := nl.NewNetlinkRequest(unix.RTM_GETNEXTHOP, unix.NLM_F_DUMP)
		req.Sockets = f.sockets
		req.AddRawData(make([]byte, nhmsgLen))
		return req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEXTHOP)
	})
	if err != nil {
		return nil, fmt.Errorf("list nexthop objects: %w", err)
	}
	for _, msg := range msgs {
		if len(msg) < nhmsgLen {
			continue
		}
		attrs, err := parseAttributes(msg[nhmsgLen:])
		if err != nil {
			return nil, fmt.Errorf("list nexthop objects: %w", err)
		}
		id := attrs.u32(unix.NHA_ID)
		if index := attrs.u32(unix.NHA_OIF); index != 0 {
			devices[id] = []int{int(index)}
		}
		groups[id] = attrs[unix.NHA_GROUP]
	}
	for id, members := range groups {
		for ; len(members) >= nexthopGroupLen; members = members[nexthopGroupLen:] {
			devices[id] = append(devices[id], devices[nl.NativeEndian().Uint32(members)]...)
		}
	}
	return devices, nil
}

const (
	nhmsgLen        = 8 // struct nhmsg of linux/nexthop.h
	nexthopGroupLen = 8 // struct nexthop_grp, which begins with the id of a member; a group is no member of a group
)

// occupied reports whether t has a route for one of dsts, of any program. It reads only the destination of each route,
// which takes a quarter of list's time. It reads the table of the calling thread's network namespace.
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
	if errors.Is(err, netlink.ErrDumpInterrupted) { // the table changed: the listing may lack a route
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("list routes of table %s: %w", tableName(t.id), err)
	}
	return found, nil
}

// scan calls f with each route message of t (struct rtmsg and its attributes), until f returns false. f must not keep
// msg.
func scan(t table, f func(msg []byte) bool) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	timeout := unix.NsecToTimeval(int64(kernel.AnswerTimeout))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return err
	}
	// A kernel that is too old for this sends all tables. f then sees routes of other tables too, which costs only
	// time.
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
				return errMalformed
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

// answerError returns the error in an NLMSG_DONE or NLMSG_ERROR, or nil. ENOENT is no error: a table that does not
// exist is empty.
func answerError(msg []byte) error {
	if len(msg) < 4 {
		return nil
	}
	if errno := unix.Errno(-int32(nl.NativeEndian().Uint32(msg))); errno != 0 && errno != unix.ENOENT {
		return errno
	}
	return nil
}

// destination returns the destination of the route in msg, or the zero Prefix if it can't be read.
func destination(msg []byte) netip.Prefix {
	rt := nl.DeserializeRtMsg(msg)
	addr := netip.IPv4Unspecified() // a default route has no destination
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
