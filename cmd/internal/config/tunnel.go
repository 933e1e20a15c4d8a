package config

import (
	"math"
	"slices"
)

// readTunnel reads what a service says of the tunnels to its realservers.
func readTunnel(t *table) Tunnel {
	n := Tunnel{Encap: readEncap(t, "ipip"), Checksum: t.boolean("encap_checksum", false)}
	n.Key, n.HasKey = readKey(t)
	return n
}

// readFor reads a realserver's tunnel, which is its service's where the realserver says nothing else. What the service
// says of a key or a checksum is for those of its realservers that can have one.
func (n Tunnel) readFor(t *table) Tunnel {
	n.Encap = readEncap(t, n.Encap)
	switch key, own := readKey(t); {
	case own && n.Encap != "gre" && n.Encap != "":
		t.faultAt("encap_key", "only gre has a key, and this tunnel is %s: leave it out", n.Encap)
	case own:
		n.Key, n.HasKey = key, true
	case n.Encap != "gre":
		n.Key, n.HasKey = 0, false
	}
	n.Checksum = t.boolean("encap_checksum", n.Checksum)
	if n.Encap == "ipip" && n.Checksum {
		if _, own := t.values["encap_checksum"]; own {
			t.faultAt("encap_checksum", "ipip has no checksum: leave it out, or use gre, gue or fou")
		}
		n.Checksum = false
	}
	return n
}

// checkTunnels refuses what a service says of its tunnels when it is for none of them.
func checkTunnels(t *table, n Tunnel, realservers []RealserverRef) {
	some := func(has func(encap string) bool) bool {
		return has(n.Encap) || slices.ContainsFunc(realservers, func(r RealserverRef) bool { return has(r.Encap) })
	}
	if n.HasKey && !some(func(encap string) bool { return encap == "gre" || encap == "" }) {
		t.faultAt("encap_key", "only gre has a key, and no tunnel of this service is gre: leave it out")
	}
	if _, written := t.values["encap_port"]; written && !some(func(encap string) bool {
		return encap == "gue" || encap == "fou" || encap == ""
	}) {
		t.warnAt("encap_port", "only gue and fou have a port, and no tunnel of this service is one of them: leave "+
			"it out")
	}
	if n.Checksum && !some(func(encap string) bool { return encap != "ipip" }) {
		t.faultAt("encap_checksum", "ipip has no checksum, and all tunnels of this service are ipip: leave it out, "+
			"or use gre, gue or fou")
	}
}

// readKey reads the key of GRE (RFC 2890, section 2.1).
func readKey(t *table) (key uint32, ok bool) {
	const want = "0 to 4294967295"
	v, ok := t.value("encap_key")
	if !ok {
		return 0, false
	}
	n, ok := v.(int64)
	switch {
	case !ok:
		t.wrongType("encap_key", v, want)
	case n < 0 || n > math.MaxUint32:
		t.faultAt("encap_key", "%d is out of range: want %s", n, want)
	}
	return uint32(n), ok
}
