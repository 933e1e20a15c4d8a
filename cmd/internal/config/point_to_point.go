package config

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"vstun/cmd/internal/words"
	"vstun/encap"
	"vstun/encap/packet"
	"vstun/encap/wireguard"
)

// PointToPoint is one [[tunnel]], in either program's file: a device whose packets go to one peer and back.
type PointToPoint struct {
	Name      string // of the device; unique
	TAP       bool   // the device has Ethernet frames, and not IP packets
	Encap     encap.Kind
	Local     netip.Addr     // outer address of this end, of "wireguard" its address in that
	Remote    netip.Addr     // of the peer, of the same family
	Addresses []netip.Prefix // of the device, each once
	Routes    []netip.Prefix // by the device, without host bits, each once; of a TUN device only
	Key       uint32         // of GRE; 0: none
	EncapPort uint16         // UDP port of both ends, of "gue" and "fou" only
	Probe     Probe
	Bridge    string // whose port a TAP device becomes; "": none
	MTU       int    // of the device, in bytes; 0: what fits the path
	NoMSS     bool   // SYNs keep their MSS
}

// Probe is a ping through a tunnel.
type Probe struct {
	Address  netip.Addr // invalid: there is none
	Interval time.Duration
}

// Bounds of the MTU of a tunnel's device, in bytes. An IPv4 host must take packets of 576 bytes (RFC 791), and a link
// with IPv6 packets of 1,280 (RFC 8200, section 5).
const (
	minTunnelMTU  = 576
	minTunnelMTU6 = 1280
	maxTunnelMTU  = 65535
	// maxFrameMTU is that of a TAP device: the Ethernet header counts (Linux drivers/net/tun.c, tun_net_initialize).
	maxFrameMTU = maxTunnelMTU - packet.EthernetHeaderLen
)

// maxTunnels bounds the tunnels of a program: each has workers and sockets of its own.
const maxTunnels = 256

// tunnelReader reads the [[tunnel]] tables of a file.
type tunnelReader struct {
	devices map[string]string // name of a device → its owner
	ends    map[tunnelEnd]string
	formats map[uint16]tunnelFormat // of UDP ports
	routes  map[netip.Prefix]string // route → its owner
	keys    *peerReader
	on      bool   // there is a [wireguard] table
	listen  uint16 // its UDP port; 0: there is none
	taken   func(t *table, p *PointToPoint)
}

// tunnelEnd is what tells the packets of two tunnels apart.
type tunnelEnd struct {
	remote   netip.Addr
	protocol string
	port     uint16
	key      uint32
	frames   bool
}

// tunnelFormat is what a UDP port receives.
type tunnelFormat struct {
	encap  encap.Kind
	frames bool // of fou, which has no header that tells
	owner  string
}

// newTunnelReader returns a reader. devices are the program's own devices by name. taken refuses tunnels whose packets
// would be the program's own, too.
func newTunnelReader(devices map[string]string, w *WireGuard, keys *peerReader,
	taken func(t *table, p *PointToPoint)) *tunnelReader {
	return &tunnelReader{devices: devices, ends: map[tunnelEnd]string{}, formats: map[uint16]tunnelFormat{},
		routes: map[netip.Prefix]string{}, keys: keys, on: w.On, listen: w.Listen, taken: taken}
}

// read reads all tunnels, and the peers of WireGuard among their far ends that r.keys does not have yet.
func (r *tunnelReader) read(root *table) (all []PointToPoint, peers []wireguard.Peer) {
	before := len(r.keys.peers)
	rows := root.tables("tunnel", "[[tunnel]] tables")
	if len(rows) > maxTunnels {
		root.faultAt("tunnel", "there are %d: want %d at most", len(rows), maxTunnels)
		return nil, nil
	}
	for i, row := range rows {
		at := fmt.Sprintf("tunnel[%d]", i+1)
		if name, ok := row.values["name"].(string); ok && validDevice(name) && r.devices[name] == "" {
			at = "tunnel " + show(name)
		}
		t := root.child(at, row.values, row.at)
		all = append(all, r.tunnel(t))
		t.finish()
	}
	return all, append(peers, r.keys.peers[before:]...)
}

