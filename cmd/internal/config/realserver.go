package config

import (
	"net/netip"
	"slices"
	"strings"

	"vstun/cmd/internal/words"
	"vstun/encap"
)

const (
	// The smallest and the largest TCP MSS that the kernel accepts: TCP_MIN_MSS in include/net/tcp.h, and 65535 bytes
	// less 40 bytes of headers.
	minMSS = 88
	maxMSS = 65495

	// The priority of a table's rules is the table's number. Rules take effect only before main's rule, at 32766:
	// ip-rule(8).
	maxTable = 32766
)

// ParseRealserver validates the text of a realserver.toml; name stands for the file in the messages. An error is of
// type *Errors and holds every fault.
func ParseRealserver(name string, text []byte) (*Realserver, error) {
	root, ok := parse(name, text)
	if !ok {
		return nil, &root.file.faults
	}
	root.required("realserver", wantTable["realserver"])
	t := root.table("realserver", wantTable["realserver"])
	root.value("wireguard")
	root.value("second_chance")
	_, tunnels := root.value("tunnel")
	if len(root.file.faults) > 0 { // a line for each missing key would hide this one
		root.finish()
		return nil, &root.file.faults
	}

	r := &Realserver{
		TUN:       t.device("tun"),
		Queues:    onePerCPU(t.integer("queues", 0, 0, maxQueues, "0 (one per CPU) to 256")),
		Offload:   t.offload("offload"),
		VIPs:      readVIPs(t, tunnels),
		Directors: readDirectors(t),
		Encaps:    readEncaps(t),
		EncapPort: readEncapPort(t),
		MSS:       readMSS(t),
		Table:     readTable(t, 30323, 2),
		Control:   readControl(t, "realserver"),
		Metrics:   t.listen("metrics", "127.0.0.1:9465"),
		Log:       t.level("log"),
	}
	r.FastPath = readFastPath(t, r.TUN)
	readPeers(root, r)
	_, named := t.values["tun"]
	r.AnyTUN = !named
	some := func(property func(encap.Kind) bool) bool {
		return slices.ContainsFunc(r.Encaps, func(name string) bool { return has(name, property) })
	}
	noTunnel := noTunnel(t)
	if r.ForeignVIPs = !t.boolean("own_vips", true); r.ForeignVIPs && noTunnel {
		t.faultAt("own_vips", "false, and encap is empty: the agent would have nothing to do: leave one of them out")
	}
	if r.Key, r.HasKey = readKey(t); r.HasKey && (len(r.Encaps) > 0 || noTunnel) && !some(encap.Kind.HasKey) {
		t.faultAt("encap_key", "%s a key, and encap has no %s: leave it out", only(encap.Kind.HasKey),
			words.OneOf(encapsWith(encap.Kind.HasKey)))
	}
	if _, written := t.values["encap_port"]; written && !some(encap.Kind.UDP) {
		t.warnAt("encap_port", "%s a port, and encap has neither: leave it out", only(encap.Kind.UDP))
	}
	if r.WireGuard.On && some(encap.Kind.UDP) && r.EncapPort == r.WireGuard.Listen {
		t.faultAt("encap_port", "%d is listen of [wireguard]: want a port of its own", r.EncapPort)
	}
	if noTunnel {
		if _, written := t.values["mss"]; written && r.MSS != MSSOff {
			t.warnAt("mss", "encap is empty, so that clients' packets come in no tunnel and need no room for one: "+
				"leave it out")
		}
		r.MSS = MSSOff
	}
	r.refuseVIPs(t)
	r.SecondChance = readAgentChance(root, r)
	t.finish()
	root.finish()

	if len(root.file.faults) > 0 {
		return nil, &root.file.faults
	}
	r.Warnings = root.file.warnings
	return r, nil
}

// refuseVIPs refuses directors that are VIPs.
func (r *Realserver) refuseVIPs(t *table) {
	for _, vip := range r.VIPs {
		if slices.Contains(r.Directors, netip.PrefixFrom(vip, vip.BitLen())) {
			t.faultAt("directors", "\"%v\" is one of the vips: want the directors' own addresses", vip)
		}
	}
}

// readVIPs reads the VIPs. A host that has [[tunnel]] tables may have none.
func readVIPs(t *table, tunnels bool) []netip.Addr {
	_, written := t.values["vips"]
	if list, isArray := t.values["vips"].([]any); tunnels && noTunnel(t) && (!written || isArray && len(list) == 0) {
		t.value("vips")
		return nil
	}
	return t.addresses("vips", t.oneOrMore("vips", "an IPv4 or IPv6 address, or an array of them"))
}

// noTunnel reports whether encap is the empty array: the agent is one for VS/DR alone.
func noTunnel(t *table) bool {
	list, ok := t.values["encap"].([]any)
	return ok && len(list) == 0
}

// readDirectors reads the hosts from which tunnel packets are accepted. Without a tunnel there may be none.
func readDirectors(t *table) []netip.Prefix {
	if _, written := t.values["directors"]; !written && noTunnel(t) {
		return nil
	}
	list := t.oneOrMore("directors", "a director's address or prefix, or an array of them")
	var prefixes []netip.Prefix
	seen := map[netip.Prefix]bool{}
	for _, v := range t.elements("directors", list) {
		p, ok := t.source("directors", v)
		switch {
		case !ok:
		case seen[p]:
			t.faultAt("directors", "%s is there twice: want each once", show(v))
		default:
			seen[p] = true
			prefixes = append(prefixes, p)
		}
	}
	return prefixes
}

func readEncaps(t *table) []string {
	offered := Encaps()
	if _, ok := t.value("encap"); !ok {
		return []string{"ipip"}
	}
	if noTunnel(t) {
		return nil
	}
	list := t.oneOrMore("encap", words.OneOf(offered)+", or an array of them")
	var names []string
	for _, v := range t.elements("encap", list) {
		name, ok := t.choice("encap", v, offered)
		switch {
		case !ok:
		case slices.Contains(names, name):
			t.faultAt("encap", "%s is there twice: want each once", show(v))
		default:
			names = append(names, name)
		}
	}
	overUDP := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return !has(name, encap.Kind.UDP) })
	if len(overUDP) > 1 {
		t.faultAt("encap", "%s can't share encap_port: want one of them", strings.Join(overUDP, " and "))
	}
	return names
}

// readMSS reads "auto" (0), "off" (MSSOff) or a number of bytes.
func readMSS(t *table) int {
	const want = `"auto", "off" or 88 to 65495 bytes`
	v, ok := t.value("mss")
	if !ok || v == "auto" {
		return 0
	}
	if v == "off" {
		return MSSOff
	}
	n, ok := v.(int64)
	switch {
	case !ok:
		t.faultAt("mss", "%s is not a size: want %s", show(v), want)
	case n < minMSS || n > maxMSS:
		t.faultAt("mss", "%d is out of range: want %s", n, want)
	}
	return int(n)
}

// readTable reads the number of the first of a program's n routing tables; n is 1 or 2. The tables 253 (default), 254
// (main) and 255 (local) belong to the kernel: include/uapi/linux/rtnetlink.h.
func readTable(t *table, byDefault, n int) int {
	const own = 253 // the first of the kernel's tables
	want := "1 to 32765, and not 253, 254 or 255, which are the kernel's own"
	if n == 2 {
		want = "1 to 32764, and not 252 to 255: it and the next are used, and 253 to 255 are the kernel's own"
	}
	table := t.integer("table", byDefault, 1, maxTable-n, want)
	if table > own-n && table <= 255 {
		t.faultAt("table", "%d is taken: want %s", table, want)
	}
	return table
}
