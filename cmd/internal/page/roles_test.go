package page

import (
	"testing"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/page/pagetest"
)

// TestShowsRoles: the page shows the roles in VRRP, and a fault and a second master among the notices.
func TestShowsRoles(t *testing.T) {
	t.Parallel()
	src := &source{st: small()}
	url, _ := serve(t, New(src.status))
	tab := open(t, url, pagetest.Look{})
	tab.Wait("without VRRP there are no roles", "document.getElementById('roles').hidden")
	src.change(func(st *api.DirectorStatus) {
		st.VRRP = []api.VRRP{
			{Name: "VI_1", Interface: "eth0", Role: "master", Since: 7300, Priority: 150, Configured: 150,
				Reason: "no other master"},
			{Name: "VI_2", Interface: "eth1", Role: "fault", Since: 7300, Priority: 80, Configured: 100,
				Fault: "eth1 has no link"},
		}
	})
	waitText(tab, "#roles tbody tr:nth-of-type(1)", "VI_1 eth0 master 150 2 h no other master")
	waitText(tab, "#roles tbody tr:nth-of-type(2)", "VI_2 eth1 fault 80 of 100 2 h eth1 has no link")
	waitText(tab, "#notices li:last-of-type", "VI_2: eth1 has no link")
	src.change(func(st *api.DirectorStatus) {
		v := st.VRRP[0]
		v.OtherMaster = &api.OtherMaster{Address: "10.0.2.3", Refused: "password",
			Fix: "set the same password at both"}
		st.VRRP = []api.VRRP{v}
	})
	waitText(tab, "#roles tbody", "VI_1 eth0 master, CONFLICT 150 2 h 10.0.2.3 is master, too: set the same "+
		"password at both")
	waitText(tab, "#notices li:last-of-type", "VI_1: 10.0.2.3 is master, too: set the same password at both")
}

// TestShowsExchange: the page shows the exchange of connections, and among the notices that it fails.
func TestShowsExchange(t *testing.T) {
	t.Parallel()
	src := &source{st: small()}
	url, _ := serve(t, New(src.status))
	tab := open(t, url, pagetest.Look{})
	tab.Wait("without [sync] there is no exchange", "document.getElementById('exchange').hidden")
	age := 7300.0
	src.change(func(st *api.DirectorStatus) {
		st.Sync = &api.Sync{Mode: "vstun", Ready: true, Lost: 3, Sent: api.SyncTraffic{Records: 40},
			Received: api.SyncTraffic{Records: 5}, Peers: []api.SyncPeer{
				{Address: "10.0.2.3", State: "alive", Received: api.SyncTraffic{Records: 5}, Lost: 3, Bulk: &age},
				{Address: "10.0.2.4", State: "silent", Heard: 7300}}}
	})
	waitText(tab, "#exchanged", "Connections are exchanged in the mode vstun: 40 records sent, 5 received, "+
		"3 datagrams lost.")
	waitText(tab, "#exchange tbody tr:nth-of-type(1)", "10.0.2.3 alive 0 s ago 5 3 complete 2 h ago")
	waitText(tab, "#exchange tbody tr:nth-of-type(2)", "10.0.2.4 silent 2 h ago 0 0 incomplete")
	src.change(func(st *api.DirectorStatus) {
		st.Sync.Peers = st.Sync.Peers[1:]
		st.Sync.Senders = []api.SyncSender{{Address: "10.0.2.9", Reason: "forged", Fix: "copy the key", Last: 2}}
	})
	waitText(tab, "#notices li:last-of-type", "The connections of 10.0.2.9 are refused (forged): copy the key")
	src.change(func(st *api.DirectorStatus) { st.Sync.Senders = nil })
	waitText(tab, "#notices li:last-of-type", "No other director exchanges connections with this one: director doctor")
	src.change(func(st *api.DirectorStatus) { st.Sync.Mode = "ipvs" })
	waitText(tab, "#notices li:last-of-type", "1 VIP used by another host, too: see Conflicts")
}
