package config_test

import (
	"net/netip"
	"strings"
	"testing"

	"vstun/balancer/health"
	"vstun/balancer/method"
	"vstun/cmd/internal/config"
)

// TestForward: a realserver has its service's forwarding method unless it names another one. With nat it may have a
// port, and its address may be there several times.
func TestForward(t *testing.T) {
	d, err := config.ParseDirector("x.toml", []byte(goodService+`forward = "nat"
sorry_server = "127.0.0.1:8081"
encap = "gre"
encap_key = 7
realserver = [
  { address = "10.0.0.1" },
  { address = "10.0.0.1", port = 8080 },
  { address = "10.0.0.3", forward = "tun" },
  { address = "10.0.0.2", forward = "dr" },
  { address = "127.0.0.1", port = 80 },
]
[[service]]
name = "b"
vip = "2001:db8::81"
protocol = "tcp"
port = [80, "8000-8099"]
realserver = [{ address = "2001:db8:11::1", forward = "nat" }]
sorry_server = "2001:db8:99::1"
sorry_forward = "dr"
[[service]]
name = "c"
vip = "198.51.100.82"
protocol = "tcp"
port = 80
forward = "nat"
sorry_server = "10.0.0.1:80"
realserver = [{ address = "10.0.0.1" }]
`))
	if err != nil {
		t.Fatal(err)
	}
	gre := config.Tunnel{Encap: "gre", Key: 7, HasKey: true}
	for i, want := range []config.RealserverRef{
		{Address: netip.MustParseAddr("10.0.0.1"), Forward: method.NAT, Weight: 1},
		{Address: netip.MustParseAddr("10.0.0.1"), Forward: method.NAT, Port: 8080, Weight: 1},
		{Address: netip.MustParseAddr("10.0.0.3"), Tunnel: gre, Weight: 1},
		{Address: netip.MustParseAddr("10.0.0.2"), Forward: method.DR, Weight: 1},
		{Address: netip.MustParseAddr("127.0.0.1"), Forward: method.NAT, Port: 80, Weight: 1},
	} {
		if got := d.Services[0].Realservers[i]; got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
	for i, want := range []config.RealserverRef{
		{Address: netip.MustParseAddr("127.0.0.1"), Forward: method.NAT, Port: 8081, Weight: 1},
		{Address: netip.MustParseAddr("2001:db8:99::1"), Forward: method.DR, Weight: 1},
		{Address: netip.MustParseAddr("10.0.0.1"), Forward: method.NAT, Weight: 1}, // the realserver
	} {
		if got := d.Services[i].Sorry; got != want {
			t.Errorf("sorry server %+v, want %+v", got, want)
		}
	}
	if got := d.Services[1].Realservers[0].Forward; got != method.NAT || d.Services[1].Forward != method.TUN {
		t.Errorf("the realserver of b has the method %v, its service %v", got, d.Services[1].Forward)
	}
}

// TestForwardFaults: combinations that cannot work are refused.
func TestForwardFaults(t *testing.T) {
	const only = ", and this realserver's method is "
	web := func(text string) string { return goodService + text }
	realserver := func(text string) string { return goodService + "[[service.realserver]]\n" + text }
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"unknown", web(`forward = "masq"`), []string{
			`service "web": forward: "masq" is unknown: want tun, dr or nat`}},
		{"port of tun", realserver("address = \"10.0.0.1\"\nport = 8080"), []string{
			`service "web": realserver "10.0.0.1:8080": port: only nat changes the port of packets, and this ` +
				`realserver's method is tun: leave the port out, or use nat`}},
		{"port of dr", realserver("address = \"10.0.0.1\"\nforward = \"dr\"\nport = 80"), []string{
			`service "web": realserver "10.0.0.1:80": port: only nat changes the port of packets, and this ` +
				`realserver's method is dr: leave the port out, or use nat`}},
		{"port out of range", realserver("address = \"10.0.0.1\"\nforward = \"nat\"\nport = 0"), []string{
			`service "web": realserver "10.0.0.1": port: 0 is out of range: want 1 to 65535`}},
		{"port of several", strings.Replace(realserver("address = \"10.0.0.1\"\nforward = \"nat\"\nport = 81"),
			"port = 80", "port = [80, 81]", 1), []string{`service "web": realserver "10.0.0.1:81": port: one port ` +
			`cannot stand for all of the service's ports: leave the port out, or write a service for each port`}},
		{"port of every port", strings.Replace(realserver("address = \"10.0.0.1\"\nforward = \"nat\"\nport = 81"),
			"port = 80", "port = 0", 1), []string{`service "web": realserver "10.0.0.1:81": port: one port cannot ` +
			`stand for all of the service's ports: leave the port out, or write a service for each port`}},
		{"twice", realserver("address = \"10.0.0.1\"\nforward = \"nat\"\nport = 81\n[[service.realserver]]\n" +
			"address = \"10.0.0.1\"\nforward = \"nat\"\nport = 81"), []string{`service "web": realserver[2]: ` +
			`address: "10.0.0.1:81" is there twice: want a realserver once in a service`}},
		{"twice, once without port", realserver("address = \"10.0.0.1\"\nforward = \"nat\"\nport = 80\n" +
			"[[service.realserver]]\naddress = \"10.0.0.1\""), []string{`service "web": realserver "10.0.0.1": ` +
			`address: "10.0.0.1" is there twice: want a realserver once in a service`}},
		{"twice, with other methods", web("forward = \"nat\"\nrealserver = [{ address = \"10.0.0.1\" }, { address = " +
			"\"10.0.0.1\", forward = \"tun\" }]"), []string{`service "web": realserver[2]: address: "10.0.0.1" is ` +
			`there twice: want a realserver once in a service`}},
		{"tunnel of nat", realserver("address = \"10.0.0.1\"\nforward = \"nat\"\nencap = \"gre\"\nencap_key = 1\n" +
			"encap_checksum = true"), []string{
			`service "web": realserver "10.0.0.1": encap: nat has no tunnel: leave it out, or use tun`,
			`service "web": realserver "10.0.0.1": encap_key: nat has no tunnel: leave it out, or use tun`,
			`service "web": realserver "10.0.0.1": encap_checksum: nat has no tunnel: leave it out, or use tun`}},
		{"tunnel of a dr service", web("forward = \"dr\"\nencap = \"gue\"\nencap_port = 6081\nrealserver = [{ " +
			"address = \"10.0.0.1\" }]"), []string{
			`service "web": encap: no realserver of this service has a tunnel, as none has the method tun: leave ` +
				`it out`,
			`service "web": encap_port: no realserver of this service has a tunnel, as none has the method tun: ` +
				`leave it out`}},
		{"families", web("forward = \"dr\"\nrealserver = [{ address = \"2001:db8::1\" }, { address = " +
			"\"2001:db8::2\", forward = \"tun\" }]\nsorry_server = \"2001:db8::3\""), []string{
			`service "web": sorry_server: "2001:db8::3" is an IPv6 address and the VIP "198.51.100.80" is not, and ` +
				`dr changes no family: want tun, or a service of each family`,
			`service "web": realserver "2001:db8::1": address: "2001:db8::1" is an IPv6 address and the VIP ` +
				`"198.51.100.80" is not, and dr changes no family: want tun, or a service of each family`}},
		{"loopback of dr", realserver("address = \"127.0.0.1\"\nforward = \"dr\""), []string{
			`service "web": realserver "127.0.0.1": address: "127.0.0.1" is the director's own host, which only nat ` +
				`reaches: set forward = "nat"`}},
		{"loopback of IPv6", strings.Replace(realserver("address = \"::1\"\nforward = \"nat\""), "198.51.100.80",
			"2001:db8::80", 1), []string{`service "web": realserver "::1": address: "::1" gets no packet from a ` +
			`device: want another address of the director's host`}},
		{"nat of all by a TAP device", "[director]\ndevice = \"tap\"\n" + web("forward = \"nat\"\nrealserver = [{ "+
			"address = \"10.0.0.1\" }, { address = \"10.0.0.2\" }]"), []string{`service "web": forward: nat does not ` +
			`work with device = "tap", by which packets pass the host's kernel: want tun or dr, or device = "tun"`}},
		{"sorry server's port of tun", web(`sorry_server = "10.0.0.9:80"`), []string{
			`service "web": sorry_server: only nat changes the port of packets` + only +
				`tun: leave the port out, or use nat`}},
		{"sorry server on this host by tun", web(`sorry_server = "127.0.0.1:8080"`), []string{
			`service "web": sorry_server: "127.0.0.1:8080" is the director's own host, which only nat reaches: ` +
				`set sorry_forward = "nat"`}},
		{"sorry server's port 0", web("sorry_server = \"10.0.0.9:0\"\nsorry_forward = \"nat\""), []string{
			`service "web": sorry_server: "10.0.0.9:0" has port 0: want 1 to 65535`}},
		{"sorry server's method of none", web(`sorry_forward = "nat"`), []string{
			`service "web": sorry_forward: there is no sorry_server: leave it out, or name one`}},
		{"check via tunnel", realserver("address = \"10.0.0.1\"\nforward = \"nat\"\ncheck = { type = \"tcp\", via = " +
			"\"tunnel\" }"), []string{`service "web": realserver "10.0.0.1": check: via: a realserver of nat is ` +
			`checked at its own address and port: want direct, or leave it out`}},
		{"check of a service via tunnel", web("forward = \"nat\"\ncheck = { type = \"tcp\", via = \"tunnel\" }\n" +
			"realserver = [{ address = \"10.0.0.1\" }]"), []string{`service "web": check: via: a realserver of nat ` +
			`is checked at its own address and port: want direct, or leave it out`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := config.ParseDirector("x.toml", []byte(c.text))
			wantFaults(t, err, c.want...)
		})
	}
}

