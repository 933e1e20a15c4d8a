package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"vstun/cmd/internal/api"
)

// ofInstance is not "instance", which is the label of Prometheus for the program that it asks.
var ofInstance = []string{"vrrp_instance"}

// vrrpSeries is the metrics of an instance of VRRP.
var vrrpSeries = []series[api.VRRP]{
	gauge(ofInstance, "vstun_vrrp_master", "Whether this director is the master: 1 or 0.",
		func(v *api.VRRP) float64 { return boolean(v.Role == "master") }),
	gauge(ofInstance, "vstun_vrrp_fault", "Whether something that the instance depends on is down: 1 or 0.",
		func(v *api.VRRP) float64 { return boolean(v.Role == "fault") }),
	gauge(ofInstance, "vstun_vrrp_two_masters", "Whether another director is master, too: 1 or 0.",
		func(v *api.VRRP) float64 { return boolean(v.OtherMaster != nil) }),
	gauge(ofInstance, "vstun_vrrp_priority", "Its priority in force.",
		func(v *api.VRRP) float64 { return float64(v.Priority) }),
	counter(ofInstance, "vstun_vrrp_sent_total", "Advertisements sent.",
		func(v *api.VRRP) float64 { return float64(v.Sent) }),
	counter(ofInstance, "vstun_vrrp_received_total", "Advertisements accepted.",
		func(v *api.VRRP) float64 { return float64(v.Received) }),
	counter(ofInstance, "vstun_vrrp_elected_total", "Times that this director became the master.",
		func(v *api.VRRP) float64 { return float64(v.Elected) }),
	counter(ofInstance, "vstun_vrrp_conflicts_total", "Times that two masters were found.",
		func(v *api.VRRP) float64 { return float64(v.Conflicts) }),
	counter(ofInstance, "vstun_vrrp_pauses_total", "Times that the director was paused for so long that another "+
		"one might have taken its role.", func(v *api.VRRP) float64 { return float64(v.Paused) }),
	counter(ofInstance, "vstun_vrrp_send_errors_total", "Packets that the kernel refused to send.",
		func(v *api.VRRP) float64 { return float64(v.Failed) }),
}

var vrrpRefused = prometheus.NewDesc("vstun_vrrp_refused_packets_total", "Received packets refused, by reason.",
	append(ofInstance, "reason"), nil)

func sendVRRP(ch chan<- prometheus.Metric, v *api.VRRP) {
	for i := range vrrpSeries {
		vrrpSeries[i].send(ch, v, v.Name)
	}
	for reason, n := range v.Refused {
		ch <- prometheus.MustNewConstMetric(vrrpRefused, counterValue, float64(n), v.Name, reason)
	}
}
