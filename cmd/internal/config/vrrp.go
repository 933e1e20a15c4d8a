package config

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"vstun/cmd/internal/words"
	"vstun/routing/vrrp"
)

// VRRP is one [[vrrp]]: an instance of the election between directors.
type VRRP struct {
	vrrp.Instance              // its Addrs and Excluded are those of VIPs and Owned, in the file's order
	VIPs          []netip.Addr // that a service has: announced while master
	Owned         []Owned      // the other addresses: this host has them while master
	Track         []Track
	KeyFile       string // from which Key is; "": none
}

// Owned is an address of the directors themselves, such as realservers' next hop.
type Owned struct {
	Device string
	Prefix netip.Prefix // with the host's bits
}

// Track is something that an instance depends on. One of Device, Service and Gateway is set.
type Track struct {
	Device     string
	Service    string
	Realserver netip.AddrPort // ID of one of Service's, whose check counts; the zero value: the quorum counts
	Gateway    netip.Addr
	// Weight is added to the priority while it is up, if positive, and while it is down, if negative; 0: a fault.
	Weight int
}

// Name names what is tracked, as messages do.
func (k *Track) Name() string {
	switch {
	case k.Device != "":
		return "interface " + k.Device
	case k.Realserver.IsValid():
		return "realserver " + words.Realserver(k.Realserver) + " of " + k.Service
	case k.Service != "":
		return "service " + k.Service
	}
	return "gateway " + k.Gateway.String()
}

// Instances returns the instances for a Router.
func (d *Director) Instances() []vrrp.Instance {
	all := make([]vrrp.Instance, len(d.VRRP))
	for i := range d.VRRP {
		all[i] = d.VRRP[i].Instance
	}
	return all
}

// readVRRP reads the [[vrrp]] tables. services are those of the file. tap: the director has a TAP device.
func readVRRP(root *table, services []Service, tap bool) []VRRP {
	r := &vrrpReader{tap: tap, vips: map[netip.Addr]bool{}, names: map[string]string{},
		routers: map[virtualRouter]string{},
		addrs:   map[netip.Addr]string{}, sources: map[netip.Addr]string{}, services: services}
	for _, s := range services {
		for _, vip := range s.VIPs {
			r.vips[vip] = true
		}
	}
	var all []VRRP
	for i, row := range root.tables("vrrp", "[[vrrp]] tables") {
		all = append(all, r.read(root, i+1, row))
	}
	return all
}

// vrrpReader reads the [[vrrp]] tables and keeps the values that must differ between them.
type vrrpReader struct {
	tap      bool
	services []Service
	vips     map[netip.Addr]bool
	names    map[string]string // name → label of the instance that has it
	routers  map[virtualRouter]string
	addrs    map[netip.Addr]string
	sources  map[netip.Addr]string // source → label of the last instance that has it
}

// virtualRouter is what other routers know an instance by.
type virtualRouter struct {
	device string
	id     uint8
	ipv6   bool
}

func (r *vrrpReader) read(root *table, position int, written row) VRRP {
	label := fmt.Sprintf("vrrp[%d]", position)
	name, _ := written.values["name"].(string)
	owner, taken := r.names[name]
	if name != "" && !taken {
		label = "vrrp " + show(name)
		r.names[name] = fmt.Sprintf("vrrp[%d]", position)
	}
	t := root.child(label, written.values, written.at)
	var v VRRP
	v.Name = readName(t)
	if taken {
		t.faultAt("name", "%s is also the name of %s: want a name of its own", show(name), owner)
	}
	const wantDevice = `the name of a device, such as "eth0"`
	if value, ok := t.required("interface", wantDevice); ok {
		v.Device = readDeviceName(t, "interface", value, wantDevice)
		t.mark("interface", "")
	}
	const wantID = "1 to 255, the same as the peers'"
	if _, ok := t.required("router_id", wantID); ok {
		v.RouterID = uint8(t.integer("router_id", 0, 1, 255, wantID))
	}
	v.Version = uint8(t.integer("version", vrrp.Version3, vrrp.Version2, vrrp.Version3, "2 or 3"))
	v.Priority = uint8(t.integer("priority", 100, 1, vrrp.Owner, "1 to 254, or 255 for the owner of the addresses"))
	v.Interval = readInterval(t, v.Version)
	r.readAddresses(t, &v, label)
	r.readExcluded(t, &v, label)
	v.Preempt = t.boolean("preempt", true)
	v.PreemptDelay = t.duration("preempt_delay", 0, 0, time.Hour, "0s to 1h")
	if _, set := t.values["preempt_delay"]; set && !v.Preempt {
		t.warnAt("preempt_delay", "preempt is false, so nothing is delayed: leave it out")
	}
	readVRRPAuth(t, &v)
	r.readPeers(t, &v)
	r.readSource(t, &v, label)
	v.Group, _ = t.text("group", "", `a name that the instances of a group share, such as "lb"`)
	if t.oneOf("checksum", "rfc5798", "rfc9568") == "rfc9568" {
		v.Checksum = vrrp.RFC9568
	}
	r.readTracks(t, &v)
	t.finish()
	return v
}

