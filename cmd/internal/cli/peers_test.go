package cli

import (
	"net/url"
	"strings"
	"testing"

	"vstun/cmd/internal/api"
)

// TestPrintPeers prints each state of the exchange.
func TestPrintPeers(t *testing.T) {
	age := 7.0
	for name, c := range map[string]struct {
		sync *api.Sync
		want string
	}{
		"none": {nil, "no [sync]: connections are not exchanged with other directors\n"},
		"complete": {&api.Sync{Mode: "vstun", Ready: true, Lost: 2, Refused: map[string]uint64{"forged": 3},
			Sent: api.SyncTraffic{Datagrams: 1, Records: 40, Bytes: 1448}, Peers: []api.SyncPeer{
				{Address: "10.0.2.3", State: "alive", Received: api.SyncTraffic{Records: 5}, Bulk: &age},
				{Address: "10.0.2.4", State: "silent", Heard: 61}},
			Senders: []api.SyncSender{{Address: "10.0.2.9", Reason: "forged", Count: 3, Last: 2, Fix: "copy the key"}}},
			"sync vstun, the peers' connections are complete\n" +
				"sent                   1 datagram   40 records  1448 bytes\n" +
				"received               0 datagrams  0 records   0 bytes\n" +
				"lost                   2 datagrams\n" +
				"refused: forged        3\n" +
				"refused from 10.0.2.9  3 datagrams, last 2s ago: forged: copy the key\n" +
				"peer 10.0.2.3          alive, heard 0s ago     5 records  0 lost  table complete 7s ago\n" +
				"peer 10.0.2.4          silent, heard 1m1s ago  0 records  0 lost  table incomplete\n"},
		"incomplete": {&api.Sync{Mode: "vstun", Ready: true,
			Peers: []api.SyncPeer{{Address: "10.0.2.3", State: "alive"}}},
			"sync vstun, waiting for the peers' connections\n" +
				"sent           0 datagrams          0 records  0 bytes\n" +
				"received       0 datagrams          0 records  0 bytes\n" +
				"peer 10.0.2.3  alive, heard 0s ago  0 records  0 lost  table incomplete\n"},
		"silent": {&api.Sync{Mode: "vstun", Ready: true,
			Peers: []api.SyncPeer{{Address: "10.0.2.3", State: "silent", Heard: 9, Bulk: &age}}},
			"sync vstun, NO PEER is heard\n" +
				"sent           0 datagrams           0 records  0 bytes\n" +
				"received       0 datagrams           0 records  0 bytes\n" +
				"peer 10.0.2.3  silent, heard 9s ago  0 records  0 lost  table complete 7s ago\n"},
		"alone": {&api.Sync{Mode: "vstun", Ready: true, Unheard: []string{"224.0.0.81"}},
			"sync vstun, NO PEER is heard\n" +
				"sent              0 datagrams  0 records  0 bytes\n" +
				"received          0 datagrams  0 records  0 bytes\n" +
				"group 224.0.0.81  no peer has been heard\n"},
		"one is not heard": {&api.Sync{Mode: "vstun", Ready: true, Unheard: []string{"10.0.2.3"}},
			"sync vstun, NO PEER is heard\n" +
				"sent           0 datagrams  0 records  0 bytes\n" +
				"received       0 datagrams  0 records  0 bytes\n" +
				"peer 10.0.2.3  not heard\n"},
		"an error": {&api.Sync{Mode: "vstun", Ready: true, SendErrors: 2, Error: "no such device", ErrorAge: 61},
			"sync vstun, NO PEER is heard\n" +
				"sent         0 datagrams  0 records  0 bytes\n" +
				"received     0 datagrams  0 records  0 bytes\n" +
				"send errors  2 datagrams\n" +
				"last error   no such device, 1m1s ago\n"},
		"ipvs": {&api.Sync{Mode: "ipvs", Ready: true, Unheard: []string{"ff02::81"}},
			"sync ipvs, without authentication\n" +
				"sent            0 datagrams  0 records  0 bytes\n" +
				"received        0 datagrams  0 records  0 bytes\n" +
				"group ff02::81  no peer has been heard\n"},
	} {
		var out strings.Builder
		if err := printSync(&out, c.sync); err != nil || out.String() != c.want {
			t.Errorf("%s: %v\n%s\nwant\n%s", name, err, out.String(), c.want)
		}
	}
}

