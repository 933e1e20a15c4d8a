package balancer

import (
	"cmp"
	"encoding/binary"
	"hash/maphash"
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"vstun/balancer/conntab"
	"vstun/balancer/method"
	"vstun/encap/packet"
)

// A reply of a VS/NAT realserver has no entry of its own in the connection table. Its source leads to the frontends
// whose requests may go to that address and port, usually one. Each frontend, with the reply's destination, gives the
// flow of a connection to look up.
//
//	reply 10.0.3.1:8080 → client:4711
//	      └ Backend: frontends VIP:80, VIP:81 ⇒ connection client:4711 → VIP:80, whose realserver is 10.0.3.1:8080
//
// A frontend that has left the configuration stays in the index while its realserver has connections, or is retired,
// and for forgetAfter at least: a worker may open a connection under the former snapshot.

// backends is the index of the realservers of VS/NAT, and the VIPs. Snapshot.vips would do for these, but most packets
// are looked up here, and a map of numbers is faster.
type backends struct {
	servers byAddr[*perProtocol]
	vips    byAddr[bool]
}

// byAddr is a map by address.
type byAddr[V any] struct {
	four map[uint32]V
	six  map[[16]byte]V
}

func newByAddr[V any]() byAddr[V] { return byAddr[V]{map[uint32]V{}, map[[16]byte]V{}} }

func (m *byAddr[V]) get(a netip.Addr) V {
	if a.Is4() {
		b := a.As4()
		return m.four[binary.BigEndian.Uint32(b[:])]
	}
	return m.six[a.As16()]
}

func (m *byAddr[V]) put(a netip.Addr, v V) {
	if a.Is4() {
		b := a.As4()
		m.four[binary.BigEndian.Uint32(b[:])] = v
	} else {
		m.six[a.As16()] = v
	}
}

// perProtocol has the Backends of one address by port; they don't overlap.
type perProtocol struct{ tcp, udp, sctp, none []Backend }

// Backend is ports of an address that VS/NAT realservers have, and the frontends whose requests may go there.
type Backend struct {
	addr        netip.Addr
	first, last uint16
	frontends   []frontend // if there are several ports, each frontend has the realserver's port
}

// frontend is a VIP and port of one realserver.
type frontend struct {
	vip  netip.Addr
	port uint16 // 0: the realserver's
	dest uint32 // the realserver's number
	tag  uint32 // a hash of the other fields; never 0
}

// mapping is a VIP's ports that lead to a realserver.
type mapping struct {
	vip   netip.Addr
	proto uint8
	ports PortRange
	port  uint16 // of the realserver; 0: the VIP's
}

// mappingID is a mapping of the realserver with a number.
type mappingID struct {
	number uint32
	mapping
}

// mappings returns the mappings of d, a realserver of s.
func (s *service) mappings(d *Dest) (all []mapping) {
	for _, vip := range s.config.VIPs {
		if vip.Is4() != d.Address.Is4() {
			continue
		}
		for _, r := range s.config.Ports {
			all = append(all, mapping{vip, s.config.Protocol, r, d.Port})
		}
	}
	return all
}

// backends brings b.mappings up to date for the services of list and returns the index that they make. It is nil if no
// realserver has method NAT.
func (b *Balancer) backends(list []*service) *backends {
	now := map[uint32][]mapping{}
	for _, s := range list {
		for _, d := range slices.Concat(s.list, s.down) {
			if d.Kind == method.NAT {
				now[d.number] = s.mappings(d)
			}
		}
	}
	for n, former := range b.mappings {
		d := b.numbers[n]
		if d == nil || d.Kind != method.NAT {
			continue
		}
		_, stays := now[n]
		for _, m := range former {
			id := mappingID{n, m}
			if slices.Contains(now[n], m) {
				delete(b.left, id)
				continue
			}
			now[n] = append(now[n], m)
			if _, known := b.left[id]; stays && !known {
				b.left[id] = time.Now()
			}
		}
	}
	b.mappings = now
	if len(now) == 0 {
		return nil
	}
	all := b.index()
	for _, s := range list {
		for _, vip := range s.config.VIPs {
			all.vips.put(vip, true)
		}
	}
	return all
}

// forgetMappings removes mappings that have left the configuration long before now, if their realservers have no
// connections.
func (b *Balancer) forgetMappings(now time.Time) {
	for id, since := range b.left {
		c := b.numbers[id.number].counts
		if now.Sub(since) <= forgetAfter || c.Active()+c.Inactive() > 0 {
			continue
		}
		delete(b.left, id)
		b.mappings[id.number] = slices.DeleteFunc(b.mappings[id.number],
			func(m mapping) bool { return m == id.mapping })
	}
}

// span is ports of a realserver, and the frontend that leads to them.
type span struct {
	first, last uint16
	frontend
}