// tunnel reads one table.
func (r *tunnelReader) tunnel(t *table) (p PointToPoint) {
	if _, ok := t.required("name", "a name for the device"); ok {
		if p.Name = t.device("name"); p.Name != "" {
			if owner := r.devices[p.Name]; owner != "" {
				t.faultAt("name", "%s is also the name of %s: want a name of its own", show(p.Name), owner)
			}
			r.devices[p.Name] = t.label
		}
	}
	p.TAP = t.oneOf("device", "tun", "tap") == "tap"
	known := r.readEncap(t, &p)
	p.Local, p.Remote = t.end("local", "this end's address"), t.end("remote", "the peer's address")
	if p.Local.IsValid() && p.Remote.IsValid() {
		switch {
		case p.Local == p.Remote:
			t.faultAt("remote", "\"%v\" is local, too: want the peer's address", p.Remote)
		case p.Local.Is4() != p.Remote.Is4():
			t.faultAt("remote", "\"%v\" is an %s address, and local is none: want two of one family", p.Remote,
				family(p.Remote))
		}
	}
	r.readDevice(t, &p)
	p.Probe = readTunnelProbe(t)
	p.NoMSS = t.oneOf("mss", "auto", "off") == "off"
	carrier := r.readKeys(t, &p, known)
	checkRoutes(t, &p, carrier)
	if known && p.Remote.IsValid() {
		r.claim(t, &p)
		r.taken(t, &p)
	}
	return p
}

// end reads the address of one end.
func (t *table) end(key, want string) netip.Addr {
	v, ok := t.required(key, want)
	if !ok {
		return netip.Addr{}
	}
	a, _ := t.address(key, v)
	return a
}

// readEncap reads the encapsulation with its port and key. It returns false if it is not known.
func (r *tunnelReader) readEncap(t *table, p *PointToPoint) bool {
	offered := Encaps()
	v, ok := t.required("encap", words.OneOf(offered))
	name := ""
	if ok {
		name, ok = t.choice("encap", v, offered)
	}
	key := t.integer("key", 0, 0, math.MaxUint32, "0 (none) to 4294967295")
	port := t.integer("encap_port", 6080, 1, 65535, wantPort)
	if !ok {
		return false
	}
	p.Encap, _ = encap.ParseKind(name)
	if p.TAP && !p.Encap.HasFrames() {
		t.faultAt("encap", "%s carries IP packets, and a TAP device has Ethernet frames: want %s", name,
			words.OneOf(encapsWith(encap.Kind.HasFrames)))
	}
	if key != 0 && !p.Encap.HasKey() {
		t.faultAt("key", "%s a key, and this tunnel is %s: leave it out", only(encap.Kind.HasKey), name)
	}
	p.Key = uint32(key)
	switch _, written := t.values["encap_port"]; {
	case p.Encap.UDP():
		p.EncapPort = uint16(port)
	case written:
		t.warnAt("encap_port", "%s a port, and this tunnel is %s: leave it out", only(encap.Kind.UDP), name)
	}
	return true
}

// readDevice reads the settings of the device.
func (r *tunnelReader) readDevice(t *table, p *PointToPoint) {
	p.Addresses = t.prefixes("addresses", `an address with its prefix length such as "10.8.0.1/30"`, false)
	p.Routes = t.prefixes("routes", `a prefix such as "10.20.0.0/16"`, true)
	six := slices.ContainsFunc(slices.Concat(p.Addresses, p.Routes),
		func(n netip.Prefix) bool { return n.Addr().Is6() })
	p.MTU = t.integer("mtu", 0, 0, maxTunnelMTU, "0 (what fits), or 576 to 65535 bytes")
	switch {
	case p.MTU > 0 && p.MTU < minTunnelMTU:
		t.faultAt("mtu", "%d is out of range: want 0 (what fits), or 576 to 65535 bytes", p.MTU)
	case p.TAP && p.MTU > maxFrameMTU:
		t.faultAt("mtu", "%d is too large for a TAP device: want %d at most", p.MTU, maxFrameMTU)
	case p.MTU > 0 && p.MTU < minTunnelMTU6 && six:
		t.faultAt("mtu", "%d is too small for IPv6, which addresses or routes have: want 1280 at least", p.MTU)
	}
	if len(p.Routes) > 0 && p.TAP {
		t.faultAt("routes", "a route into an Ethernet network needs a gateway, which this key has not: leave it out, "+
			"and use ip route add PREFIX via GATEWAY dev %s", cmp.Or(p.Name, "NAME"))
	}
	for _, n := range p.Routes {
		if owner := r.routes[n]; owner != "" {
			t.faultAt("routes", "\"%v\" is also a route of %s: want it in one tunnel", n, owner)
		}
		r.routes[n] = t.label
	}
	if v, ok := t.value("bridge"); !ok || v == "" {
		return
	}
	p.Bridge = t.device("bridge")
	switch {
	case !p.TAP:
		t.faultAt("bridge", "only a TAP device becomes a port of a bridge: leave it out, or set device = \"tap\"")
	case p.Bridge != "" && r.devices[p.Bridge] != "":
		t.faultAt("bridge", "%s is the name of %s: want an existing bridge", show(p.Bridge), r.devices[p.Bridge])
	case len(p.Addresses) > 0:
		t.faultAt("addresses", "a port of a bridge has none: give them to %s", p.Bridge)
	}
}

