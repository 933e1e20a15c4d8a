package config

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"vstun/balancer/method"
	"vstun/encap"
	"vstun/encap/wireguard"
)

// WireGuard is the [wireguard] table, and the peers.
type WireGuard struct {
	On         bool   // there is a [wireguard] table
	KeyFile    string // has the private key
	PrivateKey wireguard.Key
	Listen     uint16  // UDP port
	Addresses  Sources // this end's addresses in the tunnel; a director has one at least
	// Peers are the far ends of all tunnels, each address and key once, in the file's order. A director's are
	// realservers, an agent's are directors.
	Peers []wireguard.Peer
	// TunnelPeers are the far ends of [[tunnel]]s. None of them has an address or key of Peers.
	TunnelPeers []wireguard.Peer
}

// Config returns w as the tunnel end takes it. The peers have no MTU.
func (w *WireGuard) Config() wireguard.Config {
	return wireguard.Config{PrivateKey: w.PrivateKey, Peers: slices.Concat(w.Peers, w.TunnelPeers)}
}

// Peer returns the peer with an address in the tunnel, or nil.
func (w *WireGuard) Peer(address netip.Addr) *wireguard.Peer {
	i := slices.IndexFunc(w.Peers, func(p wireguard.Peer) bool { return p.Address == address })
	if i < 0 {
		return nil
	}
	return &w.Peers[i]
}

// sealed reports whether the named tunnel is WireGuard's.
func sealed(name string) bool { return has(name, encap.Kind.Sealed) }

const wantWireGuard = "a [wireguard] table"

// readWireGuard reads the [wireguard] table, which may be missing, without peers. least is the least port to which the
// program has a right.
func readWireGuard(t *table, least int) (w WireGuard) {
	w.On = t.values != nil
	if !w.On {
		return w
	}
	w.KeyFile, w.PrivateKey = readSecret(t, "private_key", "wg genkey")
	if v, written := t.required("private_key", wantSecret("wg genkey")); written && v == "" {
		t.faultAt("private_key", "is empty: want %s", wantSecret("wg genkey"))
	}
	t.mark("private_key", "")
	port := t.integer("listen", 51820, 1, 65535, wantPort)
	if port < least {
		t.faultAt("listen", "%d is a port to which the program has no right: want %d to 65535", port, least)
	}
	w.Listen = uint16(port)
	w.Addresses = readOneEach(t, "address")
	return w
}

func wantSecret(how string) string {
	return fmt.Sprintf("the absolute path of a file that only the program's user and its group can read, such as %s "+
		"writes", how)
}

// readSecret reads the file with a key at once, since the program may lack the permission later. For a missing or empty
// value it returns "". A file that every user can read is refused. how is the command that makes such a file.
func readSecret(t *table, key, how string) (path string, k wireguard.Key) {
	want := wantSecret(how)
	path, ok := t.text(key, "", want)
	if !ok || path == "" {
		return "", k
	}
	if _, err := wireguard.ParseKey(path); err == nil {
		t.faultAt(key, "is a key, which every reader of this file can see: want %s", want)
		return "-", k
	}
	if !filepath.IsAbs(path) {
		t.faultAt(key, "%s is not an absolute path: want %s", show(path), want)
		return path, k
	}
	info, err := os.Stat(path)
	if err != nil {
		t.faultAt(key, "%v: want %s", err, want)
		return path, k
	}
	if info.Mode().Perm()&0o007 != 0 {
		t.faultAt(key, "every user of this host can use %s (mode %04o): chmod o= %s", show(path), info.Mode().Perm(),
			path)
		return path, k
	}
	content, err := readBounded(path)
	if err == nil {
		if k, err = wireguard.ParseKey(string(content)); err != nil {
			err = fmt.Errorf("%s: its content %w", path, err)
		} else if k.IsZero() {
			err = fmt.Errorf("%s: its content is a key of zeros", path)
		}
	}
	if err != nil {
		t.faultAt(key, "%v: want %s", err, want)
	}
	return path, k
}

// readOneEach reads an optional address, or an array with at most one address of each family.
func readOneEach(t *table, key string) (s Sources) {
	if _, ok := t.value(key); !ok {
		return s
	}
	for _, v := range t.elements(key, t.oneOrMore(key, "an address, or an array of an IPv4 and an IPv6 address")) {
		a, ok := t.address(key, v)
		if !ok {
			continue
		}
		of := &s.V6
		if a.Is4() {
			of = &s.V4
		}
		if of.IsValid() {
			t.faultAt(key, "%v and %v are of one family: want at most one IPv4 and one IPv6 address", *of, a)
		}
		*of = a
	}
	return s
}

