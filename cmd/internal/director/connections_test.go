package director

import (
	"net/netip"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/cmd/internal/api"
	"vstun/encap/packet"
)

// listed is the connections that tests choose from: TCP and UDP ones to the first realserver, a template to the second,
// which has a port of its own, and one of a service that has left.
func listed() []balancer.Connection {
	vip, first, second := netip.MustParseAddr("198.51.100.80"), netip.MustParseAddrPort("10.0.11.1:0"),
		netip.MustParseAddrPort("10.0.11.2:8080")
	flow := func(client string, proto uint8, port uint16) packet.Flow {
		return packet.Flow{Src: netip.MustParseAddr(client), Dst: vip, SrcPort: 4711, DstPort: port, Proto: proto}
	}
	return []balancer.Connection{
		{Conn: conntab.Conn{Flow: flow("192.0.2.7", packet.ProtoTCP, 80), State: conntab.Established,
			Expires: 15 * time.Minute, Packets: 9}, Service: "web", Realserver: first},
		{Conn: conntab.Conn{Flow: flow("192.0.3.7", packet.ProtoUDP, 53), State: conntab.UDP, Expires: time.Minute},
			Service: "dns", Realserver: first},
		{Conn: conntab.Conn{Flow: packet.Flow{Src: netip.MustParseAddr("192.0.2.0")}, Template: true,
			Expires: time.Second}, Service: "web", Realserver: second},
		{Conn: conntab.Conn{Flow: packet.Flow{Src: netip.MustParseAddr("192.0.4.0")}, Template: true}, Service: "left",
			Realserver: second},
	}
}

func list(t *testing.T, query string) []api.Connection {
	t.Helper()
	q, err := url.ParseQuery(query)
	if err != nil {
		t.Fatal(err)
	}
	f, err := api.ParseFilter(q, states())
	if err != nil {
		t.Fatal(err)
	}
	vips := []netip.Addr{netip.MustParseAddr("198.51.100.80"), netip.MustParseAddr("198.51.100.81")}
	l := lister{Filter: f, services: map[string]*balancer.Service{
		"web": {Name: "web", VIPs: vips, Protocol: packet.ProtoTCP, Ports: []balancer.PortRange{{First: 80, Last: 80},
			{First: 8000, Last: 8099}}},
		"dns": {Name: "dns", VIPs: vips[:1], Protocol: packet.ProtoUDP,
			Ports: []balancer.PortRange{{First: 53, Last: 53}}},
	}}
	var rows []api.Connection
	for row := range l.rows(slices.Values(listed())) {
		rows = append(rows, row.(api.Connection))
	}
	return rows
}

func TestConnectionRows(t *testing.T) {
	want := []api.Connection{
		{Protocol: "tcp", State: "ESTABLISHED", Expires: 900, Client: "192.0.2.7", ClientPort: 4711,
			VIP: "198.51.100.80", Port: 80, Realserver: "10.0.11.1", RealserverPort: 80, Service: "web",
			Packets: 9},
		{Protocol: "udp", State: "UDP", Expires: 60, Client: "192.0.3.7", ClientPort: 4711, VIP: "198.51.100.80",
			Port: 53, Realserver: "10.0.11.1", RealserverPort: 53, Service: "dns"},
		{Protocol: "tcp", State: "TEMPLATE", Expires: 1, Client: "192.0.2.0", VIP: "198.51.100.80",
			Realserver: "10.0.11.2", RealserverPort: 8080, Service: "web", Template: true},
		{State: "TEMPLATE", Client: "192.0.4.0", Realserver: "10.0.11.2", RealserverPort: 8080,
			Service: "left", Template: true},
	}
	if diff := cmp.Diff(want, list(t, "")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestConnectionFilters(t *testing.T) {
	all := list(t, "")
	for query, want := range map[string][]int{ // indices of listed
		"client=192.0.2.0/24":              {0, 2},
		"client=192.0.2.7":                 {0},
		"client=2001:db8::/32":             nil,
		"vip=198.51.100.80":                {0, 1, 2},
		"vip=198.51.100.80:80":             {0, 2},
		"vip=198.51.100.80:53":             {1},
		"vip=198.51.100.81":                {2},
		"vip=198.51.100.81:8042":           {2},
		"vip=198.51.100.82":                nil,
		"realserver=10.0.11.2":             {2, 3},
		"realserver=10.0.11.2:8080":        {2, 3},
		"realserver=10.0.11.2:80":          nil,
		"realserver=10.0.11.1:53":          {1},
		"service=web":                      {0, 2},
		"service=left":                     {3},
		"state=template":                   {2, 3},
		"state=established":                {0},
		"state=NONE":                       nil,
		"limit=1":                          {0},
		"limit=3":                          {0, 1, 2},
		"limit=1&state=template":           {2},
		"service=web&realserver=10.0.11.1": {0},
	} {
		var rows []api.Connection
		for _, i := range want {
			rows = append(rows, all[i])
		}
		if diff := cmp.Diff(rows, list(t, query)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", query, diff)
		}
	}
}

func TestStates(t *testing.T) {
	names := states()
	for _, want := range []string{"ESTABLISHED", "SYN_RECV", "UDP", "TEMPLATE"} {
		if n := len(slices.DeleteFunc(slices.Clone(names), func(s string) bool { return s != want })); n != 1 {
			t.Errorf("%s is there %d times in %v", want, n, names)
		}
	}
	if slices.Contains(names, "") {
		t.Errorf("a state without a name in %v", names)
	}
}