// index makes the index of b.mappings, without VIPs.
func (b *Balancer) index() *backends {
	type key struct {
		addr  netip.Addr
		proto uint8
	}
	spans := map[key][]span{}
	for n, list := range b.mappings {
		for _, m := range list {
			k := key{b.numbers[n].Address, m.proto}
			spans[k] = b.spans(spans[k], n, m)
		}
	}
	all := &backends{servers: newByAddr[*perProtocol](), vips: newByAddr[bool]()}
	for k, list := range spans {
		p := all.servers.get(k.addr)
		if p == nil {
			p = &perProtocol{}
			all.servers.put(k.addr, p)
		}
		*p.of(k.proto) = disjoint(k.addr, list)
	}
	return all
}

// spans appends the spans of m, a mapping of the realserver with number n.
func (b *Balancer) spans(list []span, n uint32, m mapping) []span {
	r := m.ports
	if m.port == 0 {
		if r == EveryPort {
			r.Last = 65535
		}
		return append(list, span{r.First, r.Last, b.frontend(m.vip, 0, n)})
	}
	for port := int(r.First); port <= int(r.Last); port++ {
		list = append(list, span{m.port, m.port, b.frontend(m.vip, uint16(port), n)})
	}
	return list
}

func (b *Balancer) frontend(vip netip.Addr, port uint16, dest uint32) frontend {
	f := frontend{vip: vip, port: port, dest: dest}
	f.tag = uint32(maphash.Comparable(b.seed, f)) | 1
	return f
}

// disjoint returns the Backends of addr for one protocol, in the order of ports. Spans may overlap.
func disjoint(addr netip.Addr, list []span) (all []Backend) {
	slices.SortFunc(list, func(a, b span) int {
		return cmp.Or(int(a.first)-int(b.first), int(a.last)-int(b.last), a.vip.Compare(b.vip),
			int(a.port)-int(b.port), cmp.Compare(a.dest, b.dest))
	})
	edges := make([]int, 0, 2*len(list)) // where a span begins, or a span has ended
	for _, s := range list {
		edges = append(edges, int(s.first), int(s.last)+1)
	}
	slices.Sort(edges)
	edges = slices.Compact(edges)
	var open []span
	for i, edge := range edges[:len(edges)-1] {
		for len(list) > 0 && int(list[0].first) == edge {
			open, list = append(open, list[0]), list[1:]
		}
		open = slices.DeleteFunc(open, func(s span) bool { return int(s.last) < edge })
		if len(open) == 0 {
			continue
		}
		b := Backend{addr: addr, first: uint16(edge), last: uint16(edges[i+1] - 1)}
		for _, s := range open {
			b.frontends = append(b.frontends, s.frontend)
		}
		all = append(all, b)
	}
	return all
}

// of returns the Backends of a protocol, the list none for another protocol than TCP, UDP and SCTP.
func (p *perProtocol) of(proto uint8) *[]Backend {
	switch proto {
	case packet.ProtoTCP:
		return &p.tcp
	case packet.ProtoUDP:
		return &p.udp
	case packet.ProtoSCTP:
		return &p.sctp
	}
	return &p.none
}

// find returns the Backend of an address, protocol and port, nil for none. A nil b has none.
func (b *backends) find(addr netip.Addr, proto uint8, port uint16) *Backend {
	if b == nil {
		return nil
	}
	p := b.servers.get(addr)
	if p == nil {
		return nil
	}
	list := *p.of(proto)
	low, high := 0, len(list)
	for low < high {
		if mid := (low + high) / 2; list[mid].last < port {
			low = mid + 1
		} else {
			high = mid
		}
	}
	if low < len(list) && list[low].first <= port {
		return &list[low]
	}
	return nil
}

// several reports whether a Backend has more than one frontend.
func (b *backends) several() bool {
	if b == nil {
		return false
	}
	several := func(b Backend) bool { return len(b.frontends) > 1 }
	servers := slices.AppendSeq(slices.Collect(maps.Values(b.servers.four)), maps.Values(b.servers.six))
	return slices.ContainsFunc(servers, func(p *perProtocol) bool {
		return slices.ContainsFunc(slices.Concat(p.tcp, p.udp, p.sctp), several)
	})
}

// Translates reports whether a realserver has method NAT, a retired one included.
func (s *Snapshot) Translates() bool { return s.backends != nil }

// Backend returns the Backend that the packet p comes from, and nil for a packet that is no reply: its source is no
// realserver of VS/NAT, or its destination is a VIP, since a realserver may be the client of a VIP. For a Backend it
// sets p.Flow to the flow of the connection that the reply is likely to belong to, for Prefetch. Reply goes on from
// there.
func (s *Snapshot) Backend(p *packet.Info) *Backend {
	if s.backends == nil {
		return nil
	}
	return s.backend(p)
}

