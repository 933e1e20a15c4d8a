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
		st.VRRP = st.VRRP[:1]
		st.VRRP[0].OtherMaster = &api.OtherMaster{Address: "10.0.2.3", Refused: "password",
			Fix: "set the same password at both"}
	})
	waitText(tab, "#roles tbody", "VI_1 eth0 master, CONFLICT 150 2 h 10.0.2.3 is master, too: set the same "+
		"password at both")
	waitText(tab, "#notices li:last-of-type", "VI_1: 10.0.2.3 is master, too: set the same password at both")
}
