package migrate

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"vstun/routing/vrrp"
)

// settleVRRP makes the instances consistent with each other and with the services' VIPs.
func (p *plan) settleVRRP() {
	vips := map[netip.Addr]bool{}
	for _, s := range p.services {
		for _, vip := range s.vips {
			vips[vip] = true
		}
	}
	r := vrrpSettler{plan: p, vips: vips, names: map[string]int{}, owners: map[netip.Addr]*instance{},
		routers: map[virtualRouter]*instance{}}
	p.instances = slices.DeleteFunc(p.instances, func(v *instance) bool { return !r.settle(v) })
	if len(p.instances) == 0 {
		return
	}
	for _, v := range p.instances {
		if o := r.owners[v.from]; o != nil {
			p.noteOn(v, v.fromAt, "%v: is an address that moves with %s: left out: write source", v.from, o.source)
			v.from = netip.Addr{}
		}
	}
	for _, s := range p.services {
		p.noteUnlisted(s, r.owners)
	}
}

// noteUnlisted notes VIPs that no instance has.
func (p *plan) noteUnlisted(s *service, owners map[netip.Addr]*instance) {
	var all []string
	for _, vip := range s.vips {
		if owners[vip] == nil {
			all = append(all, vip.String())
		}
	}
	if n := len(all) - 4; n > 0 {
		all = append(all[:4], strconv.Itoa(n)+" more")
	}
	if len(all) > 0 {
		p.noteOf(s, s.Place, "no vrrp_instance has the VIP %s: director check refuses it in a subnet of the host: "+
			"write "+
			"it in addresses of a [[vrrp]], unless it is routed", strings.Join(all, ", "))
	}
}

// virtualRouter is what other routers know an instance by.
type virtualRouter struct {
	device string
	id     uint8
	ipv6   bool
}

// vrrpSettler keeps the values that must differ between instances.
type vrrpSettler struct {
	*plan
	vips    map[netip.Addr]bool
	names   map[string]int
	owners  map[netip.Addr]*instance
	routers map[virtualRouter]*instance
}

// settle makes an instance consistent. It reports whether the instance can be one of the director's.
func (r *vrrpSettler) settle(v *instance) bool {
	v.addresses = slices.DeleteFunc(v.addresses, func(m moving) bool {
		first := v.addresses[0].address
		if m.address.Is6() == first.Is6() {
			return false
		}
		r.noteOn(v, m.Place, "virtual_ipaddress %v: is of another family than %v: left out, as by keepalived: write "+
			"it "+
			"in virtual_ipaddress_excluded", m.address, first)
		return true
	})
	if len(v.addresses) == 0 || v.device == "" || v.routerID == 0 {
		r.noteOn(v, v.Place, "%s: an instance needs interface, virtual_router_id and virtual_ipaddress: left out: "+
			"write [[vrrp]]", v.source)
		return false
	}
	router := virtualRouter{v.device, v.routerID, v.addresses[0].address.Is6()}
	if o := r.routers[router]; o != nil {
		r.noteOn(v, v.Place, "%s: virtual_router_id %d of %s is that of %s already: left out: choose another one",
			v.source, v.routerID, v.device, o.source)
		return false
	}
	v.addresses = r.unowned(v, v.addresses)
	if most := 255; len(v.addresses) > most {
		r.noteOn(v, v.addresses[most].Place, "virtual_ipaddress: there are %d, more than %d: the others are left out: "+
			"write another instance, or virtual_ipaddress_excluded", len(v.addresses), most)
		v.addresses = v.addresses[:most]
	}
	if len(v.addresses) == 0 {
		r.noteOn(v, v.Place, "%s: no address is left: left out: write [[vrrp]] with addresses", v.source)
		return false
	}
	v.excluded = r.unowned(v, v.excluded)
	r.routers[router] = v
	v.name = unique(nameOf(v.title), r.names)
	r.settleVersion(v)
	r.settlePeers(v)
	r.settlePreemption(v)
	r.settleTracks(v)
	return true
}

