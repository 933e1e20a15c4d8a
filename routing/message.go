package routing

import (
	"bytes"
	"encoding/binary"
	"errors"
	"maps"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"vstun/routing/kernel"
)

// route is a route as rtnetlink(7) carries it: struct rtmsg and its attributes. Attributes that this package does not
// know stay unchanged, so a route that is listed and added again loses nothing. A route lacks values that the kernel
// only reports: the state of next hops, counters, and the parts of a nexthop object.
type route struct {
	unix.RtMsg // Table is 0: RTA_TABLE has it
	attrs      attributes
	hops       []hop // RTA_MULTIPATH

	devices []int // indexes of its output devices; none for a nexthop object that the listing only names
	expires int32 // until the route expires, in 1/100 s; negative: it has expired; 0: it does not expire
}

// hop is one next hop of a multipath route: struct rtnexthop and its attributes.
type hop struct {
	flags  uint8
	weight uint8 // minus one
	device int   // index
	attrs  attributes
}

// attributes are netlink attributes by their type, without NLA_F_NESTED.
type attributes map[uint16][]byte

const (
	rtaNexthopID     = 30     // RTA_NH_ID of linux/rtnetlink.h: the id of a nexthop object
	expiresPerSecond = 100    // USER_HZ, the unit of rta_expires in struct rta_cacheinfo
	nlaTypeMask      = 0x3fff // NLA_TYPE_MASK of linux/netlink.h
)

var errMalformed = errors.New("malformed answer of the kernel")

// onlyOnlink masks the one flag of struct rtmsg and rtnexthop that a route keeps. The kernel sets the others itself.
const onlyOnlink = unix.RTNH_F_ONLINK

// parseRoute reads a message: struct rtmsg and its attributes.
func parseRoute(msg []byte) (route, error) {
	if len(msg) < unix.SizeofRtMsg {
		return route{}, errMalformed
	}
	r := route{RtMsg: nl.DeserializeRtMsg(bytes.Clone(msg)).RtMsg}
	var err error
	if r.attrs, err = parseAttributes(bytes.Clone(msg[unix.SizeofRtMsg:])); err != nil {
		return route{}, err
	}
	if r.hops, err = parseHops(r.attrs[unix.RTA_MULTIPATH]); err != nil {
		return route{}, err
	}
	if metrics, ok := r.attrs[unix.RTA_METRICS]; ok {
		m, err := parseAttributes(metrics)
		if err != nil {
			return route{}, err
		}
		r.setMetrics(m)
	}
	if _, ok := r.attrs[unix.RTA_TABLE]; !ok {
		r.attrs.setU32(unix.RTA_TABLE, uint32(r.Table))
	}
	r.Table, r.Flags = 0, r.Flags&onlyOnlink
	if info := r.attrs[unix.RTA_CACHEINFO]; len(info) >= 12 { // struct rta_cacheinfo
		r.expires = int32(binary.NativeEndian.Uint32(info[8:]))
	}
	for _, h := range r.hops {
		r.devices = append(r.devices, h.device)
	}
	if index := r.attrs.u32(unix.RTA_OIF); index != 0 && len(r.hops) == 0 {
		r.devices = []int{int(index)}
	}
	r.attrs.drop(unix.RTA_MULTIPATH, unix.RTA_CACHEINFO)
	if r.attrs.u8(unix.RTA_PREF) == 0 { // medium
		r.attrs.drop(unix.RTA_PREF)
	}
	switch {
	case kernel.LeadsNowhere(int(r.Type)): // IPv6 lists the loopback device with it
		r.leadNowhere(r.Type)
	case r.attrs[rtaNexthopID] != nil: // net.ipv4.nexthop_compat_mode lists the object's parts, too
		r.dropHops()
	}
	return r, nil
}

// leadNowhere makes r a route without next hop: of type blackhole, unreachable, prohibit or throw.
func (r *route) leadNowhere(routeType uint8) {
	r.Type = routeType
	r.dropHops()
	r.attrs.drop(rtaNexthopID)
	r.devices = nil
}

// dropHops removes r's next hops.
func (r *route) dropHops() {
	r.hops, r.Flags = nil, r.Flags&^onlyOnlink
	r.attrs.drop(unix.RTA_OIF, unix.RTA_GATEWAY, unix.RTA_VIA, unix.RTA_ENCAP, unix.RTA_ENCAP_TYPE)
}

// parseHops reads the value of RTA_MULTIPATH.
func parseHops(b []byte) (hops []hop, err error) {
	for len(b) >= unix.SizeofRtNexthop {
		h := nl.DeserializeRtNexthop(b)
		size := int(h.RtNexthop.Len)
		if size < unix.SizeofRtNexthop || size > len(b) {
			return nil, errMalformed
		}
		attrs, err := parseAttributes(b[unix.SizeofRtNexthop:size])
		if err != nil {
			return nil, err
		}
		hops = append(hops, hop{flags: h.Flags & onlyOnlink, weight: h.Hops, device: int(h.Ifindex), attrs: attrs})
		b = b[min(len(b), align(size)):]
	}
	return hops, nil
}

