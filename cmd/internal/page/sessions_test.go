package page

import (
	"testing"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/page/pagetest"
)

// TestShowsSessions: the page shows the sessions with routers, and among the notices that there is none.
func TestShowsSessions(t *testing.T) {
	t.Parallel()
	src := &source{st: small()}
	url, _ := serve(t, New(src.status))
	tab := open(t, url, pagetest.Look{})
	tab.Wait("without BGP there are no routers", "document.getElementById('sessions').hidden")
	src.change(func(st *api.DirectorStatus) {
		st.BGP = &api.BGP{State: "announcing", Announced: []string{"198.51.100.80"}, Peers: []api.BGPPeer{
			{Address: "10.0.2.1", AS: 65000, State: "established", Since: 7300, Announced: 1, BFD: "up"},
			{Address: "10.0.3.1", AS: 65000, State: "down", Since: 7300, Reason: "the connection is refused",
				Fix: "a fix"},
		}}
	})
	waitText(tab, "#sessions tbody tr:nth-of-type(1)", "10.0.2.1 established, BFD up 65000 2 h 1")
	waitText(tab, "#sessions tbody tr:nth-of-type(2)", "10.0.3.1 DOWN 65000 2 h 0 the connection is refused: a fix")
	waitText(tab, "#announced", "This director announces 1 VIP to routers by BGP; 0 are not announced.")
	src.change(func(st *api.DirectorStatus) { st.BGP.Peers = st.BGP.Peers[1:] })
	waitText(tab, "#notices li:last-of-type", "No router has a session with this director: director doctor")
}
