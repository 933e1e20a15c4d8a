package config

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"vstun/routing/vrrp"
)

// withVRRP is a file with two services and some [[vrrp]] tables.
func withVRRP(tables ...string) string {
	text := "[[service]]\nname = \"web\"\nvip = [\"198.51.100.80\", \"2001:db8::80\"]\n" +
		"protocol = \"tcp\"\nport = 80\n" +
		"realserver = [{ address = \"10.0.11.2\" }]\n"
	for _, t := range tables {
		text += "[[vrrp]]\n" + t + "\n"
	}
	return text
}

const basicVRRP = "name = \"VI_1\"\ninterface = \"eth0\"\nrouter_id = 51\naddresses = [\"198.51.100.80\"]\n"

func TestVRRP(t *testing.T) {
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte("hex:"+strings.Repeat("0a", 32)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := ParseDirector("x.toml", []byte(withVRRP(basicVRRP, `name = "inside"
interface = "eth1"
router_id = 51
version = 2
priority = 255
interval = "3s"
addresses = ["10.0.2.10/24", "10.0.3.10/25 dev eth2", "10.0.4.1"]
excluded = ["2001:db8:2::10/64", "10.0.5.1"]
source = "10.0.2.2"
preempt = false
password = "secret"
peers = ["10.0.2.3"]
group = "lb"
checksum = "rfc9568"
track = [{ interface = "eth1" }, { service = "web", weight = -20 }, { gateway = "10.0.2.1", weight = 5 }]`,
		`name = "six"
interface = "eth0"
router_id = 51
interval = "10ms"
addresses = ["fe80::80"]
excluded = ["2001:db8::80"]
source = "fe80::2"
preempt_delay = "1m"
key = "`+key+`"
key_id = 9
key_mode = "permissive"`)))
	if err != nil {
		t.Fatal(err)
	}
	a := netip.MustParseAddr
	prefix := netip.MustParsePrefix
	want := []VRRP{
		{Instance: vrrp.Instance{Name: "VI_1", Device: "eth0", RouterID: 51, Version: 3, Priority: 100,
			Interval: time.Second, Addrs: []netip.Addr{a("198.51.100.80")}, Preempt: true},
			VIPs: []netip.Addr{a("198.51.100.80")}},
		{Instance: vrrp.Instance{Name: "inside", Device: "eth1", RouterID: 51, Version: 2, Priority: 255,
			Interval: 3 * time.Second, Addrs: []netip.Addr{a("10.0.2.10"), a("10.0.3.10"), a("10.0.4.1")},
			Excluded: []netip.Addr{a("2001:db8:2::10"), a("10.0.5.1")}, Source: a("10.0.2.2"),
			Password: "secret", Peers: []netip.Addr{a("10.0.2.3")}, Group: "lb", Checksum: vrrp.RFC9568},
			Owned: []Owned{{"eth1", prefix("10.0.2.10/24")}, {"eth2", prefix("10.0.3.10/25")},
				{"eth1", prefix("10.0.4.1/32")}, {"eth1", prefix("2001:db8:2::10/64")}, {"eth1",
					prefix("10.0.5.1/32")}},
			Track: []Track{{Device: "eth1"}, {Service: "web", Weight: -20}, {Gateway: a("10.0.2.1"), Weight: 5}}},
		{Instance: vrrp.Instance{Name: "six", Device: "eth0", RouterID: 51, Version: 3, Priority: 100,
			Interval: 10 * time.Millisecond, Addrs: []netip.Addr{a("fe80::80")}, Preempt: true,
			Excluded: []netip.Addr{a("2001:db8::80")}, Source: a("fe80::2"),
			PreemptDelay: time.Minute,
			Key:          &vrrp.Key{ID: 9, Bytes: strings.Repeat("\n", 32), Permissive: true}},
			VIPs: []netip.Addr{a("2001:db8::80")}, Owned: []Owned{{"eth0", prefix("fe80::80/128")}},
			KeyFile: key},
	}
	if !reflect.DeepEqual(d.VRRP, want) {
		t.Errorf("got  %+v\nwant %+v", d.VRRP, want)
	}
	if len(d.Warnings) > 0 {
		t.Errorf("warnings %q", d.Warnings)
	}
}

func TestVRRPFaults(t *testing.T) {
	short := filepath.Join(t.TempDir(), "short")
	if err := os.WriteFile(short, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	with := func(lines string) []string { return []string{basicVRRP + lines} }
	other := strings.Replace(basicVRRP, "VI_1", "VI_2", 1)
	const inside = "name = \"inside\"\ninterface = \"eth0\"\nrouter_id = 52\naddresses = [\"10.0.2.10/24\"]\n"
	for _, c := range []struct {
		name   string
		tables []string
		want   []string // parts of the faults, in order
	}{
		{"nothing", []string{""}, []string{"vrrp[1]: name: missing", "vrrp[1]: interface: missing",
			"vrrp[1]: router_id: missing", "vrrp[1]: addresses: missing"}},
		{"unknown key", with("prio = 7"), []string{`vrrp "VI_1": prio: unknown key`}},
		{"priority", with("priority = 0"), []string{"priority: 0 is out of range: want 1 to 254, or 255"}},
		{"version", with("version = 4"), []string{"version: 4 is out of range: want 2 or 3"}},
		{"a fraction of a second in version 2", with("version = 2\ninterval = \"1500ms\""),
			[]string{"interval: \"1.5s\" is no whole number of seconds"}},
		{"less than a second in version 2", with("version = 2\ninterval = \"100ms\""),
			[]string{"interval: \"100ms\" is out of range: want whole seconds"}},
		{"an odd interval", with("interval = \"15ms\""), []string{"interval: \"15ms\" is no multiple of 10ms"}},
		{"a long interval", with("interval = \"41s\""), []string{"interval: \"41s\" is out of range"}},
		{"both families", []string{strings.Replace(basicVRRP, "[\"", "[\"2001:db8::80\", \"", 1)},
			[]string{"addresses: 2001:db8::80 and 198.51.100.80 are of different families"}},
		{"IPv6 in version 2", []string{strings.Replace(basicVRRP, "198.51.100.80", "2001:db8::80", 1) + "version = 2"},
			[]string{"version: 2 has no IPv6: want 3"}},
		{"an address twice", []string{basicVRRP, strings.Replace(other, "51", "52", 1)},
			[]string{`vrrp "VI_2": addresses: 198.51.100.80 is also one of vrrp "VI_1"`}},
		{"a router_id twice", []string{basicVRRP, strings.Replace(other, "198.51.100.80", "10.0.2.10/24", 1)},
			[]string{`vrrp "VI_2": router_id: 51 of eth0 belongs to vrrp "VI_1": want another router_id`}},
		{"a name twice", []string{basicVRRP, strings.Replace(strings.Replace(basicVRRP, "198.51.100.80",
			"10.0.2.10/24", 1), "51", "52", 1)}, []string{`vrrp[2]: name: "VI_1" is also the name of vrrp[1]`}},
		{"an address excluded, too", with("excluded = [\"198.51.100.80\", 7]"),
			[]string{`excluded: 198.51.100.80 is also one of vrrp "VI_1"`, "excluded: 7 is of the wrong type: want " +
				"an array"}},
		{"a source that moves", with("excluded = [\"10.0.2.9\"]\nsource = \"10.0.2.9\""),
			[]string{`source: 10.0.2.9 is one of the addresses of vrrp "VI_1": want an address that stays on eth0`}},
		{"another one's source", []string{basicVRRP, inside + "source = \"198.51.100.80\""},
			[]string{`vrrp "inside": source: 198.51.100.80 is one of the addresses of vrrp "VI_1": want an address`}},
		{"a source that moves with a later instance", []string{basicVRRP + "source = \"10.0.2.10\"", inside},
			[]string{`vrrp "inside": addresses: 10.0.2.10 is the source of vrrp "VI_1": want one that may move`}},
		{"a source of another family", with("source = \"fe80::2\""), []string{"source: fe80::2 is of another"}},
		{"a source that is none", with("source = \"224.0.0.18\""), []string{`source: "224.0.0.18" is not an`}},
		{"a source of IPv6 multicast", []string{strings.Replace(basicVRRP, "198.51.100.80", "2001:db8::80",
			1) + "source = \"2001:db8::2\""}, []string{"source: 2001:db8::2 is not a link-local address"}},
		{"no address", []string{strings.Replace(basicVRRP, "198.51.100.80", "eth0 10.0.2.1", 1)},
			[]string{`addresses: "eth0 10.0.2.1" is not an address`}},
		{"a password of version 3", with("password = \"secret\""), []string{"password: version 3 has no passwords"}},
		{"a short key", with("key = \"" + short + "\""), []string{"has a key of 5 bytes: want the absolute path"}},
		{"a peer that is a VIP", with("peers = [\"198.51.100.80\"]"), []string{"peers: 198.51.100.80 is one of the"}},
		{"a peer of another family", with("peers = [\"2001:db8::3\"]"), []string{"peers: 2001:db8::3 is of another"}},
		{"an unknown service", with("track = [{ service = \"mail\" }]"),
			[]string{`vrrp "VI_1": track[1]: service: there is no service "mail"`}},
		{"nothing tracked", with("track = [{ weight = 3 }]"), []string{"track[1]: there are 0 of interface, service"}},
		{"a realserver without a service", with("track = [{ interface = \"eth1\", realserver = \"10.0.11.2\" }]"),
			[]string{"track[1]: realserver: there is no service beside it: want its service, too: service = \"NAME\""}},
		{"a realserver without a check", with("track = [{ service = \"web\", realserver = \"10.0.11.2\" }]"),
			[]string{`track[1]: realserver: service "web" has no realserver "10.0.11.2" with a check`}},
		{"two tracked", with("track = [{ interface = \"eth1\", service = \"web\" }]"),
			[]string{"track[1]: there are 2 of interface, service or gateway: want one of them"}},
		{"a heavy track", with("track = [{ interface = \"eth1\", weight = 254 }]"),
			[]string{"track[1]: weight: 254 is out of range: want -253 to 253"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := ParseDirector("x.toml", []byte(withVRRP(c.tables...)))
			faults, ok := err.(*Errors)
			if !ok || len(*faults) != len(c.want) {
				t.Fatalf("%v, want %d faults", err, len(c.want))
			}
			for n, want := range c.want {
				if !strings.Contains((*faults)[n], want) {
					t.Errorf("%q, want %q", (*faults)[n], want)
				}
			}
		})
	}
}

// TestVRRPWithTAP: neighbours learn of VIPs alone. A link-local address that RFC 9568 asks for is no next hop.
func TestVRRPWithTAP(t *testing.T) {
	file := "[director]\ndevice = \"tap\"\nbridge = \"br0\"\n" + withVRRP(strings.Replace(basicVRRP, "eth0", "br0", 1))
	if _, err := ParseDirector("x.toml", []byte(file)); err != nil {
		t.Error(err)
	}
	six := file + "excluded = [\"fe80::80\"]\n"
	if _, err := ParseDirector("x.toml", []byte(six)); err != nil {
		t.Error(err)
	}
	_, err := ParseDirector("x.toml", []byte(file+"excluded = [\"10.0.2.10/24\"]\n"))
	if err == nil || !strings.Contains(err.Error(), "excluded: 10.0.2.10 is no VIP, and with a TAP device") {
		t.Errorf("%v", err)
	}
}

func TestVRRPNeedsRestart(t *testing.T) {
	without, err := ParseDirector("x.toml", []byte(withVRRP()))
	if err != nil {
		t.Fatal(err)
	}
	with, err := ParseDirector("x.toml", []byte(withVRRP(basicVRRP)))
	if err != nil {
		t.Fatal(err)
	}
	if keys := without.NeedsRestart(with); !slices.Equal(keys, []string{"vrrp (the first one)"}) {
		t.Errorf("the first one: %q", keys)
	}
	if keys := with.NeedsRestart(without); len(keys) > 0 {
		t.Errorf("the last one: %q", keys)
	}
}

// TestVRRPTracksCheck: an instance may depend on the check of a realserver, which its address, or its address and port,
// names.
func TestVRRPTracksCheck(t *testing.T) {
	d, err := ParseDirector("x.toml", []byte(`[[service]]
name = "web"
vip = "198.51.100.80"
protocol = "tcp"
port = 80
check = { type = "tcp" }
realserver = [{ address = "10.0.11.2" }, { address = "10.0.12.2", forward = "nat", port = 8080 }]
[[vrrp]]
`+basicVRRP+`track = [{ service = "web", realserver = "10.0.11.2" },
	{ service = "web", realserver = "10.0.12.2:8080", weight = -5 }]`))
	if err != nil {
		t.Fatal(err)
	}
	want := []Track{{Service: "web", Realserver: netip.MustParseAddrPort("10.0.11.2:0")},
		{Service: "web", Realserver: netip.MustParseAddrPort("10.0.12.2:8080"), Weight: -5}}
	if got := d.VRRP[0].Track; !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}
	if name := want[1].Name(); name != "realserver 10.0.12.2:8080 of web" {
		t.Errorf("its name is %q", name)
	}
}
