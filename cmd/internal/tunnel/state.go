package tunnel

import (
	"net/netip"
	"slices"

	"vstun/cmd/internal/config"
	"vstun/encap"
	"vstun/encap/egress"
	"vstun/encap/endpoint"
	"vstun/encap/packet"
	"vstun/encap/wire"
	"vstun/encap/wireguard"
	"vstun/routing"
	"vstun/routing/query"
)

// outerTTL is the TTL of tunnel packets: net.ipv4.ip_default_ttl's default, and the hop limit of Linux's ip6_tunnel
// (IPV6_DEFAULT_TNL_... in net/ipv6/ip6_tunnel.c). RFC 2003, section 3.1: one by which a packet reaches the peer.
const outerTTL = 64

// State returns the state of the host's network that tunnels need, whose devices have these MTUs.
func State(tunnels []config.PointToPoint, mtus []int) (s routing.State) {
	for i := range tunnels {
		p := &tunnels[i]
		s.QuietIPIP = s.QuietIPIP || p.Encap == encap.KindIPIP
		s.Links = append(s.Links,
			routing.Link{Name: p.Name, MTU: mtus[i], TxQueueLen: queueLen, Bridge: p.Bridge, Up: true})
		six := false
		for _, a := range p.Addresses {
			s.Addrs = append(s.Addrs, routing.Addr{Link: p.Name, Prefix: a, Preferred: true})
			six = six || a.Addr().Is6()
		}
		for _, dst := range p.Routes {
			s.Routes = append(s.Routes, routing.Route{Dst: dst, Link: p.Name})
			six = six || dst.Addr().Is6()
		}
		if six {
			s.Sysctls = append(s.Sysctls, routing.Sysctl{Key: "net/ipv6/conf/" + p.Name + "/disable_ipv6", Value: "0"})
		}
	}
	return s
}

// queueLen is the number of packets that may wait in a device: as many as a network card's queue has by default.
const queueLen = 1000