const wantPublicKey = "a public key as wg pubkey writes it, or an array of the new and the old one"

// readPeer reads the keys of the peer with an address in the tunnel.
func readPeer(t *table, address netip.Addr) (p wireguard.Peer) {
	p.Address = address
	for _, v := range t.elements("public_key", t.oneOrMore("public_key", wantPublicKey)) {
		text, _ := v.(string)
		k, err := wireguard.ParseKey(text)
		switch {
		case err != nil || k.IsZero():
			t.faultAt("public_key", "%s is not a key: want %s", show(v), wantPublicKey)
		case slices.Contains(p.PublicKeys, k):
			t.faultAt("public_key", "%s is there twice: want each once", show(v))
		default:
			p.PublicKeys = append(p.PublicKeys, k)
		}
	}
	_, p.PresharedKey = readSecret(t, "preshared_key", "wg genpsk")
	p.Endpoint = readEndpoint(t)
	p.Keepalive = t.duration("keepalive", 0, 0, 65535*time.Second, `"0s" (none) to "65535s"`)
	if p.Keepalive%time.Second != 0 {
		t.faultAt("keepalive", "%v is no number of whole seconds: want \"0s\" (none) to \"65535s\"", p.Keepalive)
	}
	return p
}

// readEndpoint reads the address and port of a peer; "" is an unknown one.
func readEndpoint(t *table) (at netip.AddrPort) {
	const want = `an address and a port such as "203.0.113.9:51820" or "[2001:db8::9]:51820", or "" if the peer ` +
		"comes by itself"
	text, ok := t.text("endpoint", "", want)
	if !ok || text == "" {
		return at
	}
	at, err := netip.ParseAddrPort(text)
	a := at.Addr()
	switch {
	case err != nil:
		t.faultAt("endpoint", "%s is not an address and a port: want %s", show(text), want)
	case at.Port() == 0:
		t.faultAt("endpoint", "%s has port 0: want %s", show(text), wantPort)
	case a.Zone() != "" || a.Is4In6():
		t.faultAt("endpoint", "%s has a zone, or is an IPv4-mapped IPv6 address: want %s", show(text), want)
	case !a.IsLoopback() && NotUnicast(a) != "":
		t.faultAt("endpoint", "%s is %s: want %s", show(text), NotUnicast(a), want)
	}
	return at
}

// peerReader collects the peers of a file. Each has a key and an address of its own.
type peerReader struct {
	own   wireguard.Key // the public key of this end
	peers []wireguard.Peer
	at    map[netip.Addr]string     // the place of each
	ends  map[netip.AddrPort]string // the place of each endpoint
	keys  map[wireguard.Key]string  // the place of each
}

func newPeerReader(w *WireGuard) *peerReader {
	r := &peerReader{at: map[netip.Addr]string{}, ends: map[netip.AddrPort]string{}, keys: map[wireguard.Key]string{}}
	if !w.PrivateKey.IsZero() {
		r.own = w.PrivateKey.Public()
	}
	return r
}

// add adds p, which t has, unless the same peer is there already.
func (r *peerReader) add(t *table, p wireguard.Peer) {
	if where, there := r.at[p.Address]; there {
		i := slices.IndexFunc(r.peers, func(q wireguard.Peer) bool { return q.Address == p.Address })
		if q := &r.peers[i]; !slices.Equal(q.PublicKeys, p.PublicKeys) || q.PresharedKey != p.PresharedKey ||
			q.Endpoint != p.Endpoint || q.Keepalive != p.Keepalive {
			t.fault("%v has other values than here in %s: want the same, or leave one out", p.Address, where)
		}
		return
	}
	for _, k := range p.PublicKeys {
		if where, there := r.keys[k]; there {
			t.faultAt("public_key", "\"%v\" is also a key of %s: want a key for each peer", k, where)
		}
		if k == r.own {
			t.faultAt("public_key", "\"%v\" belongs to the private key of this host: want the peer's", k)
		}
		r.keys[k] = t.path[:max(len(t.path)-2, 0)]
	}
	if p.Endpoint.Addr() == p.Address {
		t.warnAt("endpoint", "\"%v\" has the peer's address in the tunnel, by which no message reaches it from "+
			"outside, unless its host has the address there, too: want the outer one", p.Endpoint)
	}
	if where, there := r.ends[p.Endpoint]; there {
		t.warnAt("endpoint", "\"%v\" is also the endpoint of %s, and one of them only can be there: want the address "+
			"and port of each", p.Endpoint, where)
	}
	if p.Endpoint.IsValid() {
		r.ends[p.Endpoint] = strings.TrimSuffix(t.path[:max(len(t.path)-2, 0)], ": wireguard")
	}
	r.at[p.Address] = t.path[:max(len(t.path)-2, 0)]
	r.peers = append(r.peers, p)
}

