package config_test

import (
	"strings"
	"testing"
	"time"

	"vstun/cmd/internal/config"
)

const udpService = `
[[service]]
name = "dns"
vip = "198.51.100.80"
protocol = "udp"
port = 53
`

// TestSchedulingFaults: each of these faults gives exactly these lines.
func TestSchedulingFaults(t *testing.T) {
	const (
		wantFlags = `want sh-port, sh-fallback, mh-port or mh-fallback`
		wantTime  = `want 1s to 744h (31 days)`
		wantMask  = `want 1 to 32 (netmask6 is for IPv6)`
		wantBound = `want 0 (none) to 2147483647 connections`
	)
	at := func(line string) string { return `service "web": ` + line }
	rs := func(line string) string { return `service "web": realserver "10.0.0.1": ` + line }
	realserver := func(lines string) string { return "[[service.realserver]]\naddress = \"10.0.0.1\"\n" + lines }
	for _, c := range []struct {
		name, lines string
		want        []string
	}{
		{"flags type", `scheduler_flags = "sh-port"`, []string{at(`scheduler_flags: "sh-port" is of the wrong type: ` +
			`want an array of sh-port, sh-fallback, mh-port or mh-fallback`)}},
		{"flag type", "scheduler = \"sh\"\nscheduler_flags = [1]", []string{at(`scheduler_flags: 1 is of the wrong ` +
			`type: ` + wantFlags)}},
		{"flag unknown", "scheduler = \"sh\"\nscheduler_flags = [\"port\"]",
			[]string{at(`scheduler_flags: "port" is unknown: ` + wantFlags)}},
		{"flag twice", "scheduler = \"sh\"\nscheduler_flags = [\"sh-port\", \"sh-port\"]",
			[]string{at(`scheduler_flags: "sh-port" is there twice: want each once`)}},
		{"order unknown", "order = \"name\"", []string{at(`order: "name" is unknown: want file or address`)}},
		{"order type", "order = 1", []string{at(`order: 1 is of the wrong type: want file or address`)}},
		{"flag of a faulty scheduler", "scheduler = \"best\"\nscheduler_flags = [\"mh-port\"]",
			[]string{at(`scheduler: "best" is unknown: want ` + schedulers)}},

		{"persistence type", "persistence = true", []string{at(`persistence: true is of the wrong type: want a ` +
			`table such as { timeout = "5m", netmask = 32 }`)}},
		{"persistence unknown", "persistence = { time = \"5m\" }", []string{at(`persistence: time: unknown key: ` +
			`want timeout, netmask or netmask6`)}},
		{"persistence low", "persistence = { timeout = \"0s\", netmask = 0, netmask6 = 0 }", []string{
			at(`persistence: timeout: "0s" is out of range: ` + wantTime),
			at(`persistence: netmask: 0 is out of range: ` + wantMask),
			at(`persistence: netmask6: 0 is out of range: want 1 to 128`),
		}},
		{"persistence high", "persistence = { timeout = \"745h\", netmask = 33, netmask6 = 129 }", []string{
			at(`persistence: timeout: "745h" is out of range: ` + wantTime),
			at(`persistence: netmask: 33 is out of range: ` + wantMask),
			at(`persistence: netmask6: 129 is out of range: want 1 to 128`),
		}},
		{"persistence types", "persistence = { timeout = 300, netmask = \"255.255.255.0\" }", []string{
			at(`persistence: timeout: 300 is not a duration: write "300s"; ` + wantTime),
			at(`persistence: netmask: "255.255.255.0" is of the wrong type: ` + wantMask),
		}},

		{"one_packet TCP", "one_packet = true", []string{at(`one_packet: true is for udp only, and this service's ` +
			`protocol is tcp: want false`)}},
		{"one_packet type", "one_packet = 1", []string{at(`one_packet: 1 is of the wrong type: want true or false`)}},

		{"lower above upper", realserver("upper = 5\nlower = 6"), []string{rs(`lower: 6 is more than upper, 5: want ` +
			`at most that`)}},
		{"lower alone", realserver("lower = 6"), []string{rs(`lower: 6 has no meaning without upper: set upper, or ` +
			`leave lower out`)}},
		{"lower, upper 0", realserver("upper = 0\nlower = 6"), []string{rs(`lower: 6 has no meaning without upper: ` +
			`set upper, or leave lower out`)}},
		{"thresholds low", realserver("upper = -1\nlower = 6"),
			[]string{rs(`upper: -1 is out of range: ` + wantBound)}},
		{"thresholds high", realserver("upper = 2147483648\nlower = 2147483648"), []string{
			rs(`upper: 2147483648 is out of range: ` + wantBound),
			rs(`lower: 2147483648 is out of range: ` + wantBound),
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := config.ParseDirector("x.toml", []byte(goodService+c.lines+"\n"))
			wantFaults(t, err, c.want...)
		})
	}
}

