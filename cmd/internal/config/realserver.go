package config

import (
	"net/netip"
	"slices"
)

const (
	// The least and the most that the kernel takes as a TCP MSS: TCP_MIN_MSS in include/net/tcp.h, and a packet of
	// 65535 bytes less 40 of headers.
	minMSS = 88
	maxMSS = 65495

	// A rule works only before the one that leads to the table main, at 32766: ip-rule(8).
	maxTable = 32765
)

// ParseRealserver validates the text of a realserver.toml; name stands for the file in the messages. An error is of
// type *Errors and holds every fault.
func ParseRealserver(name string, text []byte) (*Realserver, error) {
	var faults Errors
	root, ok := parse(name, text, &faults)
	if !ok {
		return nil, &faults
	}
	root.required("realserver", wantTable["realserver"])
	t := root.table("realserver", wantTable["realserver"])
	if len(faults) > 0 { // a line for each key that it should have would only hide this one
		root.finish()
		return nil, &faults
	}

	r := &Realserver{
		TUN:       t.device("tun"),
		Queues:    onePerCPU(t.integer("queues", 0, 0, maxQueues, "0 (one per CPU) to 256")),
		Offload:   t.offload("offload"),
		VIPs:      readVIPs(t),
		Directors: readDirectors(t),
		Encaps:    readEncaps(t),
		EncapPort: readEncapPort(t),
		MSS:       readMSS(t),
		Table:     readTable(t),
		Control:   readControl(t, "realserver"),
		Metrics:   t.listen("metrics", "127.0.0.1:9465"),
		Log:       t.level("log"),
	}
	if r.Key, r.HasKey = readKey(t); r.HasKey && len(r.Encaps) > 0 && !slices.Contains(r.Encaps, "gre") {
		t.faultAt("encap_key", "only gre has a key, and encap has no gre: leave it out")
	}
	for _, vip := range r.VIPs {
		if slices.Contains(r.Directors, netip.PrefixFrom(vip, vip.BitLen())) {
			t.faultAt("directors", "\"%v\" is one of the vips: want the directors' own addresses", vip)
		}
	}
	t.finish()
	root.finish()

	if len(faults) > 0 {
		return nil, &faults
	}
	return r, nil
}

func readVIPs(t *table) []netip.Addr {
	const want = "an array of IPv4 and IPv6 addresses"
	if _, ok := t.required("vips", want); !ok {
		return nil
	}
	list, _ := t.array("vips", want)
	return t.addresses("vips", list)
}

func readDirectors(t *table) []netip.Prefix {
	const want = "an array of the directors' addresses or prefixes"
	if _, ok := t.required("directors", want); !ok {
		return nil
	}
	list, _ := t.array("directors", want)
	var prefixes []netip.Prefix
	seen := map[netip.Prefix]bool{}
	for _, v := range list {
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
	list, _ := t.array("encap", "an array of "+oneOf(offered))
	var names []string
	for _, v := range list {
		name, ok := t.choice("encap", v, offered)
		switch {
		case !ok:
		case slices.Contains(names, name):
			t.faultAt("encap", "%s is there twice: want each once", show(v))
		default:
			names = append(names, name)
		}
	}
	if slices.Contains(names, "gue") && slices.Contains(names, "fou") {
		t.faultAt("encap", "gue and fou can't share encap_port: want one of them")
	}
	return names
}

// readMSS reads "auto", which is 0, "off", or a number of bytes.
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

// readTable reads the number of the routing table for replies. The tables 253 (default), 254 (main) and 255 (local)
// are the kernel's own: include/uapi/linux/rtnetlink.h.
func readTable(t *table) int {
	const want = "1 to 32765, and not 253, 254 or 255, which are the kernel's own"
	n := t.integer("table", 30323, 1, maxTable, want)
	if n >= 253 && n <= 255 {
		t.faultAt("table", "%d is taken: want %s", n, want)
	}
	return n
}