// unowned returns the addresses that no other instance has, and makes v their owner.
func (r *vrrpSettler) unowned(v *instance, list []moving) []moving {
	return slices.DeleteFunc(list, func(m moving) bool {
		if o := r.owners[m.address]; o != nil {
			r.noteOn(v, m.Place, "%v is one of %s already: left out: take it out at the other directors, too, as "+
				"keepalived 2.2 ignores an instance with fewer addresses", m.address, o.source)
			return true
		}
		r.owners[m.address] = v
		if r.vips[m.address] && m.device != "" && m.device != v.device {
			r.noteOn(v, m.Place, "VIP %v dev %s: devices with its subnet and %s announce it: look whether %s is one "+
				"of "+
				"them", m.address, m.device, v.device, m.device)
		}
		return false
	})
}

// settleVersion sets the version, and what depends on it: interval and password.
func (r *vrrpSettler) settleVersion(v *instance) {
	ipv6 := v.addresses[0].address.Is6()
	switch {
	case ipv6 && v.version == vrrp.Version2:
		r.noteOn(v, v.Place, "version 2 has no IPv6: 3 is in its place, as with keepalived")
		v.version = vrrp.Version3
	case ipv6:
		v.version = vrrp.Version3
	case v.version == 0 && r.vrrp.version != 0:
		v.version = r.vrrp.version
	case v.version == 0:
		v.version = vrrp.Version2
	}
	unit, most := time.Second, 255*time.Second
	if v.version == vrrp.Version3 {
		unit, most = 10*time.Millisecond, 40950*time.Millisecond
	}
	if d := min(max(v.interval.Round(unit), unit), most); d != v.interval {
		r.noteOn(v, v.intervalAt, "advert_int %v: version %d has steps of %s up to %s: %s is in its place", v.interval,
			v.version, duration(unit), duration(most), duration(d))
		v.interval = d
	}
	v.checksum = v.checksum && v.version == vrrp.Version3 && !ipv6
	r.settleAuth(v)
}

// isStrict reports whether keepalived's strict mode applies to an instance.
func (p *plan) isStrict(v *instance) bool {
	for _, set := range []*bool{v.strict, p.vrrp.strict} {
		if set != nil {
			return *set
		}
	}
	return false
}

// passwordLength is the number of a password's bytes that count: RFC 2338, section 5.3.10.
const passwordLength = 8

// settleAuth removes a password that keepalived does not use.
func (r *vrrpSettler) settleAuth(v *instance) {
	a := &v.auth
	password := a.password[:min(len(a.password), passwordLength)]
	kind := a.kind
	a.password = ""
	switch {
	case *a == (auth{}):
	case kind == "AH":
		r.noteOn(v, a.Place, "auth_type AH: no counterpart: left out: set auth_type PASS at the other directors, too")
	case v.version == vrrp.Version3 || r.isStrict(v):
		r.noteOn(v, a.Place, "authentication: keepalived ignores it with version 3 and in strict mode, and so does "+
			"the "+
			"import: set a key at all directors once they are of vstun")
	case kind != "PASS" || password == "":
		r.noteOn(v, a.Place, "authentication: keepalived ignores it without auth_type PASS and auth_pass, and so does "+
			"the import")
	case printable(password) != password:
		r.noteOn(v, a.Place, "auth_pass: its first 8 bytes are no text: left out: set another one at all directors")
	default:
		a.password = password
	}
}

// settlePeers removes peers and a source that the instance cannot have.
func (r *vrrpSettler) settlePeers(v *instance) {
	ipv6 := v.addresses[0].address.Is6()
	seen := map[netip.Addr]bool{}
	had := len(v.peers)
	v.peers = slices.DeleteFunc(v.peers, func(p peer) bool {
		switch {
		case p.address.Is6() != ipv6:
			r.noteOn(v, p.Place, "unicast_peer %v: is of another family than the addresses: left out: write another "+
				"one", p.address)
		case r.owners[p.address] == v:
			r.noteOn(v, p.Place, "unicast_peer %v: is an address that moves: left out: write the other director's own",
				p.address)
		case !seen[p.address]:
			seen[p.address] = true
			return false
		}
		return true
	})
	if had > 0 && len(v.peers) == 0 {
		r.noteOn(v, v.Place, "%s: no unicast_peer is left: it sends by multicast: write peers", v.source)
	}
	switch {
	case !v.from.IsValid():
		return
	case v.from.Is6() != ipv6:
		r.noteOn(v, v.fromAt, "%v: is no address to send from: left out: write source", v.from)
	case ipv6 && len(v.peers) == 0 && !v.from.IsLinkLocalUnicast():
		r.noteOn(v, v.fromAt, "%v: IPv6 multicast is sent from a link-local address: left out", v.from)
	default:
		return
	}
	v.from = netip.Addr{}
}

