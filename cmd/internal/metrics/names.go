package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"vstun/cmd/internal/api"
)

var ofName = []string{"name", "type", "family", "server"}

// nameSeries is the metrics of a name whose answer gives realservers.
var nameSeries = []series[api.Name]{
	gauge(ofName, "vstun_name_resolved", "Whether the last attempt to resolve the name gave a whole answer: 1 or 0.",
		func(n *api.Name) float64 { return boolean(n.Error == "" && n.Answered != nil) }),
	gauge(ofName, "vstun_name_addresses", "Addresses in the last answer.",
		func(n *api.Name) float64 { return float64(n.Addresses()) }),
	gauge(ofName, "vstun_name_refused_addresses", "Addresses of those that cannot be realservers.",
		func(n *api.Name) float64 { return float64(len(n.Refused)) }),
	gauge(ofName, "vstun_name_last_answer_timestamp_seconds", "When the last answer came, to a second. Absent before "+
		"the first one.", func(n *api.Name) float64 {
		if n.Answered == nil {
			return absent()
		}
		return ago(*n.Answered)
	}),
	counter(ofName, "vstun_name_failures_total", "Attempts without a whole answer.",
		func(n *api.Name) float64 { return float64(n.Failures) }),
}

// sendNames sends the metrics of names.
func sendNames(ch chan<- prometheus.Metric, all []api.Name) {
	for i := range all {
		n := &all[i]
		for j := range nameSeries {
			nameSeries[j].send(ch, n, n.Name, n.Type, n.Family, n.Server)
		}
	}
}
