package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"vstun/cmd/internal/api"
	"vstun/encap/packet/drop"
)

var ofTunnel = []string{"tunnel"}

// tunnelSeries is the metrics of a point-to-point tunnel, of either program.
var tunnelSeries = []series[api.Tunnel]{
	gauge(ofTunnel, "vstun_tunnel_up", "Whether the tunnel is up: 1 or 0.",
		func(t *api.Tunnel) float64 { return boolean(t.State == "up") }),
	gauge(ofTunnel, "vstun_tunnel_mtu_bytes", "MTU of the device.",
		func(t *api.Tunnel) float64 { return float64(t.MTU) }),
	counter(ofTunnel, "vstun_tunnel_received_packets_total", "Packets from the peer.",
		func(t *api.Tunnel) float64 { return float64(t.In.Packets) }),
	counter(ofTunnel, "vstun_tunnel_received_bytes_total", "Bytes of those packets, with the tunnel's headers.",
		func(t *api.Tunnel) float64 { return float64(t.In.Bytes) }),
	counter(ofTunnel, "vstun_tunnel_sent_packets_total", "Packets to the peer.",
		func(t *api.Tunnel) float64 { return float64(t.Out.Packets) }),
	counter(ofTunnel, "vstun_tunnel_sent_bytes_total", "Bytes of those packets, with the tunnel's headers.",
		func(t *api.Tunnel) float64 { return float64(t.Out.Bytes) }),
	gauge(ofTunnel, "vstun_tunnel_last_received_timestamp_seconds", "When the last packet came from the peer, to a "+
		"second. Absent before the first one.", func(t *api.Tunnel) float64 {
		if t.Heard == nil {
			return absent()
		}
		return ago(*t.Heard)
	}),
	counter(ofTunnel, "vstun_tunnel_probes_sent_total", "Pings through the tunnel.", ofProbe(
		func(p *api.TunnelProbe) float64 { return float64(p.Sent) })),
	counter(ofTunnel, "vstun_tunnel_probes_answered_total", "Pings that were answered.", ofProbe(
		func(p *api.TunnelProbe) float64 { return float64(p.Answered) })),
	gauge(ofTunnel, "vstun_tunnel_probe_round_trip_seconds", "Round trip of the last ping that was answered.", ofProbe(
		func(p *api.TunnelProbe) float64 { return p.RoundTrip })),
}

var tunnelDrops = prometheus.NewDesc("vstun_tunnel_dropped_packets_total", "Packets refused, by reason.",
	[]string{"tunnel", "reason"}, nil)

// ofProbe returns a value of a tunnel that only one with a probe has.
func ofProbe(value func(*api.TunnelProbe) float64) func(*api.Tunnel) float64 {
	return func(t *api.Tunnel) float64 {
		if t.Probe == nil {
			return absent()
		}
		return value(t.Probe)
	}
}

// sendTunnels sends the metrics of point-to-point tunnels.
func sendTunnels(ch chan<- prometheus.Metric, all []api.Tunnel) {
	for i := range all {
		for j := range tunnelSeries {
			tunnelSeries[j].send(ch, &all[i], all[i].Name)
		}
		sendDrops(ch, tunnelDrops, drop.Reason.Tunnel, all[i].Drops, all[i].Name)
	}
}
