package doctor

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/routing/vrrp"
)

// TestVRRPFindings: each fault of an election is a finding that says what it is, where, and what to do.
func TestVRRPFindings(t *testing.T) {
	hop := netip.MustParsePrefix("10.0.3.10/24")
	cfg := []config.VRRP{{Instance: vrrp.Instance{Name: "VI_1"}, Owned: []config.Owned{{Device: "eth1", Prefix: hop}}}}
	for _, c := range []struct {
		name string
		v    api.VRRP
		have string // the device that has hop
		want []string
	}{
		{"a master", api.VRRP{Role: "master", Peers: []api.Peer{{Address: "10.0.2.3", Priority: 90}}}, "eth1", nil},
		{"a backup", api.VRRP{Role: "backup", Peers: []api.Peer{{Address: "10.0.2.3", Priority: 90}}}, "", nil},
		{"two masters", api.VRRP{Role: "master", OtherMaster: &api.OtherMaster{Address: "10.0.2.3",
			Refused: "password", Fix: "set the same password at both"},
			Peers: []api.Peer{{Address: "10.0.2.3", Refused: "password"}}}, "eth1",
			[]string{"error vrrp VI_1: 10.0.2.3 is master, too [set the same password at both]"}},
		{"a fault", api.VRRP{Role: "fault", Fault: "eth0 has no link"}, "",
			[]string{"error vrrp VI_1: it takes no part in the election: eth0 has no link []"}},
		{"refused", api.VRRP{Role: "backup", Peers: []api.Peer{{Address: "10.0.2.4", Refused: "interval",
			Fix: "set the same interval at both, which version 2 requires"}}}, "", []string{"warning vrrp VI_1: the " +
			"packets of 10.0.2.4 are refused: interval [set the same interval at both, which version 2 requires]"}},
		{"refused long ago", api.VRRP{Role: "backup", Peers: []api.Peer{{Address: "10.0.2.4", Refused: "interval",
			Last: 3600}}}, "", nil},
		{"other addresses", api.VRRP{Role: "backup", Peers: []api.Peer{{Address: "10.0.2.4", Differs: true}}}, "",
			[]string{"warning vrrp VI_1: 10.0.2.4 has other addresses [write the same addresses at both]"}},
		{"cannot send", api.VRRP{Role: "backup", SendError: "operation not permitted"}, "",
			[]string{"error vrrp VI_1: its advertisements cannot be sent: operation not permitted " +
				"[the last one failed 0 s ago]"}},
		{"could not send long ago", api.VRRP{Role: "backup", SendError: "operation not permitted",
			SendErrorAge: 601}, "", nil},
		{"an address is missing", api.VRRP{Role: "master"}, "",
			[]string{"error vrrp VI_1: it is the master, and this host does not have the address 10.0.3.10/24 []"}},
		{"an address is left", api.VRRP{Role: "backup"}, "eth1",
			[]string{"error vrrp VI_1: it is not the master, and this host has the address 10.0.3.10/24 []"}},
	} {
		c.v.Name = "VI_1"
		have := map[netip.Addr]string{}
		if c.have != "" {
			have[hop.Addr()] = c.have
		}
		res := result{check: "vrrp"}
		res.vrrp(&api.DirectorStatus{VRRP: []api.VRRP{c.v}}, cfg, have)
		mustFind(t, c.name, &res, c.want)
	}
}

// TestBackup: another director has a VIP in addresses or in excluded while this one is no master of their instance.
func TestBackup(t *testing.T) {
	vip := netip.MustParseAddr("10.0.2.80")
	cfg := &config.Director{VRRP: []config.VRRP{{Instance: vrrp.Instance{Name: "VI_1", Excluded: []netip.Addr{vip}},
		VIPs: []netip.Addr{vip}}}}
	for role, want := range map[string]bool{"master": false, "backup": true, "fault": true} {
		st := &api.DirectorStatus{VRRP: []api.VRRP{{Name: "VI_1", Role: role}}}
		if got := backup(cfg, st, vip); got != want {
			t.Errorf("%s: %v", role, got)
		}
		if backup(cfg, st, vip.Next()) {
			t.Errorf("%s: of no instance", role)
		}
	}
}

