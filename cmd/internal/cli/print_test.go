package cli

import (
	"bytes"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vstun/cmd/internal/api"
	"vstun/encap/packet/drop"
	"vstun/encap/packet/stats"
)

func TestPrint(t *testing.T) {
	var tally stats.Tally
	tally.Drop(drop.NoService)
	st := api.DirectorStatus{Version: "1", Pid: 2, Uptime: 61.2, TUN: "vs0", Queues: 2,
		In:  api.Traffic{Packets: 3, Bytes: 100},
		Out: api.Traffic{Packets: 2, Bytes: 140}, Drops: api.Drops(&tally),
		Connections: api.Connections{Count: 5, Max: 1000, HalfOpen: 3, HalfOpenMax: 250, Evicted: 7},
		SendError:   "network is unreachable",
		Leaving: api.Leaving{Realservers: 2, Connections: 3, List: []api.LeavingRealserver{
			{Service: "web", Address: "10.0.11.9", Forward: "tun", Encap: "gre", Active: 2},
			{Service: "web", Address: "10.0.11.9", Forward: "nat", Active: 1}}},
		Services: []api.Service{{Name: "web", VIPs: []string{"198.51.100.80"}, Protocol: "tcp",
			Ports: []string{"80", "8000-8099"}, Scheduler: "wrr", Realservers: []api.Realserver{{Address: "10.0.11.2",
				Encap: "ipip", Weight: 3, Active: 4, Inactive: 1}}}},
		Announced: []api.Announced{{VIP: "198.51.100.80", Devices: []string{"eth0", "eth1"},
			Conflicts: []api.Conflict{{Device: "eth1", MAC: "02:00:00:00:00:09", Packets: 3, Last: 5}}}}}
	var out bytes.Buffer
	if err := PrintDirector(&out, &st); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"up 1m1s",
		"TCP 198.51.100.80:80,8000-8099 wrr (web), announced on eth0, eth1, CONFLICT\n",
		"198.51.100.80  on eth1", "by 02:00:00:00:00:09  3 packets  last 5s ago", "-> 10.0.11.2",
		"dropped: no_service", "network is unreachable",
		"not configured any more", "-> 10.0.11.9  web  Tunnel,gre  2 active",
		"-> 10.0.11.9  web  Masq        1 active", "3 of 250 connections"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in\n%s", want, &out)
		}
	}
	for line := range strings.Lines(out.String()) {
		if len(line) > 120 {
			t.Errorf("too wide for a terminal: %q", line)
		}
	}
	if strings.Contains(out.String(), "Upper") || strings.Contains(out.String(), "draining") {
		t.Errorf("columns without values:\n%s", &out)
	}
	out.Reset()
	if err := PrintRealserver(&out, &api.RealserverStatus{VIPs: []string{"198.51.100.80"}, OwnVIPs: true,
		Directors: []string{"10.0.2.2/32"}, Encap: []string{"ipip"}, MSS: 1440, Overruns: 9, TUN: "vs0",
		Answers: api.Traffic{Packets: 7, Bytes: 900}, Drops: map[string]uint64{"not_answer": 3},
		FastPath: api.FastPath{On: true, Devices: []string{"eth0", "eth1"}, Reason: "eth2: why",
			Taken: api.Traffic{Packets: 5, Bytes: 700}, Refused: map[string]uint64{"paths_full": 1}},
		SendError:           "no route to host",
		FromDirectors:       []api.Counted{{Address: "10.0.2.2", Packets: 5, Last: 61}},
		RefusedSources:      []api.Counted{{Address: "10.0.2.9", Packets: 6, Last: 0}},
		RefusedDestinations: []api.Counted{{Address: "198.51.100.81", Packets: 7, Last: 1}}}); err != nil ||
		!strings.Contains(out.String(), "MSS 1440") || !strings.Contains(out.String(), "overruns") ||
		!strings.Contains(out.String(), "answers by vs0       7 packets") || !strings.Contains(out.String(),
		"dropped: not_answer  3 packets") ||
		!strings.Contains(out.String(), "last send error: no route to host") {
		t.Errorf("%v %s", err, &out)
	}
	if text := out.String(); !strings.Contains(text, "VIPs 198.51.100.80 from directors 10.0.2.2/32\n") {
		t.Errorf("no directors in\n%s", text)
	}
	for _, line := range []string{"from director 10.0.2.2 5 packets last 1m1s ago",
		"fast path by eth0, eth1 5 packets 700 bytes", "fast path not everywhere: eth2: why",
		"fast path refused: paths_full 1 time",
		"not_director: from 10.0.2.9 6 packets last 0s ago",
		"inner_destination: for 198.51.100.81 7 packets last 1s ago"} {
		if !slices.ContainsFunc(slices.Collect(strings.Lines(out.String())),
			func(l string) bool { return strings.Join(strings.Fields(l), " ") == line }) {
			t.Errorf("no line %q in\n%s", line, &out)
		}
	}
	out.Reset()
	if err := PrintRealserver(&out, &api.RealserverStatus{Encap: []string{"ipip"}, VIPs: []string{"198.51.100.80"},
		Directors: []string{"10.0.2.2/32"}, FastPath: api.FastPath{Reason: "why"}}); err != nil ||
		!strings.Contains(out.String(), "\nfast path off: why\n") ||
		!strings.Contains(out.String(), "\nVIPs 198.51.100.80 (not owned) from directors 10.0.2.2/32\n") {
		t.Errorf("%v %s", err, &out)
	}
	out.Reset()
	refused := api.RealserverStatus{Configuration: api.Configuration{Error: "two\nfaults"},
		VIPs: []string{"198.51.100.80"}, OwnVIPs: true, MSS: 1460}
	if err := PrintRealserver(&out, &refused); err != nil ||
		!strings.Contains(out.String(), "the last reload failed") ||
		!strings.Contains(out.String(), "\n  two\n  faults\n") ||
		!strings.Contains(out.String(), "\nVIPs 198.51.100.80, without a tunnel\n") ||
		strings.Contains(out.String(), "MSS") || strings.Contains(out.String(), "fast path") {
		t.Errorf("%v %s", err, &out)
	}
}