// Sockets returns the sockets that tunnels receive from.
func Sockets(tunnels []config.PointToPoint) (all []wire.Socket) {
	add := func(s wire.Socket) {
		if !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	for i := range tunnels {
		p := &tunnels[i]
		s := wire.Socket{Over6: p.Remote.Is6()}
		switch {
		case p.Encap.Sealed():
		case p.Encap.UDP():
			s.Protocol, s.Port = packet.ProtoUDP, p.EncapPort
			add(s)
		case p.Encap == encap.KindGRE:
			s.Protocol = packet.ProtoGRE
			add(s)
		default:
			for _, s.Protocol = range []uint8{packet.ProtoIPIP, packet.ProtoIPv6} {
				add(s)
			}
		}
	}
	return all
}

// SpareSockets returns the raw sockets that a reload may need.
func SpareSockets() (all []wire.Socket) {
	for _, over6 := range []bool{false, true} {
		for _, protocol := range []uint8{packet.ProtoIPIP, packet.ProtoIPv6, packet.ProtoGRE} {
			all = append(all, wire.Socket{Protocol: protocol, Over6: over6})
		}
	}
	return all
}

// path is the path to a peer.
type path struct {
	known bool   // there is a route
	into  string // the tunnel by whose device it leads back into the one that it is of; "": it does not
	mtu   int    // of the largest packet with the tunnel's headers, in bytes
}

// paths asks the kernel for the paths to the peers, by the tunnels' names.
func (s *Set) paths(tunnels []config.PointToPoint) map[string]path {
	carriers := map[netip.Addr]netip.Addr{} // of WireGuard
	if s.o.Sealed != nil {
		for _, p := range s.o.Sealed.Status().Peers {
			carriers[p.Address] = p.Endpoint.Addr()
		}
	}
	to := func(p *config.PointToPoint) netip.Addr {
		if p.Encap.Sealed() {
			return carriers[p.Remote]
		}
		return p.Remote
	}
	var asked []netip.Addr
	for i := range tunnels {
		asked = append(asked, to(&tunnels[i]))
	}
	answer, err := query.Paths(asked)
	links := map[string]string{}
	if err != nil {
		s.o.Log.Warn("cannot ask the kernel for the paths of tunnels", "error", err)
	}
	all := map[string]path{}
	for i := range tunnels {
		p := &tunnels[i]
		a := to(p)
		known, ok := answer[a]
		is := path{known: ok || err != nil, mtu: assumedMTU}
		if ok {
			is.mtu, links[p.Name] = known.MTU, s.behind(tunnels, p.Name, known.Link)
		}
		if p.Encap.Sealed() {
			is.mtu -= wireguard.Overhead(!a.Is4()) // an unknown one may be of IPv6
		}
		all[p.Name] = is
	}
	for name, is := range all {
		if loops(links, name) { // the MTU of the tunnel's own device says nothing about the path
			is.into, is.mtu = links[name], assumedMTU
			all[name] = is
		}
	}
	return all
}

// behind returns the tunnel that is behind a device by which the named tunnel's packets leave: the only ports of a
// bridge can be devices of tunnels. Without one it returns the device.
func (s *Set) behind(tunnels []config.PointToPoint, name, device string) string {
	if !slices.ContainsFunc(tunnels, func(p config.PointToPoint) bool { return p.Bridge == device }) {
		return device
	}
	ports, err := query.BridgePorts(device)
	if err != nil {
		s.o.Log.Warn("cannot ask the kernel for the ports of a bridge", "bridge", device, "error", err)
	}
	if len(ports) == 0 || slices.ContainsFunc(ports, func(port string) bool { return index(tunnels, port) < 0 }) {
		return device // the peer may be behind another port
	}
	if slices.Contains(ports, name) {
		return name
	}
	return ports[0]
}

// loops reports whether the packets of the named tunnel come back to its device. links are the devices of the paths to
// the peers, by the tunnels' names. A tunnel within another one is no loop.
func loops(links map[string]string, name string) bool {
	for at, n := links[name], 0; at != "" && n < len(links); at, n = links[at], n+1 {
		if at == name {
			return true
		}
	}
	return false
}

// assumedMTU is the MTU of a path that is not known, in bytes.
const assumedMTU = 1500

// minDeviceMTU is the smallest MTU that a device gets by itself, in bytes: IPv6 needs it (RFC 8200, section 5). On a
// narrower path such packets leave in outer fragments (RFC 2473, section 7.1).
const minDeviceMTU = 1280

// deviceMTU returns the MTU of the device.
func deviceMTU(p *config.PointToPoint, to path) int {
	if p.MTU > 0 {
		return p.MTU
	}
	n := to.mtu
	if p.Encap.Sealed() {
		n = wireguard.Unpadded(n)
	}
	n -= Overhead(p)
	if p.TAP {
		n -= packet.EthernetHeaderLen // which an MTU does not count
	}
	return max(n, minDeviceMTU)
}

// Overhead returns the bytes that a tunnel adds to a packet or frame, without WireGuard's own.
func Overhead(p *config.PointToPoint) int {
	t, err := encap.New(encapConfig(p))
	if err != nil {
		return encap.MaxOverhead
	}
	return t.Overhead()
}

// Overheads returns a function that returns the bytes that the named tunnel adds to a packet of its device, with an
// Ethernet header.
func Overheads(tunnels []config.PointToPoint) func(name string) int {
	return func(name string) int {
		i := index(tunnels, name)
		if i < 0 {
			return 0
		}
		n := Overhead(&tunnels[i])
		if tunnels[i].TAP {
			n += packet.EthernetHeaderLen
		}
		return n
	}
}

func encapConfig(p *config.PointToPoint) encap.Config {
	return encap.Config{Kind: p.Encap, Source: p.Local, Destination: p.Remote, Port: p.EncapPort, Key: p.Key,
		HasKey: p.Key != 0, Ethernet: p.TAP, TTL: outerTTL}
}

// aim makes the packets of t go where its setup says, by a path.
func (t *tunnel) aim(by path) {
	set := t.setup.Load()
	p := &set.cfg
	wrap, err := encap.New(encapConfig(p))
	if err != nil { // config has checked all of it
		panic(err)
	}
	r := &endpoint.Remote{Tunnel: wrap, Peer: egress.Peer{Src: p.Local, Dst: p.Remote, DstPort: p.EncapPort},
		MTU: by.mtu, Ethernet: p.TAP, Sizes: t.sizes, Loops: by.into != ""}
	switch {
	case p.Encap.Sealed():
		r.Kind = egress.WireGuard
	case p.Encap.UDP():
		r.Kind = egress.UDP
	}
	r.MSS4, r.MSS6 = clamps(p, set.mtu)
	t.remote.Store(r)
	t.see(func(o *observed) { o.path = by })
}

// clamps returns the largest MSS that fits a device's MTU, over IPv4 and IPv6; 0: any.
func clamps(p *config.PointToPoint, mtu int) (v4, v6 int) {
	if p.NoMSS {
		return 0, 0
	}
	return mtu - packet.IPv4HeaderLen - packet.TCPHeaderLen, mtu - packet.IPv6HeaderLen - packet.TCPHeaderLen
}

// end returns this end of t.
func (t *tunnel) end() *endpoint.End {
	set := t.setup.Load()
	p := &set.cfg
	e := &endpoint.End{Remote: p.Remote, Port: p.EncapPort, MTU: set.mtu, Sinks: t.sinks, Counters: &t.in,
		Sizes: t.sizes,
		Decap: encap.Decapsulator{Kind: p.Encap, Key: p.Key, HasKey: p.Key != 0, Ethernet: p.TAP}}
	e.MSS4, e.MSS6 = clamps(p, set.mtu)
	return e
}

// canBecome reports whether t can have the configuration p without another device or other sockets.
func (t *tunnel) canBecome(p *config.PointToPoint) bool {
	is := &t.setup.Load().cfg
	return !t.gone.Load() && is.TAP == p.TAP && is.Encap == p.Encap
}

// index returns the index of the named tunnel, -1 for none.
func index(tunnels []config.PointToPoint, name string) int {
	return slices.IndexFunc(tunnels, func(p config.PointToPoint) bool { return p.Name == name })
}

func configs(tunnels []*tunnel) (all []config.PointToPoint) {
	for _, t := range tunnels {
		all = append(all, t.setup.Load().cfg)
	}
	return all
}

func mtusOf(tunnels []*tunnel) (all []int) {
	for _, t := range tunnels {
		all = append(all, t.setup.Load().mtu)
	}
	return all
}