// readTunnelProbe reads the table probe.
func readTunnelProbe(t *table) (p Probe) {
	n := t.optional("probe", `a table such as { address = "10.8.0.2", interval = "5s" }`)
	if n.values == nil {
		return p
	}
	p.Address = n.end("address", "an address behind the tunnel, such as the peer's device has")
	p.Interval = n.duration("interval", 5*time.Second, time.Second, time.Hour, `"1s" to "1h"`)
	n.finish()
	return p
}

// checkRoutes refuses addresses and routes that lead the tunnel's own packets, which go to carrier, into its device. A
// shorter prefix is a warning: the host may have a longer route to carrier, which only the running program sees.
func checkRoutes(t *table, p *PointToPoint, carrier netip.Addr) {
	for _, r := range []struct {
		key      string
		prefixes []netip.Prefix
	}{{"addresses", p.Addresses}, {"routes", p.Routes}} {
		for _, n := range r.prefixes {
			switch {
			case !n.Contains(carrier):
			case n.IsSingleIP() || r.key == "addresses" && n.Addr() == carrier:
				t.faultAt(r.key, "\"%v\" is the address to which the tunnel's packets go, so that they would come "+
					"back to its device: leave it out", n)
			default:
				t.warnAt(r.key, "\"%v\" covers %v, to which the tunnel's packets go: the tunnel is down unless this "+
					"host has a longer route to it (ip route add %v via GATEWAY)", n, carrier, carrier)
			}
		}
	}
}

// readKeys reads the keys of WireGuard. known reports whether the encapsulation is known. It returns the address to
// which the tunnel's packets go; invalid: it is not known.
func (r *tunnelReader) readKeys(t *table, p *PointToPoint, known bool) (carrier netip.Addr) {
	keys := t.optional("wireguard", "a table with the keys of the peer")
	var peer wireguard.Peer
	if keys.values != nil {
		peer = readPeer(keys, p.Remote)
		keys.finish()
	}
	switch {
	case !known:
	case !p.Encap.Sealed():
		if keys.values != nil {
			t.warnAt("wireguard", "this tunnel is %v: leave it out, or set encap = \"wireguard\"", p.Encap)
		}
	case !r.on:
		t.faultAt("encap", "it is wireguard, and there is no [wireguard] table: add one with private_key")
	case keys.values == nil:
		t.faultAt("wireguard", "missing: want a table with the keys of the peer")
	case p.Remote.IsValid() && len(peer.PublicKeys) > 0:
		r.keys.add(keys, peer)
	}
	if known && p.Encap.Sealed() {
		return peer.Endpoint.Addr()
	}
	return p.Remote
}

// claim refuses a tunnel whose packets cannot be told apart from another one's.
func (r *tunnelReader) claim(t *table, p *PointToPoint) {
	end := tunnelEnd{remote: p.Remote, protocol: p.Encap.String(), port: p.EncapPort, key: p.Key, frames: p.TAP}
	if p.Encap == encap.KindFOU {
		end.frames = false
	}
	if owner := r.ends[end]; owner != "" {
		hint := "another remote"
		switch {
		case p.Encap.HasKey():
			hint += " or key"
		case p.Encap.UDP():
			hint += " or encap_port"
		}
		t.faultAt("remote", "\"%v\" is also the peer of %s, by the same encapsulation, so that nothing tells their "+
			"packets apart: want %s", p.Remote, owner, hint)
	}
	r.ends[end] = t.label
	if !p.Encap.UDP() {
		return
	}
	if p.EncapPort == r.listen {
		t.faultAt("encap_port", "%d is listen of [wireguard]: want a port of its own", p.EncapPort)
	}
	is := tunnelFormat{encap: p.Encap, frames: p.TAP && p.Encap == encap.KindFOU, owner: t.label}
	if was, ok := r.formats[p.EncapPort]; ok && (was.encap != is.encap || was.frames != is.frames) {
		t.faultAt("encap_port", "%d receives another format for %s: want a port of its own", p.EncapPort, was.owner)
	}
	r.formats[p.EncapPort] = is
}

