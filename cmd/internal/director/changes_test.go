package director

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
)

// running is a configuration to change.
func running() *config.Director {
	rs := func(last byte) config.RealserverRef {
		return config.RealserverRef{Address: netip.AddrFrom4([4]byte{10, 0, 11, last}),
			Tunnel: config.Tunnel{Encap: "ipip"}, Weight: 1}
	}
	vip := netip.MustParseAddr("198.51.100.80")
	return &config.Director{TUN: "vs0", Services: []config.Service{
		{Name: "web", VIPs: []netip.Addr{vip}, Protocol: "tcp", Ports: []config.PortRange{{First: 80, Last: 80}},
			Scheduler: "wlc", EncapPort: 6080,
			Realservers: []config.RealserverRef{rs(1), rs(2)}},
		{Name: "dns", VIPs: []netip.Addr{vip}, Protocol: "udp", Ports: []config.PortRange{{First: 53, Last: 53}},
			Scheduler: "rr", EncapPort: 6080},
	}}
}

func TestChanges(t *testing.T) {
	other := netip.MustParseAddr("198.51.100.81")
	for _, c := range []struct {
		name   string
		change func(d *config.Director, web *config.Service)
		want   []string
	}{
		{"nothing", func(*config.Director, *config.Service) {}, nil},
		{"source", func(d *config.Director, _ *config.Service) { d.Source.V4 = netip.MustParseAddr("10.0.2.2") },
			[]string{"source of the route -> 10.0.2.2"}},
		{"sources", func(d *config.Director, _ *config.Service) {
			d.Source = config.Sources{V4: netip.MustParseAddr("10.0.2.2"), V6: netip.MustParseAddr("2001:db8:2::2")}
		}, []string{"source of the route -> 10.0.2.2,2001:db8:2::2"}},
		{"tunnels", func(_ *config.Director, web *config.Service) {
			web.Realservers[0].Tunnel = config.Tunnel{Encap: "gre", Key: 7, HasKey: true, Checksum: true}
		}, []string{
			`service "web": realserver 10.0.11.1: encap ipip -> gre`,
			`service "web": realserver 10.0.11.1: encap_key none -> 7`,
			`service "web": realserver 10.0.11.1: encap_checksum false -> true`,
		}},
		{"service removed", func(d *config.Director, _ *config.Service) { d.Services = d.Services[1:] },
			[]string{`service "web": removed`}},
		{"service added", func(d *config.Director, web *config.Service) {
			more := *web
			more.Name, more.VIPs, more.Ports = "more", []netip.Addr{other}, []config.PortRange{{First: 80, Last: 80},
				{First: 8000, Last: 8099}}
			d.Services = append(d.Services, more)
		}, []string{`service "more": added: tcp 198.51.100.81 port 80,8000-8099, scheduler wlc, 2 realservers`}},
		{"service by another name", func(_ *config.Director, web *config.Service) { web.Name = "www" }, []string{
			`service "www": added: tcp 198.51.100.80 port 80, scheduler wlc, 2 realservers`,
			`service "web": removed`,
		}},
		{"every key", func(_ *config.Director, web *config.Service) {
			web.VIPs = append(web.VIPs, other)
			web.Protocol, web.Ports, web.Scheduler = "udp", []config.PortRange{{}}, "sh"
			web.Flags, web.ByAddress = config.SchedulerFlags{Port: true, Fallback: true}, true
			web.Persistence = config.Persistence{Timeout: 5 * time.Minute, Netmask: 24, Netmask6: 128}
			web.OnePacket, web.EncapPort = true, 7000
		}, []string{
			`service "web": vip 198.51.100.80 -> 198.51.100.80,198.51.100.81`,
			`service "web": protocol tcp -> udp`,
			`service "web": port 80 -> 0`,
			`service "web": scheduler wlc -> sh`,
			`service "web": scheduler_flags none -> sh-port,sh-fallback`,
			`service "web": order file -> address`,
			`service "web": persistence none -> 5m0s netmask 24 netmask6 128`,
			`service "web": one_packet false -> true`,
			`service "web": encap_port 6080 -> 7000`,
		}},
		{"realservers", func(_ *config.Director, web *config.Service) {
			web.Realservers = web.Realservers[1:]
			web.Realservers[0].Weight, web.Realservers[0].Upper, web.Realservers[0].Lower = 0, 10, 5
			web.Realservers[0].Encap = "gue"
			web.Realservers = append(web.Realservers, config.RealserverRef{Address: netip.MustParseAddr("10.0.11.3"),
				Weight: 7})
		}, []string{
			`service "web": realserver 10.0.11.2: weight 1 -> 0`,
			`service "web": realserver 10.0.11.2: upper 0 -> 10`,
			`service "web": realserver 10.0.11.2: lower 0 -> 5`,
			`service "web": realserver 10.0.11.2: encap ipip -> gue`,
			`service "web": realserver 10.0.11.3: added: weight 7`,
			`service "web": realserver 10.0.11.1: removed`,
		}},
		{"names", func(_ *config.Director, web *config.Service) {
			web.Named = []config.RealserverRef{{Host: "a.test", Weight: 2}, {Host: "b.test", Port: 8080, Weight: 1}}
			web.Resolve = config.Resolve{SRV: "_http._tcp.test", Interval: time.Minute, Family: config.FamilyAny}
		}, []string{
			`service "web": resolve: srv none -> _http._tcp.test`,
			`service "web": realserver a.test: added: weight 2`,
			`service "web": realserver b.test:8080: added: weight 1`,
		}},
		{"on_failure of a service", func(_ *config.Director, web *config.Service) {
			web.DrainOnFailure, web.Realservers[0].DrainOnFailure, web.Realservers[1].DrainOnFailure = true, true, true
		}, []string{`service "web": on_failure remove -> drain`}},
		{"on_failure of a realserver", func(_ *config.Director,
			web *config.Service) {
			web.Realservers[1].DrainOnFailure = true
		}, []string{
			`service "web": realserver 10.0.11.2: on_failure remove -> drain`}},
		{"a check of bytes", func(_ *config.Director, web *config.Service) {
			web.Realservers[0].Check = &config.Check{Type: "udp", SendHex: "00", ExpectHex: "?1"}
		}, []string{`service "web": realserver 10.0.11.1: check added: udp, via tunnel`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			is := running()
			c.change(is, &is.Services[0])
			if diff := cmp.Diff(c.want, texts(changes(running(), is))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// texts is the changes as people read them.
func texts(changes []api.Change) (all []string) {
	for _, c := range changes {
		all = append(all, c.Text)
	}
	return all
}

// TestChangesAsJSON: each change is an object with the values' own types.
func TestChangesAsJSON(t *testing.T) {
	is := running()
	web := &is.Services[0]
	web.Ports = []config.PortRange{{First: 80, Last: 80}, {First: 8000, Last: 8099}}
	web.OnePacket = true
	web.Check = &config.Check{Type: "tcp", Interval: time.Second}
	web.Realservers[0].Weight = 5
	web.Realservers[0].Tunnel = config.Tunnel{Encap: "gre", Key: 4294967295, HasKey: true}
	web.Realservers[1].Address = netip.MustParseAddr("10.0.11.3")
	is.Services = is.Services[:1]
	is.Notify.Webhook = "https://hooks.example.com/secret"
	var got []string
	for _, c := range changes(running(), is) {
		c.Text = ""
		line, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, strings.TrimSuffix(string(line), `,"text":""}`))
	}
	want := []string{
		`{"key":"notify.webhook","old":null,"new":"https://hooks.example.com"`,
		`{"service":"web","key":"port","old":[80],"new":[80,"8000-8099"]`,
		`{"service":"web","key":"one_packet","old":false,"new":true`,
		`{"service":"web","key":"check","old":null,"new":"tcp, via tunnel"`,
		`{"service":"web","realserver":"10.0.11.1","key":"weight","old":1,"new":5`,
		`{"service":"web","realserver":"10.0.11.1","key":"encap","old":"ipip","new":"gre"`,
		`{"service":"web","realserver":"10.0.11.1","key":"encap_key","old":null,"new":4294967295`,
		`{"service":"web","realserver":"10.0.11.3","old":null,"new":"weight 1"`,
		`{"service":"web","realserver":"10.0.11.2","old":"10.0.11.2","new":null`,
		`{"service":"dns","old":"dns","new":null`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestChangesOfChecks: each key that only some types have, with its old and new value. For a file, its contents count.
func TestChangesOfChecks(t *testing.T) {
	for name, c := range map[string]struct {
		was, is config.Check
		want    []string
	}{
		"bytes": {config.Check{Type: "udp", Send: "x"}, config.Check{Type: "udp", SendHex: "00 ff", ExpectHex: "?1"},
			[]string{
				`check: send "x" -> none`, `check: send_hex none -> 00 ff`, `check: expect_hex none -> ?1`}},
		"records": {config.Check{Type: "dns", Records: 1}, config.Check{Type: "dns"},
			[]string{`check: records 1 -> 0`}},
		"file": {config.Check{Type: "file", File: "/a", Factor: 1}, config.Check{Type: "file", File: "/b", Factor: 0,
			Reverse: true}, []string{
			`check: path /a -> /b`, `check: factor 1 -> 0`, `check: reverse false -> true`}},
		"certificate": {config.Check{Type: "https"}, config.Check{Type: "https", CertFile: "/c", Cert: "C",
			KeyFile: "/k", Key: "K"}, []string{
			`check: cert none -> /c`, `check: key none -> /k`}},
		"certificate renewed": {config.Check{Type: "https", CertFile: "/c", Cert: "C", KeyFile: "/k", Key: "K"},
			config.Check{Type: "https", CertFile: "/c", Cert: "D", KeyFile: "/k", Key: "L"}, []string{
				`check: cert /c -> /c with another certificate`, `check: key /k -> /k with another key`}},
	} {
		var got []api.Change
		difference{list: &got}.check(&c.was, &c.is)
		if diff := cmp.Diff(c.want, texts(got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// TestChangesOfNames: changes of how names are resolved, and of realservers with names.
func TestChangesOfNames(t *testing.T) {
	cfg := func(change func(web *config.Service)) *config.Director {
		c := running()
		web := &c.Services[0]
		web.Named = []config.RealserverRef{{Host: "a.test", Weight: 2}, {Host: "b.test", Weight: 1}}
		web.Resolve = config.Resolve{SRV: "_http._tcp.test", Interval: time.Minute, Family: config.FamilyAny}
		web.Found = config.RealserverRef{Host: "_http._tcp.test", Tunnel: config.Tunnel{Encap: "ipip"}}
		change(web)
		return c
	}
	got := texts(changes(cfg(func(*config.Service) {}), cfg(func(web *config.Service) {
		web.Named = web.Named[:1]
		web.Named[0].Weight = 7
		web.Resolve = config.Resolve{SRV: "_https._tcp.test", Interval: time.Second, Family: config.FamilyV6,
			Server: netip.MustParseAddrPort("10.0.2.53:53")}
		web.Found.Encap = "gre"
	})))
	want := []string{
		`service "web": resolve: srv _http._tcp.test -> _https._tcp.test`,
		`service "web": resolve: interval 1m0s -> 1s`,
		`service "web": resolve: server of resolv.conf -> 10.0.2.53:53`,
		`service "web": resolve: family any -> ipv6`,
		`service "web": encap ipip -> gre`,
		`service "web": realserver a.test: weight 2 -> 7`,
		`service "web": realserver b.test: removed`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