// readRealserverPeer reads the keys of rs, a realserver, which another service may have instead.
func (r *serviceReader) readRealserverPeer(t *table, rs *RealserverRef) {
	_, written := t.value("wireguard")
	p := t.table("wireguard", "a table with the keys of the realserver")
	if !written || p.values == nil {
		return
	}
	peer := readPeer(p, rs.Address)
	p.finish()
	switch {
	case rs.Forward != method.TUN:
		t.warnAt("wireguard", "%v has no tunnel: leave it out, or use tun", rs.Forward)
	case rs.Encap != "" && !sealed(rs.Encap):
		t.warnAt("wireguard", "this tunnel is %s: leave it out, or set encap = \"wireguard\"", rs.Encap)
	case rs.Address.IsValid() && len(peer.PublicKeys) > 0:
		r.peers.add(p, peer)
	}
}

// finishWireGuard checks the tunnels of all services against the [wireguard] table at t, and returns that with peers.
func (r *serviceReader) finishWireGuard(t *table, w WireGuard, services []Service) WireGuard {
	w.Peers = r.peers.peers[:len(r.peers.peers)-len(w.TunnelPeers)]
	if w.On && w.Addresses == (Sources{}) && (len(r.sealed) > 0 || len(w.TunnelPeers) == 0) {
		t.required("address", "the director's address in the tunnel, or one of each family")
	}
	for i := range w.Peers {
		if at := w.Peers[i].Endpoint; at.IsValid() {
			if owner, ok := r.vips[at.Addr()]; ok {
				t.fault("the endpoint \"%v\" of peer %v is a VIP of %s, whose packets would come back here: want an "+
					"address of the realserver's host", at, w.Peers[i].Address, owner.label)
			}
		}
	}
	for _, a := range w.Addresses.List() {
		if owner, ok := r.vips[a]; ok {
			t.faultAt("address", "\"%v\" is also a VIP of %s: want the director's own address", a, owner.label)
		}
		if slices.ContainsFunc(r.realservers, func(l located) bool { return l.address == a }) {
			t.faultAt("address", "\"%v\" is also a realserver's: want the director's own address", a)
		}
	}
	for i := range services {
		for j := range services[i].Realservers {
			own(&services[i].Realservers[j], w.Addresses)
		}
		own(&services[i].Sorry, w.Addresses)
	}
	used := len(w.TunnelPeers) > 0
	for _, l := range r.sealed {
		used = true
		if !w.On {
			l.t.faultAt(l.key, "encap is wireguard, and there is no [wireguard] table: add one with private_key and "+
				"address")
			continue
		}
		if l.address.IsValid() && w.Peer(l.address) == nil && l.t.values["wireguard"] == nil {
			l.t.faultAt(l.key, "\"%v\" has no wireguard = { public_key = \"…\" } in any service: add it", l.address)
		}
		if a := w.Addresses.For(l.address); w.Addresses != (Sources{}) && l.address.IsValid() && !a.IsValid() {
			l.t.faultAt(l.key, "\"%v\" is an %s address, and [wireguard] has none: add one to its address", l.address,
				family(l.address))
		}
	}
	if w.On && !used && len(services) > 0 {
		t.warnAt("private_key", "no realserver has encap = \"wireguard\", and no tunnel: leave the table out")
	}
	return w
}

// own sets the director's address in the tunnel to rs.
func own(rs *RealserverRef, addresses Sources) {
	if sealed(rs.Encap) && rs.Address.IsValid() {
		rs.Own = addresses.For(rs.Address)
	}
}