// prefixes reads an optional array of prefixes, or one. With network they have no host bits.
func (t *table) prefixes(key, want string, network bool) (all []netip.Prefix) {
	v, ok := t.value(key)
	if list, isArray := v.([]any); !ok || isArray && len(list) == 0 {
		return nil
	}
	for _, v := range t.elements(key, t.oneOrMore(key, want+", or an array of them")) {
		s, ok := v.(string)
		if !ok {
			t.wrongType(key, v, want)
			continue
		}
		p, err := netip.ParsePrefix(s)
		a := p.Addr()
		switch {
		case err != nil && !strings.Contains(s, "/"):
			t.faultAt(key, "%s has no prefix length: want %s", show(s), want)
		case err != nil:
			t.faultAt(key, "%s is not a prefix: want %s", show(s), want)
		case a.Is4In6():
			t.faultAt(key, "%s is of IPv4-mapped IPv6 addresses: want %s", show(s), want)
		case network && p != p.Masked():
			t.faultAt(key, "%s has bits beyond its length: want \"%v\"", show(s), p.Masked())
		case !network && NotUnicast(a) != "" && !a.IsLinkLocalUnicast():
			t.faultAt(key, "%s is %s: want a unicast address", show(s), NotUnicast(a))
		case slices.Contains(all, p):
			t.faultAt(key, "%s is there twice: want each once", show(s))
		default:
			all = append(all, p)
		}
	}
	return all
}

// refuseTaken refuses a tunnel whose addresses or routes are VIPs: their packets go to realservers.
func (r *serviceReader) refuseTaken(t *table, p *PointToPoint) {
	for _, end := range []struct {
		key  string
		addr netip.Addr
	}{{"local", p.Local}, {"remote", p.Remote}} {
		if owner, ok := r.vips[end.addr]; ok {
			t.faultAt(end.key, "\"%v\" is a VIP of %s, whose packets go to realservers: want another address",
				end.addr, owner.label)
		}
	}
	for _, n := range p.Addresses {
		if owner, ok := r.vips[n.Addr()]; ok {
			t.faultAt("addresses", "\"%v\" is a VIP of %s, whose packets this host would take itself: want another "+
				"address", n, owner.label)
		}
	}
	for _, n := range p.Routes {
		if owner, ok := r.vips[n.Addr()]; ok && n.IsSingleIP() {
			t.faultAt("routes", "\"%v\" is a VIP of %s, whose packets go to realservers: leave it out", n, owner.label)
		}
	}
}

// refuseTaken refuses a tunnel whose packets a director may send, too, or whose UDP port receives another format.
func (r *Realserver) refuseTaken(t *table, p *PointToPoint) {
	for _, name := range r.Encaps {
		kind, _ := encap.ParseKind(name)
		if kind.UDP() && p.Encap.UDP() && r.EncapPort == p.EncapPort && kind != p.Encap {
			t.faultAt("encap_port", "%d receives %s for the vips: want a port of its own", p.EncapPort, name)
		}
		same := kind == p.Encap && (!kind.UDP() || r.EncapPort == p.EncapPort)
		if same && inDirectors(r, p.Remote) {
			t.faultAt("remote", "\"%v\" is in directors, too, and %s is in encap, so that nothing tells the packets "+
				"of the tunnel from a director's: want another encap here, or narrower directors", p.Remote, name)
		}
	}
	for _, n := range p.Addresses {
		if slices.Contains(r.VIPs, n.Addr()) {
			t.faultAt("addresses", "\"%v\" is one of the vips, which the agent gives to its own device: want another "+
				"address", n)
		}
	}
	if slices.Contains(r.VIPs, p.Local) {
		t.faultAt("local", "\"%v\" is one of the vips: want this host's own address", p.Local)
	}
}
