package config_test

import (
	"log/slog"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"vstun/balancer"
	"vstun/cmd/internal/config"
)

// goodService is the least that a director.toml must hold.
const goodService = `
[[service]]
name = "web"
vip = "198.51.100.80"
protocol = "tcp"
port = 80
`

func TestDirectorDefaults(t *testing.T) {
	got, err := config.ParseDirector("x.toml", []byte(goodService))
	if err != nil {
		t.Fatal(err)
	}
	want := &config.Director{
		TUN:     "vs0",
		Table:   30325,
		Queues:  min(runtime.NumCPU(), 256),
		Offload: true,
		Control: "/run/vstun/director.sock",
		Log:     slog.LevelInfo,
		Connections: config.Connections{
			Max: 1_000_000,
			Timeouts: config.Timeouts{
				TCP: 15 * time.Minute, TCPFin: 2 * time.Minute, TCPSyn: time.Minute, UDP: 5 * time.Minute,
				SCTP: 15 * time.Minute,
			},
			ConnReuse:   1,
			SecureTCP:   config.SecureAuto,
			HalfOpenMax: 250_000,
			Keep:        "/run/vstun/director.table",
			KeepBeside:  true,
		},
		Services: []config.Service{{
			Name:      "web",
			VIPs:      []netip.Addr{netip.MustParseAddr("198.51.100.80")},
			Protocol:  "tcp",
			Ports:     []config.PortRange{{First: 80, Last: 80}},
			Scheduler: "wlc",
			EncapPort: 6080,
			Quorum:    1,
		}},
		Notify: config.Notify{Timeout: 10 * time.Second},
		Warnings: []string{`x.toml:2: service "web": realserver: missing: the service refuses all clients: want ` +
			`[[service.realserver]] tables`},
	}
	want.Digest, got.Places = got.Digest, nil
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestLocalTUN: the second device has a name of its own that the kernel accepts, whatever the first device's name is.
func TestLocalTUN(t *testing.T) {
	for tun, want := range map[string]string{
		"vs0": "vs0-local", "0123456789abcde": "012345678-local", "vs0-local": "vs0-local-local",
		"123456789-local": "123456789-own",
	} {
		if got := (&config.Director{TUN: tun}).LocalTUN(); got != want || len(got) > 15 {
			t.Errorf("beside %s: %s, want %s", tun, got, want)
		}
	}
}

func TestDirectorEveryKey(t *testing.T) {
	got, err := config.ParseDirector("x.toml", readTestdata(t, "director.toml"))
	if err != nil {
		t.Fatal(err)
	}
	vip := netip.MustParseAddr("198.51.100.80")
	ipip := config.Tunnel{Encap: "ipip"}
	want := &config.Director{
		TUN:     "vip0",
		TAP:     true,
		Bridge:  "br0",
		Table:   77,
		Queues:  4,
		Source:  config.Sources{V4: netip.MustParseAddr("10.0.2.2"), V6: netip.MustParseAddr("2001:db8:2::2")},
		Control: "/run/vstun/director.sock",
		Metrics: netip.MustParseAddrPort("[::1]:9464"),
		Log:     slog.LevelDebug,
		Silent:  true,

		NoResets:    true,
		HashUnknown: true,

		Announce: config.Announce{Devices: []string{"eth0", "bond0.7"}, Warn: true},
		Connections: config.Connections{
			Max:       2_000_000,
			SloppyTCP: true,
			Timeouts: config.Timeouts{
				TCP: 10 * time.Minute, TCPFin: 90 * time.Second, TCPSyn: 30 * time.Second, UDP: 90 * time.Second,
				SCTP: time.Minute,
			},
			ExpireNoDest:            true,
			ExpireQuiescentTemplate: true,
			ConnReuse:               2,
			DropOnRemoval:           true,
			SecureTCP:               config.SecureAlways,
			HalfOpenMax:             100_000,
			Keep:                    "/dev/shm/vstun.table",
		},
		Services: []config.Service{{
			Name:      "web",
			VIPs:      []netip.Addr{vip},
			Protocol:  "tcp",
			Ports:     []config.PortRange{{First: 80, Last: 80}},
			Scheduler: "sh",
			Flags:     config.SchedulerFlags{Port: true, Fallback: true},
			ByAddress: true,
			Persistence: config.Persistence{
				Timeout: 10 * time.Minute, Netmask: 24, Netmask6: 64,
			},
			Realservers: []config.RealserverRef{
				{Address: netip.MustParseAddr("10.0.11.2"), Tunnel: ipip, Weight: 10, Upper: 100, Lower: 80,
					DrainOnFailure: true},
				{Address: netip.MustParseAddr("10.0.12.2"), Tunnel: ipip, Weight: 1},
			},
			EncapPort:      6080,
			Quorum:         5,
			Hysteresis:     2,
			Sorry:          config.RealserverRef{Address: netip.MustParseAddr("10.0.99.2"), Tunnel: ipip, Weight: 1},
			DrainOnFailure: true,
		}, {
			Name:      "dns",
			VIPs:      []netip.Addr{vip, netip.MustParseAddr("198.51.100.81")},
			Protocol:  "udp",
			Ports:     []config.PortRange{{First: 53, Last: 53}, {First: 8000, Last: 8099}, {First: 80, Last: 80}},
			Scheduler: "wlc",
			OnePacket: true,
			EncapPort: 6080,
			Quorum:    1,
		}, {
			Name:        "phone",
			VIPs:        []netip.Addr{vip},
			Protocol:    "sctp",
			Ports:       []config.PortRange{{}},
			Scheduler:   "wlc",
			Persistence: config.Persistence{Timeout: 5 * time.Minute, Netmask: 32, Netmask6: 128},
			EncapPort:   6080,
			Quorum:      1,
		}, {
			Name:      "both",
			VIPs:      []netip.Addr{netip.MustParseAddr("2001:db8::80"), vip},
			Protocol:  "tcp",
			Ports:     []config.PortRange{{First: 443, Last: 443}},
			Scheduler: "wlc",
			Realservers: []config.RealserverRef{
				{Address: netip.MustParseAddr("2001:db8:11::2"), Weight: 1, Tunnel: config.Tunnel{Encap: "gre", Key: 7,
					HasKey: true, Checksum: true}},
				{Address: netip.MustParseAddr("10.0.11.2"), Weight: 1, Tunnel: config.Tunnel{Encap: "gre",
					Key: 4294967295, HasKey: true}},
				{Address: netip.MustParseAddr("10.0.12.2"), Weight: 1, Tunnel: config.Tunnel{Encap: "gue",
					Checksum: true}},
				{Address: netip.MustParseAddr("10.0.13.2"), Weight: 1, Tunnel: ipip},
			},
			EncapPort: 6080,
			Quorum:    1,
		}},
		Notify: config.Notify{Command: []string{"/usr/local/bin/tell", "ops"},
			Webhook: "https://hooks.example.com/vstun?key=1", Timeout: 5 * time.Second,
			Mail: &config.Mail{To: []string{"ops@example.com", "Night <night@example.com>"}, From: "lb@example.com",
				Server: "smtp.example.com:465", TLS: "tls", Helo: "lb1.example.com",
				Kinds: []string{"service", "realserver"}, Services: []string{"web", "both"}, Gather: 10 * time.Second}},
		Warnings: []string{
			`x.toml:17: director: announce_devices: with device = "tap" VIPs are announced by that device alone: ` +
				`leave it out`,
			`x.toml:49: service "web": encap_port: only gue and fou have a port, and no tunnel of this service is ` +
				`one of them: leave it out`,
			`x.toml:66: service "dns": realserver: missing: the service refuses all clients: want ` +
				`[[service.realserver]] tables`,
			`x.toml:73: service "phone": realserver: missing: the service refuses all clients: want ` +
				`[[service.realserver]] tables`,
			`x.toml:33: notify: command: "/usr/local/bin/tell" is not there: install it, or name another program`,
		},
	}
	want.Digest, got.Places = got.Digest, nil
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// The documented file as a whole.
func TestDirectorReference(t *testing.T) {
	if _, err := config.ParseDirector("x.toml", readTestdata(t, "reference-director.toml")); err != nil {
		t.Error(err)
	}
}

// Each of these faults gives exactly these lines.
func TestDirectorFaults(t *testing.T) {
	const (
		wantPorts  = `want 0 (every port), 1 to 65535, a range "8000-8099" or an array of them`
		wantNames  = `want an array of device names such as ["eth0"]`
		wantAddr   = `want an IPv4 or IPv6 address such as "10.0.2.2" or "2001:db8::2"`
		wantDevice = `want 1 to 15 letters, digits or signs other than / : % (not ".", "..", "all" or "default")`
		wantListen = `want an address of this host and a port, such as "127.0.0.1:9464", or "0.0.0.0" or "[::]" for ` +
			`all of its addresses`
		wantSocket = `want an absolute path of at most 107 bytes, such as "/run/vstun/NAME.sock"`
		wantTime   = `want 1s to 744h (31 days)`
		wantMax    = `want 1024 (fewer are no table to balance with) to 134217728 (2^27, gigabytes of memory)`
		wantOwn    = `want a VIP, protocol and port in one service only`
	)
	director := func(line string) string { return "[director]\n" + line + "\n" + goodService }
	connections := func(line string) string { return "[connections]\n" + line + "\n" + goodService }
	web := func(line string) string { return goodService + line + "\n" }
	webPort := func(port string) string { return strings.Replace(goodService, "port = 80", "port = "+port, 1) }
	webVIP := func(vip string) string { return strings.Replace(goodService, `"198.51.100.80"`, vip, 1) }
	webName := func(name string) string { return strings.Replace(goodService, `"web"`, name, 1) }
	realserver := func(lines string) string { return web("[[service.realserver]]\n" + lines) }
	second := func(name, vip, protocol, port string) string {
		return goodService + "[[service]]\nname = \"" + name + "\"\nvip = " + vip + "\nprotocol = \"" + protocol +
			"\"\nport = " + port + "\n"
	}

	for _, c := range []struct {
		name, text string
		want       []string
	}{
		// The file as a whole.
		{"empty", "", []string{`service: missing: want at least one [[service]] table`}},
		{"no service", "service = []", []string{`service: is empty: want at least one [[service]] table`}},
		{"service as a table", "[service]\nname = \"a\"", []string{`service: a table is of the wrong type: want at ` +
			`least one [[service]] table`}},
		{"service of numbers", "service = [1]", []string{`service: 1 is of the wrong type: want at least one ` +
			`[[service]] table`}},
		{"unknown table", web("[conections]"), []string{`conections: unknown key: did you mean connections?`}},
		{"key without table", "queues = 1\n" + goodService, []string{`queues: unknown key: want director, ` +
			`connections, wireguard, service, tunnel, vrrp, notify, sync, second_chance or bgp`}},
		{"strange key", "\"a\\nb\" = 1\n" + goodService, []string{`"a\nb": unknown key: want director, connections, ` +
			`wireguard, service, tunnel, vrrp, notify, sync, second_chance or bgp`}},

		// [director]
		{"director as an array", "[[director]]\n" + goodService, []string{`director: an array of tables is of the ` +
			`wrong type: want a [director] table`}},
		{"unknown in director", director("colour = 1"), []string{`director: colour: unknown key: want tun, table, ` +
			`queues, offload, source, control, metrics, log, no_service, no_connection, unknown_flows, device, ` +
			`bridge, announce, announce_devices, announce_conflict, fast_path or fast_path_devices`}},
		{"fast path", director("fast_path = \"on\"\nfast_path_devices = [\"vs0\", \"a b\"]"), []string{
			`director: fast_path: "on" is unknown: want auto or off`,
			`director: fast_path_devices: "vs0" is the program's own device: want a device by which packets come ` +
				`from elsewhere`,
			`director: fast_path_devices: "a b" is not a device's name: want an array of device names such as ` +
				`["eth0"]`}},
		{"no_connection", director(`no_connection = "reject"`), []string{`director: no_connection: "reject" is ` +
			`unknown: want reset or drop`}},
		{"unknown_flows", director(`unknown_flows = "drop"`), []string{`director: unknown_flows: "drop" is unknown: ` +
			`want refuse or hash`}},
		{"misspelt in director", director("Queue = 1"), []string{`director: Queue: unknown key: did you mean queues?`}},
		{"tun type", director("tun = 1"), []string{`director: tun: 1 is of the wrong type: ` + wantDevice}},
		{"tun empty", director(`tun = ""`), []string{`director: tun: "" is not a device's name: ` + wantDevice}},
		{"tun lo", director(`tun = "lo"`), []string{`director: tun: "lo" is the loopback device: want another name`}},
		{"tun slash", director(`tun = "a/b"`), []string{`director: tun: "a/b" is not a device's name: ` + wantDevice}},
		{"tun space", director(`tun = "a b"`), []string{`director: tun: "a b" is not a device's name: ` + wantDevice}},
		{"tun colon", director(`tun = "vs0:1"`), []string{`director: tun: "vs0:1" is not a device's name: ` +
			wantDevice}},
		{"tun pattern", director(`tun = "vs%d"`), []string{`director: tun: "vs%d" is not a device's name: ` +
			wantDevice}},
		{"tun dots", director(`tun = ".."`), []string{`director: tun: ".." is not a device's name: ` + wantDevice}},
		{"tun all", director(`tun = "all"`), []string{`director: tun: "all" is not a device's name: ` + wantDevice}},
		{"tun long", director(`tun = "0123456789abcdef"`), []string{`director: tun: "0123456789abcdef" is not a ` +
			`device's name: ` + wantDevice}},
		{"table of the kernel", director("table = 254"), []string{
			`director: table: 254 is taken: want 1 to 32765, and not 253, 254 or 255, which are the kernel's own`}},
		{"announce", director(`announce = "arp"`), []string{`director: announce: "arp" is unknown: want auto or none`}},
		{"announce_conflict", director(`announce_conflict = "no"`), []string{`director: announce_conflict: "no" is ` +
			`unknown: want error or warn`}},
		{"announce_devices", director(`announce_devices = ["eth0", "a/b", 7, "vs0", "vs0-local", "eth0"]`), []string{
			`director: announce_devices: "a/b" is not a device's name: ` + wantNames,
			`director: announce_devices: 7 is of the wrong type: ` + wantNames,
			`director: announce_devices: "vs0" is the program's own device: want a device with the subnet of a VIP`,
			`director: announce_devices: "vs0-local" is the program's own device: want a device with the subnet of ` +
				`a VIP`,
			`director: announce_devices: "eth0" is there twice: want each device once`}},
		{"no announce_devices", director(`announce_devices = []`), []string{`director: announce_devices: is empty: ` +
			wantNames}},
		{"queues negative", director("queues = -1"), []string{`director: queues: -1 is out of range: want 0 (one ` +
			`per CPU) to 256`}},
		{"queues many", director("queues = 257"), []string{`director: queues: 257 is out of range: want 0 (one per ` +
			`CPU) to 256`}},
		{"queues type", director(`queues = "4"`), []string{`director: queues: "4" is of the wrong type: want 0 (one ` +
			`per CPU) to 256`}},
		{"source no address", director(`source = "host"`), []string{`director: source: "host" is not an address: ` +
			wantAddr}},
		{"source empty", director(`source = []`), []string{`director: source: is empty: want an address, or an ` +
			`array of an IPv4 and an IPv6 address`}},
		{"source of one family", director(`source = ["2001:db8::1", "10.0.2.2", "2001:db8::2"]`), []string{
			`director: source: 2001:db8::1 and 2001:db8::2 are of one family: want at most one IPv4 and one IPv6 ` +
				`address`,
		}},
		{"sources wrong", director(`source = ["fe80::1", 7]`), []string{
			`director: source: "fe80::1" is a link-local address: want a unicast address`,
			`director: source: 7 is of the wrong type: ` + wantAddr,
		}},
		{"source loopback", director(`source = "127.0.0.1"`), []string{`director: source: "127.0.0.1" is a loopback ` +
			`address: want a unicast address`}},
		{"source a VIP", director(`source = "198.51.100.80"`), []string{`director: source: "198.51.100.80" is also ` +
			`a VIP of service "web": want the director's own address`}},
		{"control relative", director(`control = "run/x"`), []string{`director: control: "run/x" is not a socket's ` +
			`path: ` + wantSocket}},
		{"control directory", director(`control = "/run/"`), []string{`director: control: "/run/" is not a socket's ` +
			`path: ` + wantSocket}},
		{"control long", director(`control = "/` + strings.Repeat("x", 107) + `"`), []string{`director: control: "/` +
			strings.Repeat("x", 63) + `…" has 108 bytes: ` + wantSocket}},
		{"log", director(`log = "INFO"`),
			[]string{`director: log: "INFO" is unknown: want debug, info, warn or error`}},
		{"log type", director(`log = 2021-01-01`), []string{`director: log: a date or time is of the wrong type: ` +
			`want debug, info, warn or error`}},
		{"metrics", director(`metrics = ":9464"`),
			[]string{`director: metrics: ":9464" is not an address and a port: ` + wantListen}},
		{"metrics name", director(`metrics = "localhost:9464"`), []string{`director: metrics: "localhost:9464" is ` +
			`not an address and a port: ` + wantListen}},
		{"metrics type", director(`metrics = 9464`), []string{`director: metrics: 9464 is of the wrong type: ` +
			wantListen}},
		{"metrics port", director(`metrics = "10.0.2.2:0"`), []string{`director: metrics: "10.0.2.2:0" has port 0: ` +
			`want 1 to 65535`}},
		{"metrics mapped", director(`metrics = "[::ffff:10.0.2.2]:80"`),
			[]string{`director: metrics: "[::ffff:10.0.2.2]:80" is an IPv4-mapped IPv6 address: want "10.0.2.2:80"`}},
		{"metrics multicast", director(`metrics = "[ff02::1]:80"`), []string{`director: metrics: "[ff02::1]:80" is ` +
			`a multicast address: ` + wantListen}},

		// [connections]
		{"max low", connections("max = 1023"), []string{`connections: max: 1023 is out of range: ` + wantMax}},
		{"max high", connections("max = 134217729"), []string{`connections: max: 134217729 is out of range: ` +
			wantMax}},
		{"max float", connections("max = 1e6"), []string{`connections: max: 1e+06 is of the wrong type: ` + wantMax}},
		{"sloppy_tcp", connections("sloppy_tcp = 1"), []string{`connections: sloppy_tcp: 1 is of the wrong type: ` +
			`want true or false`}},
		{"timeouts type", connections(`timeouts = "15m"`), []string{`connections: timeouts: "15m" is of the wrong ` +
			`type: want a table such as { tcp = "15m" }`}},
		{"timeout number", connections("timeouts = { tcp = 900 }"), []string{`connections: timeouts: tcp: 900 is ` +
			`not a duration: write "900s"; ` + wantTime}},
		{"timeout no unit", connections(`timeouts = { tcp_fin = "120" }`),
			[]string{`connections: timeouts: tcp_fin: "120" is not a duration: write "120s"; ` + wantTime}},
		{"timeout short", connections(`timeouts = { tcp_syn = "999ms" }`),
			[]string{`connections: timeouts: tcp_syn: "999ms" is out of range: ` + wantTime}},
		{"timeout long", connections(`timeouts = { udp = "744h1s" }`),
			[]string{`connections: timeouts: udp: "744h1s" is out of range: ` + wantTime}},
		{"timeout unknown", connections(`timeouts = { icmp = "1s" }`),
			[]string{`connections: timeouts: icmp: unknown key: want tcp, tcp_fin, tcp_syn, udp or sctp`}},

		// [[service]]
		{"service empty", "[[service]]", []string{
			`service[1]: name: missing: want 1 to 64 printable characters without whitespace`,
			`service[1]: vip: missing: want an IPv4 or IPv6 address, or an array of them`,
			`service[1]: protocol: missing: want tcp, udp or sctp`,
			`service[1]: port: missing: ` + wantPorts,
		}},
		{"name type", webName("7"), []string{`service[1]: name: 7 is of the wrong type: want 1 to 64 printable ` +
			`characters without whitespace`}},
		{"name empty", webName(`""`), []string{`service[1]: name: "" is not a name: want 1 to 64 printable ` +
			`characters without whitespace`}},
		{"name space", webName(`"my web"`), []string{`service "my web": name: "my web" is not a name: want 1 to 64 ` +
			`printable characters without whitespace`}},
		{"name control", webName(`"a\u0007"`), []string{`service "a\a": name: "a\a" is not a name: want 1 to 64 ` +
			`printable characters without whitespace`}},
		{"name long", webName(`"` + strings.Repeat("é", 65) + `"`), []string{
			`service "` + strings.Repeat("é", 64) + `…": name: "` + strings.Repeat("é", 64) +
				`…" is not a name: want 1 to 64 printable characters without whitespace`,
		}},
		{"name twice", second("web", `"198.51.100.81"`, "tcp", "80"), []string{
			`service[2]: name: "web" is also the name of service[1]: want a name of its own`,
		}},
		{"vip empty", webVIP("[]"), []string{`service "web": vip: is empty: want an IPv4 or IPv6 address, or an ` +
			`array of them`}},
		{"vip number", webVIP("[80]"), []string{`service "web": vip: 80 is of the wrong type: ` + wantAddr}},
		{"vip prefix", webVIP(`"198.51.100.80/32"`), []string{`service "web": vip: "198.51.100.80/32" is not an ` +
			`address: ` + wantAddr}},
		{"vip multicast", webVIP(`"224.0.0.1"`), []string{`service "web": vip: "224.0.0.1" is a multicast address: ` +
			`want a unicast address`}},
		{"vip broadcast", webVIP(`"255.255.255.255"`), []string{`service "web": vip: "255.255.255.255" is the ` +
			`broadcast address: want a unicast address`}},
		{"vip unspecified", webVIP(`"0.0.0.0"`), []string{`service "web": vip: "0.0.0.0" is the unspecified ` +
			`address: want a unicast address`}},
		{"vip this network", webVIP(`"0.0.0.1"`), []string{`service "web": vip: "0.0.0.1" is in 0.0.0.0/8, "this ` +
			`network": want a unicast address`}},
		{"vip mapped", webVIP(`"::ffff:10.0.0.1"`), []string{`service "web": vip: "::ffff:10.0.0.1" is an ` +
			`IPv4-mapped IPv6 address: want "10.0.0.1"`}},
		{"vips IPv6", webVIP(`["fe80::1", "fe80::1%eth0", "::", "::1", "ff02::1", "2001:db8::80/64"]`), []string{
			`service "web": vip: "fe80::1" is a link-local address: want a unicast address`,
			`service "web": vip: "fe80::1%eth0" has a zone: ` + wantAddr,
			`service "web": vip: "::" is the unspecified address: want a unicast address`,
			`service "web": vip: "::1" is a loopback address: want a unicast address`,
			`service "web": vip: "ff02::1" is a multicast address: want a unicast address`,
			`service "web": vip: "2001:db8::80/64" is not an address: ` + wantAddr,
		}},
		{"vip twice", webVIP(`["198.51.100.80", "198.51.100.80"]`), []string{`service "web": vip: "198.51.100.80" ` +
			`is there twice: want each address once`}},
		{"protocol unknown", strings.Replace(goodService, `"tcp"`, `"TCP"`, 1),
			[]string{`service "web": protocol: "TCP" is unknown: want tcp, udp or sctp`}},
		{"port high", webPort("70000"), []string{`service "web": port: 70000 is out of range: ` + wantPorts}},
		{"port negative", webPort("-1"), []string{`service "web": port: -1 is out of range: ` + wantPorts}},
		{"port string", webPort(`"80"`), []string{`service "web": port: "80" is not a range of ports: ` + wantPorts}},
		{"port name", webPort(`"http-https"`), []string{`service "web": port: "http-https" is not a range of ports: ` +
			wantPorts}},
		{"port float", webPort("80.5"), []string{`service "web": port: 80.5 is of the wrong type: ` + wantPorts}},
		{"port range high", webPort(`"80-70000"`), []string{`service "web": port: "80-70000" is out of range: ` +
			wantPorts}},
		{"port range from 0", webPort(`"0-80"`), []string{`service "web": port: "0-80" is out of range: ` + wantPorts}},
		{"port range backwards", webPort(`"90-80"`), []string{`service "web": port: "90-80" runs from high to low: ` +
			wantPorts}},
		{"ports empty", webPort("[]"), []string{`service "web": port: is empty: ` + wantPorts}},
		{"ports overlap", webPort(`["1-100", 50, 60, 101]`), []string{
			`service "web": port: 50 overlaps 1-100: want each port once`,
			`service "web": port: 60 overlaps 1-100: want each port once`,
		}},
		{"scheduler of another version", web(`scheduler = "wlib"`), []string{`service "web": scheduler: "wlib" is ` +
			`unknown: want ` + schedulers}},
		{"scheduler unknown", web(`scheduler = "best"`), []string{`service "web": scheduler: "best" is unknown: ` +
			`want ` + schedulers}},
		{"scheduler type", web(`scheduler = ["rr"]`), []string{`service "web": scheduler: an array is of the wrong ` +
			`type: want ` + schedulers}},
		{"encap unknown", web(`encap = "vxlan"`), []string{`service "web": encap: "vxlan" is unknown: want ipip, ` +
			`gre, gue, fou or wireguard`}},
		{"unknown in service", web("vips = 1"), []string{`service "web": vips: unknown key: did you mean vip?`}},
		{"encap_port", web("encap_port = 0"),
			[]string{`service "web": encap_port: 0 is out of range: want 1 to 65535`}},

		// Services against each other.
		{"same service", second("b", `"198.51.100.80"`, "tcp", "80"), []string{
			`service "b": port: 80 of tcp "198.51.100.80" belongs to service "web" (port 80): ` + wantOwn,
		}},
		{"range over a service", second("b", `["198.51.100.81", "198.51.100.80"]`, "tcp", `[443, "1-100"]`), []string{
			`service "b": port: 1-100 of tcp "198.51.100.80" belongs to service "web" (port 80): ` + wantOwn,
		}},
		{"against services without a name", strings.Repeat("[[service]]\nvip = \"198.51.100.80\"\nprotocol = "+
			"\"udp\"\nport = \"5-9\"\n", 2), []string{
			`service[1]: name: missing: want 1 to 64 printable characters without whitespace`,
			`service[2]: name: missing: want 1 to 64 printable characters without whitespace`,
			`service[2]: port: 5-9 of udp "198.51.100.80" belongs to service[1] (port 5-9): ` + wantOwn,
		}},

		// [[service.realserver]]
		{"realserver type", web("realserver = 1"), []string{`service "web": realserver: 1 is of the wrong type: ` +
			`want [[service.realserver]] tables`}},
		{"realserver empty", realserver(""), []string{`service "web": realserver[1]: address: missing: want the ` +
			`realserver's IPv4 or IPv6 address, or its name`}},
		{"realserver address", realserver(`address = "10.0.0.300"`), []string{`service "web": realserver[1]: ` +
			`address: "10.0.0.300" is neither an address nor a name: want an IPv4 or IPv6 address, or a name such as ` +
			`"web1.example.com"`}},
		{"realserver link-local", realserver(`address = "fe80::1"`), []string{`service "web": realserver "fe80::1": ` +
			`address: "fe80::1" is a link-local address: want a unicast address`}},
		{"key out of range", realserver("address = \"10.0.0.1\"\nencap = \"gre\"\nencap_key = 4294967296"), []string{
			`service "web": realserver "10.0.0.1": encap_key: 4294967296 is out of range: want 0 to 4294967295`,
		}},
		{"key of no GRE", realserver("address = \"10.0.0.1\"\nencap = \"gue\"\nencap_key = 1"), []string{
			`service "web": realserver "10.0.0.1": encap_key: only gre has a key, and this tunnel is gue: leave it out`,
		}},
		{"checksum of no tunnel that has one", realserver("address = \"10.0.0.1\"\nencap_checksum = true"), []string{
			`service "web": realserver "10.0.0.1": encap_checksum: ipip has no checksum: leave it out, or use gre, ` +
				`gue or fou`,
		}},
		{"key and checksum of no tunnel", web("encap_key = 7\nencap_checksum = true\nrealserver = [{address = " +
			"\"10.0.0.1\"}]"), []string{
			`service "web": encap_key: only gre has a key, and no tunnel of this service is gre: leave it out`,
			`service "web": encap_checksum: ipip has no checksum, and all tunnels of this service are ipip: leave ` +
				`it out, or use gre, gue or fou`,
		}},
		{"key and checksum of a wrong type", web("encap_key = \"a\"\nencap_checksum = 1"), []string{
			`service "web": encap_checksum: 1 is of the wrong type: want true or false`,
			`service "web": encap_key: "a" is of the wrong type: want 0 to 4294967295`,
		}},
		{"realserver twice", realserver("address = \"10.0.0.1\"\n[[service.realserver]]\naddress = " +
			"\"10.0.0.1\"\nweight = -1"), []string{
			`service "web": realserver[2]: address: "10.0.0.1" is there twice: want a realserver once in a service`,
			`service "web": realserver[2]: weight: -1 is out of range: want 0 (drains it) to 65535`,
		}},
		{"realserver a VIP", realserver("address = \"198.51.100.81\"\n") + "[[service]]\nname = \"b\"\nvip = " +
			"\"198.51.100.81\"\nprotocol = \"tcp\"\nport = 80", []string{
			`service "web": realserver "198.51.100.81": address: "198.51.100.81" is also a VIP of service "b": want ` +
				`the realserver's own address`,
		}},
		{"weight high", realserver("address = \"10.0.0.1\"\nweight = 65536"),
			[]string{`service "web": realserver "10.0.0.1": weight: 65536 is out of range: want 0 (drains it) to ` +
				`65535`}},
		{"weight type", realserver("address = \"10.0.0.1\"\nweight = \"1\""),
			[]string{`service "web": realserver "10.0.0.1": weight: "1" is of the wrong type: want 0 (drains it) to ` +
				`65535`}},
		{"unknown in realserver", realserver("address = \"10.0.0.1\"\nweigth = 1"),
			[]string{`service "web": realserver "10.0.0.1": weigth: unknown key: did you mean weight?`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := config.ParseDirector("x.toml", []byte(c.text))
			wantFaults(t, err, c.want...)
		})
	}
}

func TestDirectorManyFaultsAtOnce(t *testing.T) {
	_, err := config.ParseDirector("x.toml", []byte(`
colour = "red"
[director]
queues = 1000
log = "loud"
[connections]
max = 1
timeouts = { tcp = 900, udp = "0s" }
[[service]]
name = "web"
vip = ["198.51.100.80", "nonsense"]
protocol = "icmp"
port = [80, 70000]
  [[service.realserver]]
  address = "198.51.100.80"
  weight = -1
[[service]]
vip = "198.51.100.81"
port = 1
`))
	wantFaults(t, err,
		`director: queues: 1000 is out of range: want 0 (one per CPU) to 256`,
		`director: log: "loud" is unknown: want debug, info, warn or error`,
		`connections: max: 1 is out of range: want 1024 (fewer are no table to balance with) to 134217728 (2^27, `+
			`gigabytes of memory)`,
		`connections: timeouts: tcp: 900 is not a duration: write "900s"; want 1s to 744h (31 days)`,
		`connections: timeouts: udp: "0s" is out of range: want 1s to 744h (31 days)`,
		`service "web": vip: "nonsense" is not an address: want an IPv4 or IPv6 address such as "10.0.2.2" or `+
			`"2001:db8::2"`,
		`service "web": protocol: "icmp" is unknown: want tcp, udp or sctp`,
		`service "web": port: 70000 is out of range: want 0 (every port), 1 to 65535, a range "8000-8099" or an `+
			`array of them`,
		`service "web": realserver "198.51.100.80": weight: -1 is out of range: want 0 (drains it) to 65535`,
		`service[2]: name: missing: want 1 to 64 printable characters without whitespace`,
		`service[2]: protocol: missing: want tcp, udp or sctp`,
		`service "web": realserver "198.51.100.80": address: "198.51.100.80" is also a VIP of service "web": want `+
			`the realserver's own address`,
		`colour: unknown key: want director, connections, wireguard, service, tunnel, vrrp, notify, sync, `+
			`second_chance or bgp`,
	)
}

// These files look faulty and are legal.
func TestDirectorAccepts(t *testing.T) {
	for name, text := range map[string]string{
		"another port": goodService + "[[service]]\nname = \"b\"\nvip = \"198.51.100.80\"\nprotocol = " +
			"\"tcp\"\nport = [79, \"81-65535\"]",
		"another protocol": goodService + "[[service]]\nname = \"b\"\nvip = \"198.51.100.80\"\nprotocol = " +
			"\"udp\"\nport = 80",
		"another VIP": goodService + "[[service]]\nname = \"b\"\nvip = \"198.51.100.81\"\nprotocol = " +
			"\"tcp\"\nport = 80",
		"a drained realserver": goodService + "[[service.realserver]]\naddress = \"10.0.0.1\"\nweight = 0",
		"a shared realserver": goodService + "[[service.realserver]]\naddress = \"10.0.0.1\"\n[[service]]\nname = " +
			"\"b\"\nvip = \"198.51.100.81\"\n" +
			"protocol = \"tcp\"\nport = 80\n[[service.realserver]]\naddress = \"10.0.0.1\"",
		"inline tables": `service = [{ name = "web", vip = "198.51.100.80", protocol = "tcp", port = 80, ` +
			`realserver = [{ address = "10.0.0.1" }] }]`,
		"every port": strings.Replace(goodService, "port = 80", `port = ["1-65535"]`, 1),
		"least values": "[director]\ntun = \"a\"\nqueues = 1\n[connections]\nmax = 1024\ntimeouts = { tcp = " +
			"\"1s\" }\n" + goodService,
		"greatest values": "[director]\ntun = \"0123456789abcde\"\nqueues = 256\n[connections]\nmax = " +
			"134217728\ntimeouts = { tcp = \"744h\" }\n" + goodService,
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := config.ParseDirector("x.toml", []byte(text)); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestEveryScheduler: the file may name each scheduler that there is.
func TestEveryScheduler(t *testing.T) {
	for _, name := range balancer.Schedulers() {
		d, err := config.ParseDirector("x.toml", []byte(goodService+"scheduler = \""+name+"\"\n"))
		if err != nil || d.Services[0].Scheduler != name {
			t.Errorf("%s: %v", name, err)
		}
	}
}
