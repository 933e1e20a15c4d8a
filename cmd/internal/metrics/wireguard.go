package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"vstun/cmd/internal/api"
)

// wireguardSeries is the metrics of a peer of WireGuard, of either program.
var wireguardSeries = []series[api.WireGuardPeer]{
	gauge(ofPeer, "vstun_wireguard_last_handshake_timestamp_seconds", "When the last handshake with the peer was. "+
		"Absent before the first one.", func(p *api.WireGuardPeer) float64 {
		if p.Handshake == nil {
			return absent()
		}
		return ago(*p.Handshake)
	}),
	counter(ofPeer, "vstun_wireguard_received_bytes_total", "Bytes of UDP payload from the peer.",
		func(p *api.WireGuardPeer) float64 { return float64(p.In) }),
	counter(ofPeer, "vstun_wireguard_sent_bytes_total", "Bytes of UDP payload to the peer.",
		func(p *api.WireGuardPeer) float64 { return float64(p.Out) }),
}

// sendWireGuard sends the metrics of w, none if w is nil.
func sendWireGuard(ch chan<- prometheus.Metric, w *api.WireGuard) {
	if w == nil {
		return
	}
	for i := range w.Peers {
		for j := range wireguardSeries {
			wireguardSeries[j].send(ch, &w.Peers[i], w.Peers[i].Address)
		}
	}
}
