package config

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"

	"vstun/balancer/envelope"
	"vstun/encap"
)

// SecondChance is the [second_chance] table of either program: packets that came to the wrong realserver go on to the
// one that an earlier table chose.
type SecondChance struct {
	On      bool
	KeyFile string
	Key     string         // content of KeyFile
	Port    int            // UDP port at which agents get tables
	Peers   []netip.Prefix // of an agent: the hosts to send to, and to accept from
}

const wantSecondChance = "a [second_chance] table"

// readDirectorChance reads the [second_chance] table of a director, which may be missing.
func readDirectorChance(root *table, d *Director) (c SecondChance) {
	_, c.On = root.value("second_chance")
	t := root.table("second_chance", wantSecondChance)
	if !c.On || t.values == nil {
		return SecondChance{}
	}
	t.mark("key", "")
	c.KeyFile, c.Key = readKeyFile(t, "the same here and on all agents")
	c.Port = t.integer("port", 8849, 1, 65535, "1 to 65535")
	switch {
	case !slices.ContainsFunc(d.Services, func(s Service) bool { return s.HasTables() }):
		t.warnAt("key", "no service for tcp has the scheduler mh and no persistence, so that agents get no tables")
	case !d.HashUnknown && !d.Connections.SloppyTCP:
		t.warnAt("key", `unknown_flows is not "hash": packets of connections that the director does not have get to `+
			`no agent: set unknown_flows = "hash"`)
	}
	t.finish()
	return c
}

// readAgentChance reads the [second_chance] table of an agent, which may be missing.
func readAgentChance(root *table, r *Realserver) (c SecondChance) {
	_, written := root.value("second_chance")
	t := root.table("second_chance", wantSecondChance)
	if !written || t.values == nil {
		return SecondChance{}
	}
	c.On = t.boolean("enabled", false)
	c.Peers = readChancePeers(t)
	c.Port = t.integer("port", 8849, 1, 65535, "1 to 65535")
	if c.On {
		c.KeyFile, c.Key = readKeyFile(t, "the same here and at the directors")
		switch {
		case len(c.Peers) == 0:
			t.faultAt("peers", "missing: want the realservers to send packets to and to accept them from, such as "+
				`["10.0.11.0/24"]`)
		case !slices.ContainsFunc(r.Encaps, func(name string) bool {
			return name == encap.KindIPIP.String() || name == encap.KindGRE.String() || name == encap.KindGUE.String()
		}):
			t.faultAt("enabled", "true, and encap has neither ipip nor gre nor gue: leave it out")
		}
	} else {
		t.value("key")
	}
	if key := r.keyOfPort(c.Port); c.On && key != "" {
		t.faultAt("port", "%d is %s: want a port of its own", c.Port, key)
	}
	for _, d := range r.Directors {
		if d.IsSingleIP() && slices.ContainsFunc(c.Peers, func(p netip.Prefix) bool { return p.Contains(d.Addr()) }) {
			t.warnAt("peers", "the director %v is one of them: its packets get no second chance", d.Addr())
		}
	}
	t.finish()
	return c
}

// keyOfPort returns the key that has a UDP port of the agent, "" if none has it.
func (r *Realserver) keyOfPort(port int) string {
	udp := func(name string) bool { return has(name, encap.Kind.UDP) }
	switch {
	case slices.ContainsFunc(r.Encaps, udp) && int(r.EncapPort) == port:
		return "encap_port"
	case r.WireGuard.On && int(r.WireGuard.Listen) == port:
		return "listen of [wireguard]"
	}
	for i := range r.Tunnels {
		if p := &r.Tunnels[i]; p.Encap.UDP() && int(p.EncapPort) == port {
			return fmt.Sprintf("encap_port of tunnel %q", p.Name)
		}
	}
	return ""
}

func readChancePeers(t *table) (peers []netip.Prefix) {
	list, _ := t.array("peers", `an array of addresses and prefixes such as ["10.0.11.0/24"]`)
	for _, v := range t.elements("peers", list) {
		p, ok := t.source("peers", v)
		switch {
		case !ok:
		case slices.Contains(peers, p):
			t.faultAt("peers", "%s is there twice: want each once", show(v))
		default:
			peers = append(peers, p)
		}
	}
	return peers
}

// readKeyFile reads the file of the key "key" at once, since the program may lack the permission later. where says who
// has the same file.
func readKeyFile(t *table, where string) (path, key string) {
	want := "the absolute path of a file of 32 bytes or more, " + where + ", which the program's user may read"
	path, ok := t.text("key", "", want)
	switch {
	case !ok:
	case path == "":
		t.faultAt("key", "missing: want %s (head -c 32 /dev/urandom)", want)
	default:
		return path, keyIn(t, path, want)
	}
	return path, ""
}

// keyIn returns the content of the file that the key "key" names.
func keyIn(t *table, path, want string) string {
	if !filepath.IsAbs(path) {
		t.faultAt("key", "%s is not an absolute path: want %s", show(path), want)
		return ""
	}
	content, err := readBounded(path)
	if err != nil {
		t.faultAt("key", "%v: want %s", err, want)
	} else if len(content) < envelope.MinKey {
		t.faultAt("key", "%s has %d bytes: want %s", show(path), len(content), want)
	}
	return string(content)
}