// TestCheckOfNAT: a realserver of nat is checked at its own address and port; the service's other ones by the VIP. A
// request names the host that clients name.
func TestCheckOfNAT(t *testing.T) {
	d, err := config.ParseDirector("x.toml", []byte(goodService+`check = { type = "http" }
realserver = [
  { address = "10.0.0.1", forward = "nat", port = 8080 },
  { address = "10.0.0.2", forward = "nat" },
  { address = "10.0.0.3" },
  { address = "10.0.0.4", forward = "nat", port = 8080, check = { port = 9000 } },
  { address = "10.0.0.5", forward = "nat", port = 8080, check = { fall = 1 } },
]
`))
	if err != nil {
		t.Fatal(err)
	}
	s := &d.Services[0]
	for i, want := range []struct {
		direct bool
		port   uint16
		host   string
	}{{true, 8080, "198.51.100.80"}, {true, 80, "198.51.100.80"}, {false, 80, ""},
		{true, 9000, "198.51.100.80:9000"}, {true, 8080, "198.51.100.80"}} {
		r := &s.Realservers[i]
		host := r.Check.Probe(s, r).(health.HTTP).Host
		if r.CheckedDirectly() != want.direct || r.CheckPort() != want.port || host != want.host {
			t.Errorf("realserver %v: direct %v, port %d, host %q; want %+v", r.Address, r.CheckedDirectly(),
				r.CheckPort(), host, want)
		}
	}
}