// parseAttributes reads attributes. It does not copy their values.
func parseAttributes(b []byte) (attributes, error) {
	list, err := nl.ParseRouteAttr(b)
	if err != nil {
		return nil, errMalformed
	}
	a := make(attributes, len(list))
	for _, attr := range list {
		a[attr.Attr.Type&nlaTypeMask] = attr.Value
	}
	return a, nil
}

// bytes returns the message of r to add, replace or delete it.
func (r route) bytes() []byte {
	attrs := r.attrs
	if len(r.hops) > 0 {
		var b []byte
		for _, h := range r.hops {
			header := nl.RtNexthop{RtNexthop: unix.RtNexthop{Flags: h.flags, Hops: h.weight, Ifindex: int32(h.device)}}
			values := h.attrs.bytes()
			nexthop := append(header.Serialize(), values...)
			binary.NativeEndian.PutUint16(nexthop, uint16(len(nexthop)))
			b = append(b, nexthop...)
		}
		attrs = maps.Clone(attrs)
		attrs[unix.RTA_MULTIPATH] = b
	}
	return append((&nl.RtMsg{RtMsg: r.RtMsg}).Serialize(), attrs.bytes()...)
}

// bytes returns the attributes in the order of their types, padded.
func (a attributes) bytes() (b []byte) {
	for _, t := range slices.Sorted(maps.Keys(a)) {
		b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(a[t])))
		b = binary.NativeEndian.AppendUint16(b, t)
		b = append(b, a[t]...)
		b = append(b, make([]byte, align(len(b))-len(b))...)
	}
	return b
}

func align(n int) int { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }

// same reports whether r and o are the same route, apart from their protocol.
func (r route) same(o route) bool {
	r.Protocol, o.Protocol = 0, 0
	return r.RtMsg == o.RtMsg && r.attrs.equal(o.attrs) && slices.EqualFunc(r.hops, o.hops, func(a, b hop) bool {
		return a.flags == b.flags && a.weight == b.weight && a.device == b.device && a.attrs.equal(b.attrs)
	})
}

func (a attributes) equal(b attributes) bool { return maps.EqualFunc(a, b, bytes.Equal) }

// clone returns a copy that shares no attribute with r.
func (r route) clone() route {
	r.attrs = maps.Clone(r.attrs)
	r.hops = slices.Clone(r.hops)
	for i := range r.hops {
		r.hops[i].attrs = maps.Clone(r.hops[i].attrs)
	}
	return r
}

// record returns r's key in the kernel's table.
func (r route) record() routeRecord {
	rec := routeRecord{Table: int(r.attrs.u32(unix.RTA_TABLE)), Dst: r.prefix(unix.RTA_DST, r.Dst_len),
		Metric: int(r.attrs.u32(unix.RTA_PRIORITY)), TOS: int(r.Tos)}
	if r.Src_len > 0 {
		rec.Src = r.prefix(unix.RTA_SRC, r.Src_len)
	}
	return rec
}

// prefix returns the prefix in the attribute attr, of length bits. A default route lacks the attribute.
func (r route) prefix(attr uint16, bits uint8) netip.Prefix {
	a, ok := netip.AddrFromSlice(r.attrs[attr])
	if !ok {
		a = netip.IPv4Unspecified()
		if r.Family == unix.AF_INET6 {
			a = netip.IPv6Unspecified()
		}
	}
	return netip.PrefixFrom(a, int(bits))
}

// metrics returns the values of RTA_METRICS by their number (RTAX_…).
func (r route) metrics() attributes {
	m, err := parseAttributes(r.attrs[unix.RTA_METRICS])
	if err != nil { // parseRoute has read them without an error
		return attributes{}
	}
	return m
}

func (r route) setMetrics(m attributes) {
	if r.attrs.drop(unix.RTA_METRICS); len(m) > 0 {
		r.attrs[unix.RTA_METRICS] = m.bytes()
	}
}

func (a attributes) u8(t uint16) uint8 {
	if v := a[t]; len(v) >= 1 {
		return v[0]
	}
	return 0
}

func (a attributes) u16(t uint16) uint16 {
	if v := a[t]; len(v) >= 2 {
		return binary.NativeEndian.Uint16(v)
	}
	return 0
}

func (a attributes) u32(t uint16) uint32 {
	if v := a[t]; len(v) >= 4 {
		return binary.NativeEndian.Uint32(v)
	}
	return 0
}

func (a attributes) setU32(t uint16, v uint32) { a[t] = binary.NativeEndian.AppendUint32(nil, v) }

func (a attributes) drop(types ...uint16) {
	for _, t := range types {
		delete(a, t)
	}
}