// readDeviceName checks that a value is a device's name.
func readDeviceName(t *table, key string, value any, want string) string {
	name, ok := value.(string)
	switch {
	case !ok:
		t.wrongType(key, value, want)
	case !validDevice(name):
		t.faultAt(key, "%s is not a device's name: want %s", show(name), want)
	default:
		return name
	}
	return ""
}

// readInterval reads the interval of the advertisements: whole seconds of version 2, 1/100 s in 12 bits of version 3.
func readInterval(t *table, version uint8) time.Duration {
	if version == vrrp.Version2 {
		const want = "whole seconds, 1s to 255s, with version 2"
		d := t.duration("interval", time.Second, time.Second, 255*time.Second, want)
		if d%time.Second != 0 {
			t.faultAt("interval", "\"%v\" is no whole number of seconds: want %s", d, want)
		}
		return d
	}
	const want = "10ms to 40.95s in steps of 10ms"
	d := t.duration("interval", time.Second, 10*time.Millisecond, 40950*time.Millisecond, want)
	if d%(10*time.Millisecond) != 0 {
		t.faultAt("interval", "\"%v\" is no multiple of 10ms: want %s", d, want)
	}
	return d
}

const wantMoving = `an array of VIPs and of addresses such as "10.0.2.10/24" or "10.0.3.10/24 dev eth1"`

// readAddresses reads the addresses: VIPs of services, and others, which the master has.
func (r *vrrpReader) readAddresses(t *table, v *VRRP, label string) {
	if _, ok := t.required("addresses", wantMoving); !ok {
		return
	}
	list, _ := t.array("addresses", wantMoving)
	for _, value := range t.elements("addresses", list) {
		addr, ok := r.readAddress(t, "addresses", value, v, label)
		switch {
		case !ok:
		case len(v.Addrs) > 0 && v.Addrs[0].Is6() != addr.Is6():
			t.faultAt("addresses", "%v and %v are of different families: want an instance for each family, or one of "+
				"them in excluded", v.Addrs[0], addr)
		default:
			v.Addrs = append(v.Addrs, addr)
		}
	}
	switch {
	case len(v.Addrs) == 0:
		return
	case len(v.Addrs) > 255:
		t.faultAt("addresses", "has %d addresses: want at most 255 in an instance", len(v.Addrs))
	case v.Addrs[0].Is6() && v.Version == vrrp.Version2:
		t.faultAt("version", "2 has no IPv6: want 3")
	}
	router := virtualRouter{v.Device, v.RouterID, v.Addrs[0].Is6()}
	if other, taken := r.routers[router]; taken && v.Device != "" && v.RouterID != 0 {
		t.faultAt("router_id", "%d of %s belongs to %s: want another router_id", v.RouterID, v.Device, other)
	}
	r.routers[router] = label
}

// readExcluded reads the addresses that are in no advertisement.
func (r *vrrpReader) readExcluded(t *table, v *VRRP, label string) {
	list, _ := t.array("excluded", wantMoving)
	for _, value := range t.elements("excluded", list) {
		if addr, ok := r.readAddress(t, "excluded", value, v, label); ok {
			v.Excluded = append(v.Excluded, addr)
		}
	}
}

