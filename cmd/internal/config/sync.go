package config

import (
	"net/netip"
	"slices"

	"vstun/balancer/connsync"
)

// Sync is the [sync] table: the exchange of connections with other directors.
type Sync struct {
	On        bool   // there is a [sync] table
	IPVS      bool   // the kernel's protocol as it is; else with a key
	Interface string // device of this host; "": any, with Peers only
	Group     netip.Addr
	Port      int
	Peers     []netip.Addr // unicast, all of one family; none: multicast
	ID        int          // IPVS's syncid, 0 to 255
	KeyFile   string
	Key       string // content of KeyFile; "" with IPVS
}

// Mode returns the value of the key mode, "" without a [sync] table.
func (s *Sync) Mode() string {
	switch {
	case !s.On:
		return ""
	case s.IPVS:
		return "ipvs"
	}
	return "vstun"
}

// readSync reads the [sync] table, which may be missing.
func readSync(root *table) (s Sync) {
	_, s.On = root.value("sync")
	t := root.table("sync", "a [sync] table")
	if !s.On || t.values == nil {
		return Sync{}
	}
	s.IPVS = t.oneOf("mode", "vstun", "ipvs") == "ipvs"
	s.Interface = readSyncInterface(t)
	s.Peers = readSyncPeers(t)
	for _, key := range []string{"interface", "peers", "key"} {
		t.mark(key, "")
	}
	s.Group = readSyncGroup(t)
	least := unprivilegedPort()
	s.Port = t.integer("port", 8848, 1, 65535, "1 to 65535")
	if s.Port < least {
		t.faultAt("port", "%d is a port to which the director has no right: want %d to 65535", s.Port, least)
	}
	s.ID = t.integer("id", 0, 0, 255, "0 (takes the datagrams of all) to 255")
	s.KeyFile, s.Key = readSyncKey(t, s.IPVS)
	_, hasInterface := t.value("interface")
	_, hasPeers := t.value("peers")
	switch {
	case s.IPVS && !hasInterface:
		t.faultAt("interface", "missing: mode \"ipvs\" has no authentication, so its datagrams must come by one "+
			"device only: want its name")
	case !hasInterface && !hasPeers:
		t.faultAt("interface", "missing: want the name of the device for multicast, or peers")
	case hasPeers && t.values["group"] != nil:
		t.faultAt("group", "peers get their datagrams by unicast: want either group or peers")
	}
	t.finish()
	return s
}

func readSyncInterface(t *table) string {
	const want = `the name of a device such as "eth0"`
	name, ok := t.text("interface", "", want)
	if _, written := t.values["interface"]; ok && written && !validDevice(name) {
		t.faultAt("interface", "%s is not a device's name: want %s", show(name), want)
	}
	return name
}

func readSyncPeers(t *table) []netip.Addr {
	list, _ := t.array("peers", `an array of the other directors' addresses such as ["10.0.2.3"]`)
	peers := t.addresses("peers", list)
	if len(peers) > connsync.MaxDirectors {
		t.faultAt("peers", "has %d addresses: want at most %d, this director's own included", len(peers),
			connsync.MaxDirectors)
	}
	if i := slices.IndexFunc(peers, func(a netip.Addr) bool { return a.Is4() != peers[0].Is4() }); i > 0 {
		t.faultAt("peers", "%v and %v are of different families: want addresses of one family", peers[0], peers[i])
	}
	return peers
}

func readSyncGroup(t *table) netip.Addr {
	const want = `a multicast address such as "224.0.0.81" or "ff02::81"`
	group := netip.AddrFrom4([4]byte{224, 0, 0, 81})
	text, ok := t.text("group", group.String(), want)
	if !ok {
		return group
	}
	a, err := netip.ParseAddr(text)
	if err != nil || !a.IsMulticast() || a.Zone() != "" || a.Is4In6() {
		t.faultAt("group", "%s is not a multicast address: want %s", show(text), want)
		return group
	}
	return a
}

// readSyncKey reads the file with the key at once, since the program may lack the permission later.
func readSyncKey(t *table, ipvs bool) (path, key string) {
	const want = "the absolute path of a file of 32 bytes or more, the same on all directors, which the program's " +
		"user may read"
	path, ok := t.text("key", "", want)
	written := path != ""
	switch {
	case !ok:
	case ipvs && written:
		t.faultAt("key", "mode \"ipvs\" has no authentication: leave it out, or set mode = \"vstun\"")
	case ipvs:
	case !written:
		t.faultAt("key", "missing: mode \"vstun\" needs it: want %s (head -c 32 /dev/urandom)", want)
	default:
		return path, keyIn(t, path, want)
	}
	return path, ""
}