// TestPrintSettings prints optional settings of services.
func TestPrintSettings(t *testing.T) {
	key := uint32(7)
	st := api.DirectorStatus{Services: []api.Service{
		{Name: "web", VIPs: []string{"198.51.100.80", "2001:db8::1"}, Protocol: "tcp", Ports: []string{"0"},
			Scheduler: "sh", SchedulerFlags: []string{"sh-port", "sh-fallback"}, Order: "address",
			Persistence: &api.Persistence{Timeout: 300, Netmask: 24, Netmask6: 64},
			Realservers: []api.Realserver{{Address: "10.0.11.2", Encap: "ipip",
				Upper: 100, Lower: 80, Active: 7},
				{Address: "2001:db8:11::2", Forward: "tun", Encap: "gre", EncapKey: &key, EncapChecksum: true,
					Weight: 1},
				{Address: "10.0.12.2", Forward: "dr", Weight: 1},
				{Address: "10.0.13.2", Port: 8080, Forward: "nat", Weight: 1},
				{Address: "2001:db8:13::2", Port: 8080, Forward: "nat", Weight: 1}}},
		{Name: "dns", VIPs: []string{"198.51.100.80"}, Protocol: "udp", Ports: []string{"53"}, Scheduler: "rr",
			OnePacket: true, Persistence: &api.Persistence{Timeout: 60, Netmask: 32, Netmask6: 128}},
	}}
	var out bytes.Buffer
	if err := PrintDirector(&out, &st); err != nil {
		t.Fatal(err)
	}
	_, got, _ := strings.Cut(out.String(), "\n\n")
	got, _, _ = strings.Cut(got, "\n\n")
	var lines []string
	for line := range strings.Lines(got) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	want := []string{
		"Prot Address:Port Scheduler Flags",
		"-> RemoteAddress Forward Weight Upper Lower ActiveConn InActConn Conns InPkts InBytes",
		"TCP 198.51.100.80:0 sh (sh-port,sh-fallback) order address persistent 300 netmask 24 netmask6 64 (web)",
		"TCP [2001:db8::1]:0 sh (sh-port,sh-fallback) order address persistent 300 netmask 24 netmask6 64 (web)",
		"-> 10.0.11.2 Tunnel,ipip 0 100 80 7 0 0 0 0 draining",
		"-> 2001:db8:11::2 Tunnel,gre,key=7,csum 1 0 0 0 0 0 0 0",
		"-> 10.0.12.2 Route 1 0 0 0 0 0 0 0",
		"-> 10.0.13.2:8080 Masq 1 0 0 0 0 0 0 0",
		"-> [2001:db8:13::2]:8080 Masq 1 0 0 0 0 0 0 0",
		"UDP 198.51.100.80:53 rr persistent 60 ops (dns)",
	}
	if strings.Join(lines, "\n") != strings.Join(want, "\n") {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
}

// TestPrintHealth prints services with checks.
func TestPrintHealth(t *testing.T) {
	st := api.DirectorStatus{Services: []api.Service{
		{Name: "web", VIPs: []string{"198.51.100.80"}, Protocol: "tcp", Ports: []string{"80"}, Scheduler: "rr",
			Health: "down", Quorum: 2, WeightUp: 1, Sorry: true,
			Realservers: []api.Realserver{{Address: "10.0.11.2", Encap: "ipip", Weight: 1, Health: "down",
				Check: &api.Check{Reason: "HTTP status 503, want 200-399"}},
				{Address: "10.0.12.2", Encap: "ipip", Weight: 1, Health: "up",
					Check: &api.Check{Reason: "HTTP status 200"}}, {Address: "10.0.13.2", Encap: "ipip", Weight: 1,
					Health: "unchecked"}}},
	}}
	var out bytes.Buffer
	if err := PrintDirector(&out, &st); err != nil {
		t.Fatal(err)
	}
	got := strings.Join(strings.Fields(out.String()), " ")
	for _, want := range []string{"RemoteAddress Forward Weight Health ActiveConn",
		"rr (web), DOWN: weight 1 is up, quorum 2, sorry server in use -> 10.0.11.2 Tunnel,ipip 1 down 0 0 0 0 0 " +
			"HTTP status 503, want 200-399",
		"10.0.12.2 Tunnel,ipip 1 up 0 0 0 0 0 ->", "10.0.13.2 Tunnel,ipip 1 unchecked 0"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in\n%s", want, &out)
		}
	}
}