// readAddress reads an element of addresses or excluded, and adds it to the VIPs or the other addresses.
func (r *vrrpReader) readAddress(t *table, key string, value any, v *VRRP, label string) (addr netip.Addr, ok bool) {
	text, ok := value.(string)
	if !ok {
		t.wrongType(key, value, wantMoving)
		return addr, false
	}
	a, ok := parseOwned(text, v.Device)
	addr = a.Prefix.Addr()
	switch other, taken := r.addrs[addr]; {
	case !ok:
		t.faultAt(key, "%s is not an address: want %s", show(text), wantMoving)
	case NotUnicast(addr) != "" && !addr.IsLinkLocalUnicast():
		t.faultAt(key, "%s is %s: want a unicast address", show(text), NotUnicast(addr))
	case r.tap && !r.vips[addr] && !addr.IsLinkLocalUnicast():
		t.faultAt(key, "%v is no VIP, and with a TAP device neighbours do not learn of other addresses: leave it out, "+
			"or set device = \"tun\"", addr)
	case taken:
		t.faultAt(key, "%v is also one of %s: want each address once", addr, other)
	case r.sources[addr] != "":
		t.faultAt(key, "%v is the source of %s: want one that may move", addr, r.sources[addr])
	default:
		r.addrs[addr] = label
		t.mark(key, addr.String())
		if r.vips[addr] {
			v.VIPs = append(v.VIPs, addr)
		} else {
			v.Owned = append(v.Owned, a)
		}
		return addr, true
	}
	return addr, false
}

// readSource reads the address to send from.
func (r *vrrpReader) readSource(t *table, v *VRRP, label string) {
	const want = `an address of the interface, such as "10.0.2.2"`
	text, ok := t.text("source", "", want)
	if _, written := t.value("source"); !ok || !written {
		return
	}
	a, err := netip.ParseAddr(text)
	switch {
	case err != nil || a.Zone() != "" || a.Is4In6() || NotUnicast(a) != "" && !a.IsLinkLocalUnicast():
		t.faultAt("source", "%s is not an address to send from: want %s", show(text), want)
	case r.addrs[a] != "":
		t.faultAt("source", "%v is one of the addresses of %s: want an address that stays on %s", a, r.addrs[a],
			v.Device)
	case len(v.Addrs) > 0 && a.Is6() != v.Addrs[0].Is6():
		t.faultAt("source", "%v is of another family than the instance's addresses: want an %s address", a,
			family(v.Addrs[0]))
	case a.Is6() && len(v.Peers) == 0 && !a.IsLinkLocalUnicast():
		t.faultAt("source", "%v is not a link-local address, from which alone IPv6 multicast is sent: want one, or "+
			"peers", a)
	default:
		v.Source, r.sources[a] = a, label
		t.mark("source", "")
	}
}

// parseOwned parses "ADDRESS", "ADDRESS/LENGTH" or either with "dev DEVICE".
func parseOwned(text, device string) (o Owned, ok bool) {
	fields := strings.Fields(text)
	switch {
	case len(fields) == 3 && fields[1] == "dev" && validDevice(fields[2]):
		device = fields[2]
	case len(fields) != 1:
		return o, false
	}
	p, err := netip.ParsePrefix(fields[0])
	if err != nil {
		a, err := netip.ParseAddr(fields[0])
		if err != nil {
			return o, false
		}
		p = netip.PrefixFrom(a, a.BitLen())
	}
	return Owned{Device: device, Prefix: p}, p.Addr().Zone() == "" && !p.Addr().Is4In6() && p.Bits() > 0
}

// readVRRPAuth reads the password of version 2 and the key of an HMAC.
func readVRRPAuth(t *table, v *VRRP) {
	v.Password, _ = t.text("password", "", "at most 8 characters, with version 2")
	switch {
	case v.Password == "":
	case v.Version != vrrp.Version2:
		t.faultAt("password", "version 3 has no passwords: set version = 2, or a key")
	case len(v.Password) > 8:
		t.warnAt("password", "only the first 8 characters count, as with keepalived: leave the others out")
	}
	const want = `the absolute path of a file with 32 to 64 bytes, or with "hex:" and the digits of as many`
	var path, text string
	id := t.integer("key_id", 1, 1, 255, "1 to 255")
	permissive := t.oneOf("key_mode", "enforce", "permissive") == "permissive"
	if !readPEM(t, "key", want, true, &path, &text) || path == "" {
		return
	}
	text = strings.TrimRight(text, "\r\n")
	if digits, isHex := strings.CutPrefix(text, "hex:"); isHex {
		b, err := hex.DecodeString(strings.TrimSpace(digits))
		if err != nil {
			t.faultAt("key", "%s has no hexadecimal digits behind hex: want %s", show(path), want)
			return
		}
		text = string(b)
	}
	if len(text) < vrrp.MinKey || len(text) > vrrp.MaxKey {
		t.faultAt("key", "%s has a key of %d bytes: want %s", show(path), len(text), want)
		return
	}
	if v.Password != "" {
		t.faultAt("password", "there is a key, too: want one of them")
	}
	v.KeyFile = path
	t.mark("key", "")
	v.Key = &vrrp.Key{ID: uint8(id), Bytes: text, Permissive: permissive}
}