// settlePreemption follows keepalived in what excludes what.
func (r *vrrpSettler) settlePreemption(v *instance) {
	strict := r.isStrict(v)
	if v.master && (!strict || v.priority == vrrp.Owner) && (v.noPreempt || v.preemptDelay > 0) {
		r.noteOn(v, v.Place, "nopreempt and preempt_delay: keepalived ignores them with state MASTER, and so does the "+
			"import: set preempt and preempt_delay where they were meant")
		v.noPreempt, v.preemptDelay = false, 0
	}
	if v.preemptDelay > 0 && (v.noPreempt || strict) {
		r.noteOn(v, v.Place, "preempt_delay: keepalived ignores it with nopreempt and in strict mode, and so does the "+
			"import")
		v.preemptDelay = 0
	}
}

// settleTracks leaves out the instance's own device, without which it has a fault anyway, what is there twice, and
// gateways that may be in no subnet of the host: they would be a fault for ever.
func (r *vrrpSettler) settleTracks(v *instance) {
	type subject struct {
		device  string
		gateway netip.Addr
	}
	seen := map[subject]bool{{device: v.device}: true}
	v.tracks = slices.DeleteFunc(v.tracks, func(t track) bool {
		of := subject{t.device, t.gateway}
		if seen[of] {
			return true
		}
		seen[of] = true
		if t.device != "" || v.isNear(t.gateway) {
			return false
		}
		r.noteOn(v, t.Place, "track_script %s: no counterpart: left out: track = [%s] does that, if it is in a "+
			"subnet of "+
			"this host", t.script, t.key())
		return true
	})
}

// isNear reports whether an address is in the subnet of one of the instance's.
func (v *instance) isNear(a netip.Addr) bool {
	return slices.ContainsFunc(slices.Concat(v.addresses, v.excluded), func(m moving) bool {
		return netip.PrefixFrom(m.address, m.length).Contains(a) && m.address != a
	})
}

// keys returns the keys of a [[vrrp]].
func (v *instance) keys(vips map[netip.Addr]bool) (keys []key) {
	add := func(name, value string) { keys = append(keys, key{name, value, ""}) }
	add("name", quote(v.name))
	add("interface", quote(v.device))
	add("router_id", strconv.Itoa(int(v.routerID)))
	if v.version != vrrp.Version3 {
		add("version", strconv.Itoa(int(v.version)))
	}
	add("priority", strconv.Itoa(int(v.priority)))
	if v.interval != usualInterval {
		add("interval", quote(duration(v.interval)))
	}
	add("addresses", list(v.written(v.addresses, vips)))
	if len(v.excluded) > 0 {
		add("excluded", list(v.written(v.excluded, vips)))
	}
	if v.from.IsValid() {
		add("source", quote(v.from.String()))
	}
	if v.noPreempt {
		add("preempt", "false")
	}
	if v.preemptDelay > 0 {
		add("preempt_delay", quote(duration(v.preemptDelay)))
	}
	if v.auth.password != "" {
		add("password", quote(v.auth.password))
	}
	if len(v.peers) > 0 {
		var peers []string
		for _, p := range v.peers {
			peers = append(peers, p.address.String())
		}
		add("peers", list(peers))
	}
	if v.group != nil {
		add("group", quote(v.group.name))
	}
	if v.checksum {
		add("checksum", quote("rfc9568"))
	}
	if len(v.tracks) > 0 {
		add("track", "["+strings.Join(v.trackKeys(), ", ")+"]")
	}
	return keys
}

// written returns addresses as a [[vrrp]] has them. A VIP is no address of the host, so it has neither length nor
// device.
func (v *instance) written(moves []moving, vips map[netip.Addr]bool) (all []string) {
	for _, m := range moves {
		text := m.address.String()
		if !vips[m.address] {
			if m.length != m.address.BitLen() {
				text += "/" + strconv.Itoa(m.length)
			}
			if m.device != "" && m.device != v.device {
				text += " dev " + m.device
			}
		}
		all = append(all, text)
	}
	return all
}

func (v *instance) trackKeys() (all []string) {
	for i := range v.tracks {
		all = append(all, v.tracks[i].key())
	}
	return all
}