// TestPrintSyncLine: status has the state of the exchange, what is lost, and each peer with the age of its table.
func TestPrintSyncLine(t *testing.T) {
	age := 7.0
	var out strings.Builder
	printSyncLine(&out, &api.Sync{Mode: "vstun", Ready: true, Lost: 2, Sent: api.SyncTraffic{Records: 40},
		Received: api.SyncTraffic{Records: 5},
		Peers:    []api.SyncPeer{{Address: "10.0.2.3", State: "alive", Bulk: &age}}})
	want := "\nsync vstun\tthe peers' connections are complete\t40 records sent\t5 records received\t2 lost\n" +
		"peer 10.0.2.3\talive, heard 0s ago\t0 records\t0 lost\ttable complete 7s ago\n"
	if out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
	out.Reset()
	printSyncLine(&out, &api.Sync{Mode: "vstun", Unheard: []string{"224.0.0.81"}})
	if got := out.String(); !strings.Contains(got, "waiting for the peers' connections") ||
		!strings.Contains(got, "group 224.0.0.81\tno peer has been heard\n") {
		t.Errorf("alone: %q", got)
	}
}

// TestPrintElection: the lines of an instance have its role and its peers. A master says that it has heard none, which
// is usual.
func TestPrintElection(t *testing.T) {
	v := api.VRRP{Name: "VI_1", Interface: "eth0", Role: "master", Since: 7, Priority: 150, Configured: 150,
		Addresses: []string{"10.0.2.80"}, Sent: 70}
	const head = "VI_1 on eth0: master for 7s, priority 150\n" +
		"  addresses               10.0.2.80\n" +
		"  sent                    70  received  0  refused  0\n"
	backup := v
	backup.Role = "backup"
	heard := v
	heard.Peers = []api.Peer{{Address: "10.0.2.3", Priority: 100, Last: 3}}
	for _, c := range []struct {
		name string
		v    api.VRRP
		want string
	}{
		{"never heard", v, head + "  no peer has been heard  a backup sends nothing: director peers there must say " +
			"backup\n"},
		{"a backup", backup, "VI_1 on eth0: backup for 7s, priority 150\n" +
			"  addresses  10.0.2.80\n" +
			"  sent       70  received  0  refused  0\n"},
		{"heard", heard, "VI_1 on eth0: master for 7s, priority 150\n" +
			"  addresses      10.0.2.80\n" +
			"  sent           70            received  0  refused  0\n" +
			"  peer 10.0.2.3  priority 100  3s ago    \n"},
	} {
		var out strings.Builder
		if err := printElection(&out, []api.VRRP{c.v}); err != nil || out.String() != c.want {
			t.Errorf("%s: %v\n%q\nwant\n%q", c.name, err, out.String(), c.want)
		}
	}
}

// TestStandbyLinger prints what is announced after the time to linger: VIPs may have been withdrawn meanwhile.
func TestStandbyLinger(t *testing.T) {
	at := listen(t, func(s *api.Server) {
		s.Handle("POST /standby", api.JSON(func(url.Values) (any, error) {
			return api.Peers{BGP: &api.BGP{State: "graceful_shutdown", Announced: []string{"198.51.100.80"}}}, nil
		}))
		s.Handle("GET /peers", api.JSON(func(url.Values) (any, error) {
			return api.Peers{BGP: &api.BGP{State: "standby"}}, nil
		}))
	})
	for flag, want := range map[string]string{"--linger=0s": "1 VIP announced, 0 not, GRACEFUL SHUTDOWN",
		"--linger=1ms": "0 VIPs announced, 0 not, STANDBY"} {
		if out, err := execute(StandbyCommand(at), flag); err != nil || !strings.Contains(out, want) {
			t.Errorf("%s: %q, %v", flag, out, err)
		}
	}
}
