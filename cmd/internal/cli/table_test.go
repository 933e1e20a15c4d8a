package cli

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"vstun/cmd/internal/api"
)

// wide is services with long values.
func wide() []api.Service {
	key, configured := uint32(4294967295), 65535
	return []api.Service{{Name: "a-service-with-a-long-name", VIPs: []string{"2001:db8:1111:2222:3333:4444:5555:6666"},
		Protocol: "tcp", Ports: []string{"80", "443", "8000-8099", "9000-9999"},
		Scheduler: "sh", SchedulerFlags: []string{"sh-port", "sh-fallback"},
		Persistence: &api.Persistence{Timeout: 300, Netmask: 24, Netmask6: 64},
		Realservers: []api.Realserver{
			{Address: "2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff", Encap: "gre", EncapKey: &key, EncapChecksum: true,
				Weight: 0, Configured: &configured, Upper: 1_000_000, Lower: 900_000,
				Active: 123_456_789, Inactive: 99_999, Connections: 1 << 62,
				Forwarded: api.Traffic{Packets: 1 << 60, Bytes: 1<<64 - 1}},
			{Address: "10.0.12.2", Encap: "ipip", Weight: 1}}}}
}

// TestTablesFit: no line of status is wider than a terminal of 80 columns, and each realserver has a line. Without a
// terminal the table is complete.
func TestTablesFit(t *testing.T) {
	narrow := []api.Service{{Name: "web", VIPs: []string{"198.51.100.80"}, Protocol: "tcp", Ports: []string{"80"},
		Scheduler: "wlc", Realservers: []api.Realserver{
			{Address: "10.0.11.2", Encap: "ipip", Weight: 1, Active: 1234, Inactive: 56789, Connections: 12_345_678,
				Forwarded: api.Traffic{Packets: 123_456_789, Bytes: 12_345_678_901}}}}}
	for _, services := range [][]api.Service{narrow, wide()} {
		for _, width := range []int{80, 100, 132} {
			var out bytes.Buffer
			printServices(&out, services, nil, width)
			for line := range strings.Lines(out.String()) {
				if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > width {
					t.Errorf("in %d columns there is a line of %d: %s", width, n, line)
				}
			}
			for _, r := range services[0].Realservers {
				if !regexp.MustCompile(`(?m)^  -> ` + regexp.QuoteMeta(r.Address) +
					` .* [0-9]+[KMGTP]? .*$`).MatchString(out.String()) {
					t.Errorf("in %d columns %s has no row of its own:\n%s", width, r.Address, &out)
				}
			}
		}
	}
	// As ipvsadm -Ln does: a title, and a row for each realserver, which keeps its connections and its health.
	six := []api.Service{{Name: "web", VIPs: []string{"2001:db8:100::80"}, Protocol: "tcp", Ports: []string{"80"},
		Scheduler: "wlc", Realservers: []api.Realserver{
			{Address: "2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff", Encap: "ipip", Weight: 1, Health: "up",
				Check: &api.Check{},
				Upper: 10, Active: 1234, Inactive: 56789, Connections: 12_345_678,
				Forwarded: api.Traffic{Packets: 123_456_789, Bytes: 12_345_678_901}},
			{Address: "fd00:0:11::2", Encap: "ipip", Weight: 1, Health: "unchecked"}}}}
	var out bytes.Buffer
	printServices(&out, six, nil, 80)
	if want := `Prot Address:Port Scheduler Flags
  -> Address                                 Weight  Health     Active  InAct
TCP [2001:db8:100::80]:80 wlc (web)
  -> 2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff  1       up         1234    56789
  -> fd00:0:11::2                            1       unchecked  0       0
`; out.String() != want {
		t.Errorf("got\n%swant\n%s", &out, want)
	}
	out.Reset()
	printServices(&out, narrow, nil, 80)
	want := "  -> 10.0.11.2  Tunnel,ipip  1       1234    56789  12345K  123M    12345M"
	if !strings.Contains(out.String(), want) {
		t.Errorf("%q is missing in\n%s", want, &out)
	}
	out.Reset()
	printServices(&out, narrow, nil, 0)
	want = "  -> 10.0.11.2      Tunnel,ipip  1       1234        56789      12345678  123456789  12345678901\n"
	if !strings.Contains(out.String(), want) {
		t.Errorf("without a terminal %q is missing in\n%s", want, &out)
	}
}

// TestHeadlineFits: the first line of status fits the terminal. Without a terminal it has all facts.
func TestHeadlineFits(t *testing.T) {
	st := api.DirectorStatus{Version: "0.1.0+0123456789ab", Pid: 123456, Uptime: 3600 * 24 * 30, TUN: "vs0", Queues: 1,
		Offloads: "csum tso uso", Connections: api.Connections{Count: 861, Max: 1_000_000}}
	for width, want := range map[int]string{
		0: "director 0.1.0+0123456789ab, pid 123456, up 720h0m0s, vs0 with 1 queue (csum tso uso), 861 of 1000000 " +
			"connections",
		132: "director 0.1.0+0123456789ab, pid 123456, up 720h0m0s, vs0 with 1 queue (csum tso uso), 861 of 1000000 " +
			"connections",
		80: "director 0.1.0+0123456789ab, pid 123456, up 720h0m0s, 861 of 1000000 connections",
		79: "director 0.1.0+0123456789ab, up 720h0m0s, 861 of 1000000 connections",
		40: "director 0.1.0+0123456789ab",
	} {
		got := headline(width, "director "+st.Version, fact{"pid 123456", 2}, fact{"up 720h0m0s", 3},
			device(st.TUN, st.Queues, st.Offloads), fact{"861 of 1000000 connections", 4})
		if got != want {
			t.Errorf("in %d columns %q, want %q", width, got, want)
		}
	}
}

// TestConnectionsFit: a row that is wider than the terminal has a second line.
func TestConnectionsFit(t *testing.T) {
	c := api.Connection{Protocol: "tcp", State: "ESTABLISHED", Expires: 900, Client: "2001:db8::7", ClientPort: 4711,
		VIP: "2001:db8:100::80", Port: 80, Realserver: "fd00:0:11::2", RealserverPort: 8080}
	line, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	for width, want := range map[int]string{
		0:  "TCP  15:00  ESTABLISHED [2001:db8::7]:4711    [2001:db8:100::80]:80 [fd00:0:11::2]:8080\n",
		80: "TCP  15:00  ESTABLISHED [2001:db8::7]:4711\n       -> [2001:db8:100::80]:80 -> [fd00:0:11::2]:8080\n",
	} {
		var out bytes.Buffer
		if err := printConnection(&out, line, width); err != nil || out.String() != want {
			t.Errorf("in %d columns: %v, got\n%swant\n%s", width, err, &out, want)
		}
	}
}

func TestWrapped(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"a bb ccc dddd", "a bb\n ccc\n dddd"},
		{"abcdefghij k", "abcdefghij\n k"},
		{"abcd", "abcd"},
		{"  a bb c", "  a bb\n c"},
	} {
		if got := Wrapped(c.text, 6, " "); got != c.want {
			t.Errorf("%q: %q, want %q", c.text, got, c.want)
		}
	}
	for n, want := range map[uint64]string{0: "0", 99_999: "99999", 100_000: "100K", 99_999_999: "99999K",
		123_456_789: "123M", 1<<64 - 1: "18446P"} {
		if got := ipvsNumber(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}