// readPeers reads the peers of a unicast instance.
func (r *vrrpReader) readPeers(t *table, v *VRRP) {
	value, ok := t.value("peers")
	if !ok {
		return
	}
	const want = "an array of the other directors' addresses; [] is multicast"
	list, ok := value.([]any)
	if !ok {
		t.wrongType("peers", value, want)
		return
	}
	v.Peers = t.addresses("peers", list)
	t.mark("peers", "")
	for _, a := range v.Peers {
		switch {
		case slices.Contains(v.Addrs, a):
			t.faultAt("peers", "%v is one of the instance's addresses: want the other directors' own", a)
		case len(v.Addrs) > 0 && a.Is6() != v.Addrs[0].Is6():
			t.faultAt("peers", "%v is of another family than the instance's addresses: want an %s address", a,
				family(v.Addrs[0]))
		}
	}
}

// readTracks reads what the instance depends on.
func (r *vrrpReader) readTracks(t *table, v *VRRP) {
	kinds := []string{"interface", "service", "gateway"}
	for i, row := range t.tables("track", `an array of tables such as { interface = "eth1" }`) {
		k := t.child(fmt.Sprintf("track[%d]", i+1), row.values, row.at)
		var track Track
		n := 0
		for _, kind := range kinds {
			if value, ok := k.value(kind); ok {
				n++
				r.readTrack(k, kind, value, &track)
			}
		}
		if n != 1 {
			k.fault("there are %d of %s: want one of them", n, words.OneOf(kinds))
		}
		r.readCheck(k, &track)
		track.Weight = k.integer("weight", 0, -253, 253, "-253 to 253; 0: without it the instance has a fault")
		k.finish()
		v.Track = append(v.Track, track)
	}
}

// readCheck reads a realserver of the tracked service, whose check counts in place of the quorum.
func (r *vrrpReader) readCheck(t *table, track *Track) {
	const want = `the address of a realserver with a check, such as "10.0.11.2" or "10.0.11.2:80"`
	value, ok := t.value("realserver")
	if !ok {
		return
	}
	text, isText := value.(string)
	id, err := netip.ParseAddrPort(text)
	if a, errA := netip.ParseAddr(text); errA == nil {
		id, err = netip.AddrPortFrom(a, 0), nil
	}
	if !isText || err != nil {
		t.faultAt("realserver", "%s is no realserver: want %s", show(value), want)
		return
	}
	at := slices.IndexFunc(r.services, func(s Service) bool { return s.Name == track.Service })
	if at < 0 {
		t.faultAt("realserver", "there is no service beside it: want its service, too: service = \"NAME\"")
		return
	}
	for i := range r.services[at].Realservers {
		if rs := &r.services[at].Realservers[i]; rs.ID() == id && rs.Check != nil {
			track.Realserver = id
			return
		}
	}
	t.faultAt("realserver", "service %s has no realserver %s with a check: want %s", show(track.Service), show(text),
		want)
}

func (r *vrrpReader) readTrack(t *table, kind string, value any, track *Track) {
	switch kind {
	case "interface":
		track.Device = readDeviceName(t, kind, value, `the name of a device, such as "eth1"`)
		t.mark(kind, "")
	case "gateway":
		track.Gateway, _ = t.address(kind, value)
	case "service":
		name, ok := value.(string)
		if !ok {
			t.wrongType(kind, value, "the name of a service")
			return
		}
		if !slices.ContainsFunc(r.services, func(s Service) bool { return s.Name == name }) {
			t.faultAt(kind, "there is no service %s: want the name of one", show(name))
		}
		track.Service = name
	}
}