// TestSyncFindings is the same for the exchange of connections.
func TestSyncFindings(t *testing.T) {
	other := netip.MustParseAddr("10.0.2.3")
	age := 1.0
	alive := api.SyncPeer{Address: "10.0.2.3", State: "alive", Bulk: &age}
	const unheard = "nothing has come from it []"
	for _, c := range []struct {
		name string
		s    *api.Sync
		want []string
	}{
		{"none", nil, nil},
		{"alive", &api.Sync{Mode: "vstun", Peers: []api.SyncPeer{alive}}, nil},
		{"never heard", &api.Sync{Mode: "vstun"}, []string{"warning sync with 10.0.2.3: " + unheard}},
		{"a silent kernel", &api.Sync{Mode: "ipvs"}, []string{"hint sync with 10.0.2.3: " + unheard}},
		{"silent", &api.Sync{Mode: "vstun", Peers: []api.SyncPeer{{Address: "10.0.2.3", State: "silent", Heard: 61}}},
			[]string{"warning sync with 10.0.2.3: nothing has come from it for 61 seconds []"}},
		{"another key", &api.Sync{Mode: "vstun", Peers: []api.SyncPeer{alive}, Senders: []api.SyncSender{
			{Address: "10.0.2.4", Reason: "forged", Fix: "copy the key"}}},
			[]string{"warning sync with 10.0.2.4: its datagrams are refused: forged " +
				"[copy the key the last one was refused 0 s ago]"}},
		{"another id", &api.Sync{Mode: "vstun", Peers: []api.SyncPeer{alive}, Senders: []api.SyncSender{
			{Address: "10.0.2.4", Reason: "other_id", Fix: "set the same id"}}},
			[]string{"warning sync with 10.0.2.4: its datagrams are refused: other_id " +
				"[set the same id the last one was refused 0 s ago]"}},
		{"a peer with another key", &api.Sync{Mode: "vstun",
			Peers: []api.SyncPeer{{Address: "10.0.2.3", State: "silent", Heard: 61}}, Senders: []api.SyncSender{
				{Address: "10.0.2.3", Reason: "forged", Last: 2, Fix: "copy the key"}}},
			[]string{"warning sync with 10.0.2.3: its datagrams are refused: forged " +
				"[copy the key the last one was refused 2 s ago]"}},
		{"one of another key, never heard", &api.Sync{Mode: "vstun", Senders: []api.SyncSender{
			{Address: "10.0.2.3", Reason: "forged", Last: 2, Fix: "copy the key"}}},
			[]string{"warning sync with 10.0.2.3: its datagrams are refused: forged " +
				"[copy the key the last one was refused 2 s ago]"}},
		{"long ago", &api.Sync{Mode: "vstun", Peers: []api.SyncPeer{alive}, Senders: []api.SyncSender{
			{Address: "10.0.2.4", Reason: "forged", Last: 3600}}}, nil},
		{"late ones", &api.Sync{Mode: "vstun", Peers: []api.SyncPeer{alive}, Senders: []api.SyncSender{
			{Address: "10.0.2.3", Reason: "replayed"}}}, nil},
		{"a recording", &api.Sync{Mode: "vstun", Peers: []api.SyncPeer{alive}, Senders: []api.SyncSender{
			{Address: "10.0.2.9", Reason: "replayed", Fix: "look"}}},
			[]string{"warning sync with 10.0.2.9: its datagrams are refused: replayed " +
				"[look the last one was refused 0 s ago]"}},
		{"cannot send", &api.Sync{Mode: "vstun", Peers: []api.SyncPeer{alive}, SendErrors: 3, Error: "no such device",
			ErrorAge: 2}, []string{"error sync: its datagrams cannot be sent: no such device " +
			"[the last one failed 2 s ago]"}},
		{"could not send long ago", &api.Sync{Mode: "vstun", Peers: []api.SyncPeer{alive}, SendErrors: 3,
			Error: "no such device", ErrorAge: 601}, nil},
		{"other services", &api.Sync{Mode: "vstun", Peers: []api.SyncPeer{alive},
			Refused: map[string]uint64{"unknown_service": 4}}, []string{"hint sync: 4 records of peers refused since " +
			"the start: unknown_service [configure the same services and realservers at all directors]"}},
	} {
		res := result{check: "sync"}
		res.sync(&config.Sync{Port: 8848}, []netip.Addr{other}, c.s)
		mustFind(t, c.name, &res, c.want)
	}
	res := result{check: "sync"}
	res.sync(&config.Sync{Port: 8848}, nil, &api.Sync{Mode: "vstun"})
	mustFind(t, "multicast", &res, []string{"warning sync: no other director has been heard []"})
}

// mustFind wants these findings: severity, place, text and remarks. Each has an effect.
func mustFind(t *testing.T, name string, res *result, want []string) {
	t.Helper()
	var got []string
	for _, f := range res.findings {
		got = append(got, fmt.Sprintf("%s %s: %s %s", f.Severity, f.Where, f.What, f.Remarks))
		if f.Why == "" {
			t.Errorf("%s: %+v has no effect", name, f)
		}
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("%s:\n%s\nwant\n%s", name, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