func (s *Snapshot) backend(p *packet.Info) *Backend {
	b := s.backends.find(p.Flow.Src, p.Flow.Proto, p.Flow.SrcPort)
	if b == nil || s.backends.vips.get(p.Flow.Dst) {
		return nil
	}
	f := p.Flow.Reverse()
	p.Flow, p.Hash = b.request(b.likely(s, f), f), 0
	return b
}

// request returns the flow from a client to the frontend with index i, whose translation is the flow f to b.
func (b *Backend) request(i int, f packet.Flow) packet.Flow {
	to := &b.frontends[i]
	f.Dst = to.vip
	if to.port != 0 {
		f.DstPort = to.port
	}
	return f
}

// translated is the reverse of request.
func (b *Backend) translated(f packet.Flow) packet.Flow {
	f.Dst = b.addr
	if b.first == b.last {
		f.DstPort = b.first
	}
	return f
}

// Reply returns the realserver that has sent p, a packet for which Backend has returned b. It updates p's connection as
// Decide does. p.Flow becomes the connection's flow, from client to VIP. Without a connection Reply returns nil, and
// p.Flow becomes the packet's own flow again.
func (s *Snapshot) Reply(p *packet.Info, b *Backend, now conntab.Ticks) *Dest {
	if len(b.frontends) == 1 {
		if n := b.frontends[0].dest; s.table.Reply(p, n, now) {
			if d, _ := s.dest(n); d != nil && d.Back != nil {
				return d
			}
		}
		return s.unknownReply(p, b, b.translated(p.Flow), now)
	}
	f := b.translated(p.Flow)
	first := b.likely(s, f)
	for i := range b.frontends {
		at := (first + i) % len(b.frontends)
		p.Flow, p.Hash = b.request(at, f), 0
		if n := b.frontends[at].dest; s.table.Reply(p, n, now) {
			if d, _ := s.dest(n); d != nil && d.Back != nil {
				s.hints.put(s.table.Hash(f), b.frontends[at].tag)
				return d
			}
		}
	}
	return s.unknownReply(p, b, f, now)
}

// FindTranslated returns the realserver and the VIP of the connection whose requests are f after their translation: f
// is from a client to the address and port of a realserver. It returns nil for no such connection, and does not change
// the connection.
func (s *Snapshot) FindTranslated(f packet.Flow, now conntab.Ticks) (*Dest, netip.AddrPort) {
	b := s.backends.find(f.Dst, f.Proto, f.DstPort)
	if b == nil {
		return nil, netip.AddrPort{}
	}
	first := b.likely(s, f)
	for i := range b.frontends {
		at := (first + i) % len(b.frontends)
		r := b.request(at, f)
		c, known := s.table.Lookup(r, now)
		if !known || c.Dest != b.frontends[at].dest || c.State == conntab.Pinned {
			continue
		}
		if d, _ := s.dest(c.Dest); d != nil && d.Back != nil {
			return d, netip.AddrPortFrom(r.Dst, r.DstPort)
		}
	}
	return nil, netip.AddrPort{}
}

// Real returns the flow of the requests of f, a flow from a client to a VIP, after their translation for d, a
// realserver of VS/NAT.
func (d *Dest) Real(f packet.Flow) packet.Flow {
	f.Dst = d.Address
	if d.Port != 0 {
		f.DstPort = d.Port
	}
	return f
}

// OnlyFrontend reports whether all replies from where d, a realserver of VS/NAT, has the requests of f, a flow from a
// client to a VIP, belong to connections by that VIP and port.
func (s *Snapshot) OnlyFrontend(d *Dest, f packet.Flow) bool {
	r := d.Real(f)
	b := s.backends.find(r.Dst, r.Proto, r.DstPort)
	return b != nil && len(b.frontends) == 1
}

// hints remember the frontends of connections to Backends with several frontends: the one of the newest connection of
// each translated flow. A client that reaches one realserver's port by two frontends from one port of its own gets its
// replies from the newer one, as from IPVS. A hint may be wrong: then all frontends are tried. Nil is no hints.
type hints [1 << 16]atomic.Uint32

func (h *hints) put(hash uint64, tag uint32) { h[hash%uint64(len(h))].Store(tag) }

// likely returns the index of the frontend that the translated flow f is likely to have.
func (b *Backend) likely(s *Snapshot, f packet.Flow) int {
	if len(b.frontends) == 1 {
		return 0
	}
	hash := s.table.Hash(f)
	tag := s.hints[hash%uint64(len(s.hints))].Load()
	for i := range b.frontends {
		if b.frontends[i].tag == tag {
			return i
		}
	}
	return 0
}

// hint remembers the frontend of p, whose connection to d has just been made.
func (s *Snapshot) hint(p *packet.Info, d *Dest) {
	port := p.Flow.DstPort
	if d.Port == 0 {
		port = 0
	}
	f := s.balancer.frontend(p.Flow.Dst, port, d.number)
	s.hints.put(s.table.Hash(d.Real(p.Flow)), f.tag)
}