// readPeers reads the [wireguard] table of an agent, its peers, which are directors, and its tunnels.
func readPeers(root *table, r *Realserver) {
	t := root.optional("wireguard", wantWireGuard)
	r.WireGuard = readWireGuard(t, 1) // the sockets are opened with the right to all ports
	accepts := slices.ContainsFunc(r.Encaps, sealed)
	peers := newPeerReader(&r.WireGuard)
	if r.WireGuard.On {
		for i, row := range t.tables("peer", "[[wireguard.peer]] tables") {
			p := root.child(fmt.Sprintf("wireguard.peer[%d]", i+1), row.values, row.at)
			var address netip.Addr
			if v, ok := p.required("address", "the director's address in the tunnel"); ok {
				if address, ok = p.address("address", v); ok && !inDirectors(r, address) {
					p.faultAt("address", "\"%v\" is not in directors, so that its packets would be refused: add it "+
						"there", address)
				}
			}
			peer := readPeer(p, address)
			p.finish()
			if address.IsValid() && len(peer.PublicKeys) > 0 {
				peers.add(p, peer)
			}
		}
		r.WireGuard.Peers = peers.peers
	}
	r.Tunnels, r.WireGuard.TunnelPeers = newTunnelReader(map[string]string{r.TUN: "[realserver]"}, &r.WireGuard, peers,
		r.refuseTaken).read(root)
	t.finish()
	switch {
	case accepts && !r.WireGuard.On:
		root.child("realserver", nil, root.at.key("realserver")).faultAt("encap",
			"it has wireguard, and there is no [wireguard] table: add one with private_key and [[wireguard.peer]]")
	case accepts && t.values["peer"] == nil:
		t.fault("it has no [[wireguard.peer]]: add one for each director")
	case !accepts && r.WireGuard.On && len(r.WireGuard.TunnelPeers) == 0:
		t.warnAt("private_key", "encap has no wireguard: leave the table out, or add it there")
	}
	for _, vip := range r.VIPs {
		if slices.Contains(r.WireGuard.Addresses.List(), vip) {
			t.faultAt("address", "\"%v\" is one of the vips: want an address of its own", vip)
		}
	}
}

// inDirectors reports whether r accepts tunnel packets from a.
func inDirectors(r *Realserver, a netip.Addr) bool {
	return slices.ContainsFunc(r.Directors, func(p netip.Prefix) bool { return p.Contains(a) })
}

// A WireGuardChange is a difference between two [wireguard] tables, as texts. A changed secret has equal texts.
type WireGuardChange struct {
	Peer     netip.Addr // whose key it is; invalid: the table's own
	Key      string
	Old, New string // "" for none
}

// WireGuardChanges returns the differences of the keys that a reload can change.
func WireGuardChanges(was, is *WireGuard) (all []WireGuardChange) {
	compare := func(peer netip.Addr, key, was, is string) {
		if was != is {
			all = append(all, WireGuardChange{peer, key, was, is})
		}
	}
	var no netip.Addr
	if was.PrivateKey != is.PrivateKey {
		compare(no, "private_key", publicName(was.PrivateKey), publicName(is.PrivateKey))
	}
	compare(no, "address", addressNames(was.Addresses), addressNames(is.Addresses))
	for i := range is.Peers {
		p := &is.Peers[i]
		old := was.Peer(p.Address)
		if old == nil {
			compare(p.Address, "peer", "", "public key "+keyNames(p))
			continue
		}
		compare(p.Address, "public_key", keyNames(old), keyNames(p))
		if old.PresharedKey != p.PresharedKey {
			const secret = "(secret)"
			all = append(all, WireGuardChange{p.Address, "preshared_key", secret, secret})
		}
		compare(p.Address, "endpoint", endpointName(old), endpointName(p))
		compare(p.Address, "keepalive", old.Keepalive.String(), p.Keepalive.String())
	}
	for i := range was.Peers {
		if p := &was.Peers[i]; is.Peer(p.Address) == nil {
			compare(p.Address, "peer", "public key "+keyNames(p), "")
		}
	}
	return all
}

// publicName names a private key by its public key.
func publicName(k wireguard.Key) string {
	if k.IsZero() {
		return ""
	}
	return "of public key " + k.Public().String()
}

func addressNames(s Sources) string {
	var names []string
	for _, a := range s.List() {
		names = append(names, a.String())
	}
	return strings.Join(names, ",")
}

func keyNames(p *wireguard.Peer) string {
	var names []string
	for _, k := range p.PublicKeys {
		names = append(names, k.String())
	}
	return strings.Join(names, ",")
}

func endpointName(p *wireguard.Peer) string {
	if !p.Endpoint.IsValid() {
		return ""
	}
	return p.Endpoint.String()
}
