package api

import (
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var someStates = []string{"ESTABLISHED", "UDP", "TEMPLATE"}

func TestParseFilter(t *testing.T) {
	vip := netip.MustParseAddr("198.51.100.80")
	six := netip.MustParseAddr("2001:db8::1")
	for query, want := range map[string]Filter{
		"":                          {Port: -1},
		"client=192.0.2.7":          {Port: -1, Client: netip.MustParsePrefix("192.0.2.7/32")},
		"client=192.0.2.7/24":       {Port: -1, Client: netip.MustParsePrefix("192.0.2.0/24")},
		"client=2001:db8::/32":      {Port: -1, Client: netip.MustParsePrefix("2001:db8::/32")},
		"vip=198.51.100.80":         {Port: -1, VIP: vip},
		"vip=198.51.100.80:80":      {Port: 80, VIP: vip},
		"vip=198.51.100.80:0":       {Port: 0, VIP: vip},
		"vip=2001:db8::1":           {Port: -1, VIP: six},
		"vip=[2001:db8::1]":         {Port: -1, VIP: six},
		"vip=[2001:db8::1]:80":      {Port: 80, VIP: six},
		"realserver=10.0.11.2":      {Port: -1, Realserver: netip.MustParseAddrPort("10.0.11.2:0")},
		"realserver=10.0.11.2:8080": {Port: -1, Realserver: netip.MustParseAddrPort("10.0.11.2:8080")},
		"service=web&limit=7":       {Port: -1, Service: "web", Limit: 7},
		"state=established&limit=0": {Port: -1, State: "ESTABLISHED"},
	} {
		q, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseFilter(q, someStates)
		if err != nil {
			t.Errorf("%s: %v", query, err)
			continue
		}
		if diff := cmp.Diff(&want, got, cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{},
			netip.Prefix{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", query, diff)
		}
	}
}

func TestParseFilterFaults(t *testing.T) {
	for query, want := range map[string]string{
		"client=host":                        `--client "host" is neither address nor prefix: want`,
		"client=":                            `--client "" is neither`,
		"client=192.0.2.0/33":                `--client "192.0.2.0/33" is neither`,
		"client=fe80::1%25eth0":              `--client "fe80::1%eth0" is neither`,
		"vip=198.51.100.80:http":             `--vip "198.51.100.80:http" is not a VIP: want`,
		"vip=:80":                            `--vip ":80" is not`,
		"realserver=10.0.11.2:0":             `--realserver "10.0.11.2:0" is not an address: want`,
		"service=":                           `--service "" is no service`,
		"state=SYN":                          `--state "SYN" is no state: want ESTABLISHED, UDP or TEMPLATE`,
		"state=establish":                    `--state "establish" is no state: did you mean ESTABLISHED?`,
		"limit=-1":                           `--limit "-1" is no number of connections: want 0 (all) or more`,
		"limit=many":                         `--limit "many" is no number`,
		"limit=1&limit=2":                    `--limit is there 2 times`,
		"colour=red":                         `--colour "red" is unknown: want client, vip,`,
		"client=" + strings.Repeat("\n1", 3): `--client "\n1\n1\n1" is neither`,
	} {
		q, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseFilter(q, someStates); err == nil || !strings.Contains(err.Error(), want) ||
			strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: got %v, want %s", query, err, want)
		}
	}
}
