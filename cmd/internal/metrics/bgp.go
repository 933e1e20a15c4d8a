package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"vstun/cmd/internal/api"
)

// bgpSeries is the metrics of the announcement by BGP. There are none without it.
var bgpSeries = []series[api.BGP]{
	gauge(nil, "vstun_bgp_announced_vips", "VIPs that are announced to routers.",
		func(b *api.BGP) float64 { return float64(len(b.Announced)) }),
	gauge(nil, "vstun_bgp_withdrawn_vips", "VIPs that are not announced to routers.",
		func(b *api.BGP) float64 { return float64(len(b.Withdrawn)) }),
	gauge(nil, "vstun_bgp_standby", "Whether this director is on standby: 1 or 0.",
		func(b *api.BGP) float64 { return boolean(b.State == "standby" || b.State == "graceful_shutdown") }),
}

// bgpPeerSeries is the metrics of a session with a router.
var bgpPeerSeries = []series[api.BGPPeer]{
	gauge(ofPeer, "vstun_bgp_session_up", "Whether the session with the router is established: 1 or 0.",
		func(p *api.BGPPeer) float64 { return boolean(p.State == "established") }),
	gauge(ofPeer, "vstun_bgp_session_vips", "VIPs that the router has from this director.",
		func(p *api.BGPPeer) float64 { return float64(p.Announced) }),
	gauge(ofPeer, "vstun_bgp_session_received_routes", "Routes that the router has sent: none is used.",
		func(p *api.BGPPeer) float64 { return float64(p.Routes) }),
	counter(ofPeer, "vstun_bgp_session_ups_total", "Times that the session has come up.",
		func(p *api.BGPPeer) float64 { return float64(p.Ups) }),
	counter(ofPeer, "vstun_bgp_session_downs_total", "Times that the session has ended.",
		func(p *api.BGPPeer) float64 { return float64(p.Downs) }),
}

// sendBGP sends the metrics of b, none if b is nil.
func sendBGP(ch chan<- prometheus.Metric, b *api.BGP) {
	if b == nil {
		return
	}
	for i := range bgpSeries {
		bgpSeries[i].send(ch, b)
	}
	for i := range b.Peers {
		for j := range bgpPeerSeries {
			bgpPeerSeries[j].send(ch, &b.Peers[i], b.Peers[i].Address)
		}
	}
}
