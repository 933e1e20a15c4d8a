package config

import (
	"math"
	"slices"
	"strings"

	"vstun/balancer/method"
	"vstun/cmd/internal/words"
	"vstun/encap"
)

// encapsWith returns the names of the tunnels that have a property.
func encapsWith(has func(encap.Kind) bool) (names []string) {
	for _, k := range encap.Kinds() {
		if has(k) {
			names = append(names, k.String())
		}
	}
	return names
}

// has reports whether the named tunnel has a property.
func has(name string, property func(encap.Kind) bool) bool {
	k, ok := encap.ParseKind(name)
	return ok && property(k)
}

// only returns the names of the tunnels that have a property, as the subject of a sentence: "only gue and fou have".
func only(has func(encap.Kind) bool) string {
	names := encapsWith(has)
	if len(names) == 1 {
		return "only " + names[0] + " has"
	}
	return "only " + strings.Join(names, " and ") + " have"
}

// readTunnel reads a service's tunnel, which is the default for its realservers.
func readTunnel(t *table) Tunnel {
	n := Tunnel{Encap: readEncap(t, "ipip"), Checksum: t.boolean("encap_checksum", false)}
	n.Key, n.HasKey = readKey(t)
	return n
}

// readFor reads the tunnel of a realserver with a forwarding method. Its default is n, the service's tunnel. The
// service's key and checksum apply to realservers whose tunnel can have them.
func (n Tunnel) readFor(t *table, forward method.Kind) Tunnel {
	if forward != method.TUN {
		for _, key := range tunnelKeys {
			if _, written := t.value(key); written {
				t.faultAt(key, "%v has no tunnel: leave it out, or use tun", forward)
			}
		}
		return Tunnel{}
	}
	n.Encap = readEncap(t, n.Encap)
	switch key, own := readKey(t); {
	case own && n.Encap != "" && !has(n.Encap, encap.Kind.HasKey):
		t.faultAt("encap_key", "%s a key, and this tunnel is %s: leave it out", only(encap.Kind.HasKey), n.Encap)
	case own:
		n.Key, n.HasKey = key, true
	case !has(n.Encap, encap.Kind.HasKey):
		n.Key, n.HasKey = 0, false
	}
	n.Checksum = t.boolean("encap_checksum", n.Checksum)
	if n.Encap != "" && !has(n.Encap, encap.Kind.HasChecksum) && n.Checksum {
		if _, own := t.values["encap_checksum"]; own {
			t.faultAt("encap_checksum", "%s has no checksum: leave it out, or use %s", n.Encap,
				words.OneOf(encapsWith(encap.Kind.HasChecksum)))
		}
		n.Checksum = false
	}
	return n
}

// tunnelKeys are the keys of a realserver's tunnel.
var tunnelKeys = []string{"encap", "encap_key", "encap_checksum"}

// checkTunnels refuses those keys of s that fit none of its tunnels. n is the default of these tunnels.
func checkTunnels(t *table, n Tunnel, s *Service) {
	tunnels := slices.DeleteFunc(append(s.EveryRef(), s.Sorry), func(r RealserverRef) bool {
		return r.Forward != method.TUN || !r.Address.IsValid() && r.Host == ""
	})
	if s.Forward != method.TUN && len(tunnels) == 0 {
		for _, key := range append(tunnelKeys, "encap_port") {
			if _, written := t.values[key]; written {
				t.faultAt(key, "no realserver of this service has a tunnel, as none has the method tun: leave it out")
			}
		}
		return
	}
	some := func(property func(encap.Kind) bool) bool {
		fits := func(name string) bool { return name == "" || has(name, property) } // "" has been reported
		return fits(n.Encap) || slices.ContainsFunc(tunnels, func(r RealserverRef) bool { return fits(r.Encap) })
	}
	if n.HasKey && !some(encap.Kind.HasKey) {
		t.faultAt("encap_key", "%s a key, and no tunnel of this service is %s: leave it out", only(encap.Kind.HasKey),
			words.OneOf(encapsWith(encap.Kind.HasKey)))
	}
	if _, written := t.values["encap_port"]; written && !some(encap.Kind.UDP) {
		t.warnAt("encap_port", "%s a port, and no tunnel of this service is one of them: leave it out",
			only(encap.Kind.UDP))
	}
	if n.Checksum && !some(encap.Kind.HasChecksum) {
		t.faultAt("encap_checksum", "%s has no checksum, and all tunnels of this service are %s: leave it out, or use "+
			"%s", n.Encap, n.Encap, words.OneOf(encapsWith(encap.Kind.HasChecksum)))
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
