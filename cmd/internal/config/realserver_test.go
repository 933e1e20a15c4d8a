package config_test

import (
	"log/slog"
	"net/netip"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"vstun/cmd/internal/config"
)

// goodRealserver is the least that a realserver.toml must hold.
const goodRealserver = `
[realserver]
vips = ["198.51.100.80"]
directors = ["10.0.2.2"]
`

func TestRealserverDefaults(t *testing.T) {
	got, err := config.ParseRealserver("x.toml", []byte(goodRealserver))
	if err != nil {
		t.Fatal(err)
	}
	want := &config.Realserver{
		TUN:       "vs0",
		AnyTUN:    true,
		Queues:    min(runtime.NumCPU(), 256),
		Offload:   true,
		VIPs:      []netip.Addr{netip.MustParseAddr("198.51.100.80")},
		Directors: []netip.Prefix{netip.MustParsePrefix("10.0.2.2/32")},
		Encaps:    []string{"ipip"},
		EncapPort: 6080,
		Table:     30323,
		Control:   "/run/vstun/realserver.sock",
		Log:       slog.LevelInfo,
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{},
		netip.AddrPort{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestRealserverEveryKey(t *testing.T) {
	got, err := config.ParseRealserver("x.toml", readTestdata(t, "realserver.toml"))
	if err != nil {
		t.Fatal(err)
	}
	want := &config.Realserver{
		TUN:    "vip0",
		Queues: 3,
		VIPs:   []netip.Addr{netip.MustParseAddr("198.51.100.80"), netip.MustParseAddr("2001:db8:f::80")},
		Directors: []netip.Prefix{netip.MustParsePrefix("10.0.2.2/32"), netip.MustParsePrefix("10.0.3.0/24"),
			netip.MustParsePrefix("2001:db8:3::/48")},
		Encaps:    []string{"ipip", "gre"},
		EncapPort: 6080,
		Key:       4294967295,
		HasKey:    true,
		MSS:       1400,
		Table:     100,

		ForeignVIPs: true,
		Control:     "/run/vstun/realserver.sock",
		Metrics:     netip.MustParseAddrPort("0.0.0.0:9465"),
		Log:         slog.LevelWarn,
		Warnings: []string{"x.toml:11: realserver: encap_port: only gue and fou have a port, and encap has " +
			"neither: leave it out"},
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{},
		netip.AddrPort{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// The documented file as a whole.
func TestRealserverReference(t *testing.T) {
	got, err := config.ParseRealserver("x.toml", readTestdata(t, "reference-realserver.toml"))
	if err != nil || got.Metrics != netip.MustParseAddrPort("127.0.0.1:9465") {
		t.Errorf("%+v, %v", got, err)
	}
}

// Each of these faults gives exactly these lines.
func TestRealserverFaults(t *testing.T) {
	const (
		wantAddr   = `want an IPv4 or IPv6 address such as "10.0.2.2" or "2001:db8::2"`
		wantPrefix = `want an address such as "10.0.2.2" or "2001:db8::2", or a prefix such as "10.0.2.0/24" or ` +
			`"2001:db8::/64"`
		wantList  = `want a director's address or prefix, or an array of them`
		wantMSS   = `want "auto", "off" or 88 to 65495 bytes`
		wantTable = `want 1 to 32764, and not 252 to 255: it and the next are used, and 253 to 255 are the ` +
			`kernel's own`
		wide = ` lets anybody send packets into this host's network (an open decapsulator, CVE-2020-10136): ` +
			`want the directors' own addresses, or prefixes from /8 to /32`
	)
	with := func(line string) string { return goodRealserver + line + "\n" }
	vips := func(list string) string { return strings.Replace(goodRealserver, `["198.51.100.80"]`, list, 1) }
	directors := func(list string) string { return strings.Replace(goodRealserver, `["10.0.2.2"]`, list, 1) }

	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"empty", "", []string{`realserver: missing: want a [realserver] table with vips and directors`}},
		{"a director's file", goodService, []string{
			`realserver: missing: want a [realserver] table with vips and directors`,
			`service: unknown key: want realserver, wireguard, second_chance or tunnel`,
		}},
		{"an array of tables", "[[realserver]]", []string{`realserver: an array of tables is of the wrong type: ` +
			`want a [realserver] table with vips and directors`}},
		{"an empty table", "[realserver]", []string{
			`realserver: vips: missing: want an IPv4 or IPv6 address, or an array of them`,
			`realserver: directors: missing: ` + wantList,
		}},
		{"unknown key", with("colour = 1"), []string{`realserver: colour: unknown key: want tun, queues, offload, ` +
			`vips, directors, encap, encap_port, mss, table, control, metrics, log, fast_path, ` +
			`fast_path_devices, own_vips or encap_key`}},
		{"own_vips a string", with(`own_vips = "no"`), []string{`realserver: own_vips: "no" is of the wrong type: ` +
			`want true or false`}},
		{"own_vips without a tunnel", with("own_vips = false\nencap = []"), []string{`realserver: own_vips: false, ` +
			`and encap is empty: the agent would have nothing to do: leave one of them out`}},
		{"misspelt key", with("director = 1"), []string{`realserver: director: unknown key: did you mean directors?`}},
		{"vips empty", vips("[]"), []string{`realserver: vips: is empty: want an IPv4 or IPv6 address, or an array ` +
			`of them`}},
		{"vips a name", vips(`"web"`), []string{`realserver: vips: "web" is not an address: ` + wantAddr}},
		{"vips link-local", vips(`["fe80::80"]`), []string{`realserver: vips: "fe80::80" is a link-local address: ` +
			`want a unicast address`}},
		{"vips twice", vips(`["198.51.100.80", "198.51.100.80"]`), []string{`realserver: vips: "198.51.100.80" is ` +
			`there twice: want each address once`}},
		{"vips number", vips(`[1]`), []string{`realserver: vips: 1 is of the wrong type: ` + wantAddr}},
		{"directors empty", directors("[]"), []string{`realserver: directors: is empty: ` + wantList}},
		{"directors type", directors("[1]"), []string{`realserver: directors: 1 is of the wrong type: ` + wantPrefix}},
		{"directors everybody", directors(`["0.0.0.0/0"]`), []string{`realserver: directors: "0.0.0.0/0"` + wide}},
		{"directors half of everybody", directors(`["128.0.0.0/1"]`), []string{`realserver: directors: "128.0.0.0/1"` +
			wide}},
		{"directors all IPv6", directors(`["::/0"]`), []string{`realserver: directors: "::/0"` + strings.Replace(wide,
			"/8 to /32", "/32 to /128", 1)}},
		{"directors of IPv6", directors(`["2000::/3", "2001:db8::/31", "2001:db8::1/64", "::ffff:10.0.0.0/104", ` +
			`"fe80::/64", "fe80::2", "fe80::2%eth0", "::1", "ff02::/32"]`), []string{
			`realserver: directors: "2000::/3"` + strings.Replace(wide, "/8 to /32", "/32 to /128", 1),
			`realserver: directors: "2001:db8::/31"` + strings.Replace(wide, "/8 to /32", "/32 to /128", 1),
			`realserver: directors: "2001:db8::1/64" has bits beyond its length: want "2001:db8::/64", or ` +
				`"2001:db8::1" for the one address`,
			`realserver: directors: "::ffff:10.0.0.0/104" is of IPv4-mapped IPv6 addresses: ` + wantPrefix,
			`realserver: directors: "fe80::/64" is a link-local address: want a unicast address or prefix`,
			`realserver: directors: "fe80::2" is a link-local address: want a unicast address`,
			`realserver: directors: "fe80::2%eth0" has a zone: ` + wantAddr,
			`realserver: directors: "::1" is a loopback address: want a unicast address`,
			`realserver: directors: "ff02::/32" is a multicast address: want a unicast address or prefix`,
		}},
		{"directors length", directors(`["10.0.2.0/33"]`), []string{`realserver: directors: "10.0.2.0/33" is not a ` +
			`prefix: ` + wantPrefix}},
		{"directors host bits", directors(`["10.0.2.2/24"]`), []string{`realserver: directors: "10.0.2.2/24" has ` +
			`bits beyond its length: want "10.0.2.0/24", or "10.0.2.2" for the one address`}},
		{"directors loopback", directors(`["127.0.0.0/8"]`), []string{`realserver: directors: "127.0.0.0/8" is a ` +
			`loopback address: want a unicast address or prefix`}},
		{"directors zero", directors(`["0.0.0.0"]`), []string{`realserver: directors: "0.0.0.0" is the unspecified ` +
			`address: want a unicast address`}},
		{"directors twice", directors(`["10.0.2.2", "10.0.2.2/32"]`), []string{`realserver: directors: ` +
			`"10.0.2.2/32" is there twice: want each once`}},
		{"directors a VIP", directors(`["10.0.2.2", "198.51.100.80"]`),
			[]string{`realserver: directors: "198.51.100.80" is one of the vips: want the directors' own addresses`}},
		{"encap a wrong string", with(`encap = "ipi"`), []string{`realserver: encap: "ipi" is unknown: want ipip, ` +
			`gre, gue, fou or wireguard`}},
		{"encap twice", with(`encap = ["ipip", "ipip"]`), []string{`realserver: encap: "ipip" is there twice: want ` +
			`each once`}},
		{"encap unknown", with(`encap = ["ipip", "gre", "vxlan", 1, "gue", "fou"]`), []string{
			`realserver: encap: "vxlan" is unknown: want ipip, gre, gue, fou or wireguard`,
			`realserver: encap: 1 is of the wrong type: want ipip, gre, gue, fou or wireguard`,
			`realserver: encap: gue and fou can't share encap_port: want one of them`,
		}},
		{"encap_port", with("encap_port = 65536"), []string{`realserver: encap_port: 65536 is out of range: want 1 ` +
			`to 65535`}},
		{"key of no GRE", with("encap_key = 7"), []string{`realserver: encap_key: only gre has a key, and encap has ` +
			`no gre: leave it out`}},
		{"key", with("encap = [\"gre\"]\nencap_key = -1"), []string{`realserver: encap_key: -1 is out of range: ` +
			`want 0 to 4294967295`}},
		{"metrics", with(`metrics = ""`), []string{`realserver: metrics: "" is not an address and a port: want an ` +
			`address of this host and a port, such as "127.0.0.1:9465", or "0.0.0.0" or "[::]" for all of its ` +
			`addresses`}},
		{"mss small", with("mss = 87"), []string{`realserver: mss: 87 is out of range: ` + wantMSS}},
		{"mss big", with("mss = 65496"), []string{`realserver: mss: 65496 is out of range: ` + wantMSS}},
		{"mss text", with(`mss = "1400"`), []string{`realserver: mss: "1400" is not a size: ` + wantMSS}},
		{"mss table", with("mss = {}"), []string{`realserver: mss: a table is not a size: ` + wantMSS}},
		{"table zero", with("table = 0"), []string{`realserver: table: 0 is out of range: ` + wantTable}},
		{"the next table's rule after main's", with("table = 32765"), []string{`realserver: table: 32765 is out of ` +
			`range: ` + wantTable}},
		{"the next table default", with("table = 252"), []string{`realserver: table: 252 is taken: ` + wantTable}},
		{"table main", with("table = 254"), []string{`realserver: table: 254 is taken: ` + wantTable}},
		{"table text", with(`table = "main"`), []string{`realserver: table: "main" is of the wrong type: ` +
			wantTable}},
		{"many", "[realserver]\ntun = \"a/b\"\nvips = [\"127.0.0.1\"]\nmss = 1\ncontrol = \"x\"\nlog = \"\"\n[extra]",
			[]string{
				`realserver: tun: "a/b" is not a device's name: want 1 to 15 letters, digits or signs other than / ` +
					`: % ` +
					`(not ".", "..", "all" or "default")`,
				`realserver: vips: "127.0.0.1" is a loopback address: want a unicast address`,
				`realserver: directors: missing: ` + wantList,
				`realserver: mss: 1 is out of range: ` + wantMSS,
				`realserver: control: "x" is not a socket's path: want an absolute path of at most 107 bytes, such ` +
					`as ` +
					`"/run/vstun/NAME.sock"`,
				`realserver: log: "" is unknown: want debug, info, warn or error`,
				`extra: unknown key: want realserver, wireguard, second_chance or tunnel`,
			}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := config.ParseRealserver("x.toml", []byte(c.text))
			wantFaults(t, err, c.want...)
		})
	}
}

// These files look faulty and are legal.
func TestRealserverAccepts(t *testing.T) {
	for name, text := range map[string]string{
		"a VIP inside the directors' subnet": "[realserver]\nvips = [\"10.0.2.80\"]\ndirectors = [\"10.0.2.0/24\"]",
		"the widest prefix":                  "[realserver]\nvips = [\"198.51.100.80\"]\ndirectors = [\"10.0.0.0/8\"]",
		"both families": "[realserver]\nvips = [\"198.51.100.80\", " +
			"\"2001:db8:f::80\"]\ndirectors = [\"2001:db8::2\", \"10.0.2.2\"]",
		"the widest prefix of IPv6": "[realserver]\nvips = [\"198.51.100.80\"]\ndirectors = " +
			"[\"2001:db8::/32\"]",
		"values without arrays": "[realserver]\nvips = \"198.51.100.80\"\ndirectors = " +
			"\"10.0.2.2\"\nencap = \"gre\"",
		"key 0":           goodRealserver + "encap = [\"gre\", \"ipip\"]\nencap_key = 0",
		"mss auto":        goodRealserver + `mss = "auto"`,
		"least values":    goodRealserver + "mss = 88\ntable = 1",
		"greatest values": goodRealserver + "mss = 65495\ntable = 32764",
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := config.ParseRealserver("x.toml", []byte(text)); err != nil {
				t.Error(err)
			}
		})
	}
}

// An agent for VS/DR alone accepts no tunnel, needs no directors and lowers no MSS.
func TestNoTunnel(t *testing.T) {
	for text, want := range map[string]string{
		"":                              "",
		"directors = [\"10.0.2.2\"]\n":  "",
		"mss = \"off\"\n":               "",
		"mss = 1400\n":                  "need no room for one",
		"encap_key = 7\n":               "! only gre has a key",
		"directors = []\nmss = \"off\"": "! directors: is empty",
	} {
		text = "[realserver]\nvips = \"198.51.100.80\"\nencap = []\n" + text
		got, err := config.ParseRealserver("x.toml", []byte(text))
		if fault, bad := strings.CutPrefix(want, "! "); bad {
			if err == nil || !strings.Contains(err.Error(), fault) {
				t.Errorf("%q: error %v, want %q", text, err, fault)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if len(got.Encaps) != 0 || got.MSS != config.MSSOff ||
			strings.Contains(strings.Join(got.Warnings, ""), "mss") != (want != "") ||
			!strings.Contains(strings.Join(got.Warnings, ""), want) {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

func TestMSSOff(t *testing.T) {
	got, err := config.ParseRealserver("x.toml", []byte(goodRealserver+"mss = \"off\"\n"))
	if err != nil || got.MSS != config.MSSOff {
		t.Errorf("%+v, %v", got, err)
	}
}