// TestStatusCommand prints a director's status, refuses to print it as a realserver's, and writes a profile.
func TestStatusCommand(t *testing.T) {
	at := listen(t, func(s *api.Server) {
		s.Handle("GET /status", api.JSON(func(url.Values) (any, error) {
			return api.DirectorStatus{Program: "director", TUN: "vs7"}, nil
		}))
	})
	socket, _ := at.Path()
	out, err := execute(StatusCommand("", "director", at, PrintDirector))
	if err != nil || !strings.Contains(out, "vs7") {
		t.Errorf("%v: %s", err, out)
	}
	out, err = execute(StatusCommand("", "director", at, PrintDirector), "--json", "--socket", socket)
	if err != nil || !strings.Contains(out, `"tun": "vs7"`) {
		t.Errorf("%v: %s", err, out)
	}
	_, err = execute(StatusCommand("", "realserver", at, PrintRealserver))
	if err == nil || !strings.Contains(err.Error(), "another program") {
		t.Errorf("a director's socket, for a realserver: %v", err)
	}
	file := filepath.Join(t.TempDir(), "p")
	if _, err := execute(ProfileCommand(at), "goroutine", "-o", file); err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(file); err != nil || len(text) < 100 {
		t.Errorf("%d bytes of profile, %v", len(text), err)
	}
	if _, err := execute(ProfileCommand(at), "nonsense"); err == nil {
		t.Error("an unknown kind of profile is accepted")
	}
}

// TestPrintNames prints names, and what is refused of their answers.
func TestPrintNames(t *testing.T) {
	age := 12.0
	st := api.DirectorStatus{Services: []api.Service{{Name: "web", VIPs: []string{"198.51.100.80"}, Protocol: "tcp",
		Ports: []string{"80"}, Scheduler: "rr", Realservers: []api.Realserver{
			{Address: "10.0.11.2", Forward: "dr", Weight: 3, Host: "web1.test"},
			{Address: "10.0.12.2", Forward: "dr", Weight: 3, Host: "web2.test", Standby: true}}}},
		Names: []api.Name{
			{Name: "_http._tcp.test", Type: "srv", Services: []string{"web", "shop"}, Answered: &age, Cut: 4,
				Targets: []api.NameTarget{{Host: "web1.test", Addresses: []string{"10.0.11.2", "127.0.0.1"}}},
				Refused: []api.NameRefused{{Service: "web", Address: "127.0.0.1", Reason: "it is a loopback address"}}},
			{Name: "a.test", Type: "address", Services: []string{"web"}, Answered: &age, Error: "SERVFAIL", Failing: 60,
				Targets: []api.NameTarget{{Addresses: []string{"10.0.11.2"}}}},
			{Name: "b.test", Type: "address", Services: []string{"web"}, Error: "SERVFAIL", Failing: 60},
		}}
	var out bytes.Buffer
	if err := PrintDirector(&out, &st); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(out.String()) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	for _, want := range []string{"-> 10.0.11.2 Route 3 0 0 0 0 0 of web1.test",
		"-> 10.0.12.2 Route 3 0 0 0 0 0 standby of web2.test",
		"name _http._tcp.test srv web, shop 2 addresses, 4 left out, answered 12s ago",
		"refused: 127.0.0.1 web it is a loopback address",
		"name a.test address web 1 address, answered 12s ago, FAILS for 1m0s: SERVFAIL",
		"name b.test address web no answer yet, FAILS for 1m0s: SERVFAIL"} {
		if !slices.Contains(lines, want) {
			t.Errorf("no line %q in\n%s", want, strings.Join(lines, "\n"))
		}
	}
}