func TestEveryPort(t *testing.T) {
	all := strings.Replace(goodService, "port = 80", "port = 0", 1)
	other := strings.Replace(all, `"web"`, `"other"`, 1)
	http := strings.Replace(goodService, `"web"`, `"http"`, 1)
	if _, err := config.ParseDirector("x.toml", []byte(all+http)); err != nil {
		t.Errorf("a port of every port: %v", err)
	}
	_, err := config.ParseDirector("x.toml", []byte(all+other))
	wantFaults(t, err, `service "other": port: 0 of tcp "198.51.100.80" belongs to service "web" (port 0): want a `+
		`VIP, protocol and port in one service only`)
	for port, want := range map[string]string{
		"[0, 80]": `service "web": port: 0 is every port, and stands among others: want it alone`,
		"[0, 0]":  `service "web": port: 0 is every port, and stands among others: want it alone`,
		`"0-0"`: `service "web": port: "0-0" is out of range: want 0 (every port), 1 to 65535, a range ` +
			`"8000-8099" or an array of them`,
	} {
		_, err := config.ParseDirector("x.toml", []byte(strings.Replace(goodService, "port = 80", "port = "+port, 1)))
		wantFaults(t, err, want)
	}
}

func TestSchedulingAccepts(t *testing.T) {
	for name, c := range map[string]struct {
		text  string
		right func(s config.Service) bool
	}{
		"one packet, persistent": {udpService + "one_packet = true\npersistence = { timeout = \"1s\", netmask = 1, " +
			"netmask6 = 1 }", func(s config.Service) bool {
			return s.OnePacket && s.Persistence == config.Persistence{Timeout: time.Second, Netmask: 1, Netmask6: 1}
		}},
		"longest persistence": {goodService + "persistence = { timeout = \"744h\" }", func(s config.Service) bool {
			return s.Persistence == config.Persistence{Timeout: 744 * time.Hour, Netmask: 32, Netmask6: 128}
		}},
		"one flag": {goodService + "scheduler = \"mh\"\nscheduler_flags = [\"mh-fallback\"]",
			func(s config.Service) bool {
				return s.Flags == config.SchedulerFlags{Fallback: true}
			}},
		"order by address": {goodService + "scheduler = \"sh\"\norder = \"address\"",
			func(s config.Service) bool { return s.ByAddress }},
		"order of the file": {goodService + "scheduler = \"sh\"\norder = \"file\"",
			func(s config.Service) bool { return !s.ByAddress }},
		"thresholds": {goodService + "[[service.realserver]]\naddress = \"10.0.0.1\"\nupper = 7\nlower = " +
			"7\n[[service.realserver]]\naddress = \"10.0.0.2\"\nupper = 2147483647",
			func(s config.Service) bool {
				return s.Realservers[0].Upper == 7 && s.Realservers[0].Lower == 7 &&
					s.Realservers[1].Upper == 1<<31-1 && s.Realservers[1].Lower == 0
			}},
		"SCTP": {strings.Replace(goodService, "tcp", "sctp", 1),
			func(s config.Service) bool { return s.Protocol == "sctp" }},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := config.ParseDirector("x.toml", []byte(c.text))
			if err != nil {
				t.Fatal(err)
			}
			if !c.right(d.Services[0]) {
				t.Errorf("%+v", d.Services[0])
			}
		})
	}
}
