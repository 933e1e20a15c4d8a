package metrics

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"vstun/balancer/connsync"
	"vstun/cmd/internal/api"
)

// syncSeries is the metrics of the exchange of connections with other directors. There are none without it.
var syncSeries = []series[api.Sync]{
	gauge(nil, "vstun_director_sync_ready", "0 while the director waits for the connections of "+
		"its peers; else 1.",
		func(s *api.Sync) float64 { return boolean(s.Ready) }),
	gauge(nil, "vstun_director_sync_peers", "Directors that have been heard within three seconds.",
		func(s *api.Sync) (n float64) {
			for i := range s.Peers {
				n += boolean(s.Peers[i].State == "alive")
			}
			return n
		}),
	counter(nil, "vstun_director_sync_sent_datagrams_total", "Datagrams sent to peers.",
		func(s *api.Sync) float64 { return float64(s.Sent.Datagrams) }),
	counter(nil, "vstun_director_sync_sent_records_total", "Records of connections in those.",
		func(s *api.Sync) float64 { return float64(s.Sent.Records) }),
	counter(nil, "vstun_director_sync_sent_bytes_total", "Bytes of those, without IP and UDP headers.",
		func(s *api.Sync) float64 { return float64(s.Sent.Bytes) }),
	counter(nil, "vstun_director_sync_received_datagrams_total", "Datagrams received, refused ones included.",
		func(s *api.Sync) float64 { return float64(s.Received.Datagrams) }),
	counter(nil, "vstun_director_sync_received_records_total", "Records of connections that were taken.",
		func(s *api.Sync) float64 { return float64(s.Received.Records) }),
	counter(nil, "vstun_director_sync_received_bytes_total", "Bytes of received datagrams.",
		func(s *api.Sync) float64 { return float64(s.Received.Bytes) }),
	counter(nil, "vstun_director_sync_lost_datagrams_total", "Datagrams of peers that did not come.",
		func(s *api.Sync) float64 { return float64(s.Lost) }),
	counter(nil, "vstun_director_sync_resent_datagrams_total", "Datagrams sent again to peers that had lost them.",
		func(s *api.Sync) float64 { return float64(s.Resent) }),
	counter(nil, "vstun_director_sync_lost_changes_total", "Changes of connections that came faster than they could "+
		"be sent.", func(s *api.Sync) float64 { return float64(s.ChangesLost) }),
	counter(nil, "vstun_director_sync_inexpressible_records_total", "Records that the mode ipvs has no form for.",
		func(s *api.Sync) float64 { return float64(s.Inexpressible) }),
	counter(nil, "vstun_director_sync_send_errors_total", "Datagrams that the kernel refused to send.",
		func(s *api.Sync) float64 { return float64(s.SendErrors) }),
}

var syncRefused = prometheus.NewDesc("vstun_director_sync_refused_total", "Refused datagrams and records of peers, by "+
	"reason.", []string{"reason"}, nil)

// syncPeerSeries is the metrics of another director.
var syncPeerSeries = []series[api.SyncPeer]{
	gauge(ofPeer, "vstun_director_sync_peer_alive", "Whether the director has been heard within three seconds: 1 or 0.",
		func(p *api.SyncPeer) float64 { return boolean(p.State == "alive") }),
	counter(ofPeer, "vstun_director_sync_peer_received_records_total", "Records of its connections that were taken.",
		func(p *api.SyncPeer) float64 { return float64(p.Received.Records) }),
	counter(ofPeer, "vstun_director_sync_peer_lost_datagrams_total", "Its datagrams that did not come.",
		func(p *api.SyncPeer) float64 { return float64(p.Lost) }),
}

var ofPeer = []string{"peer"}

var syncTableAge = prometheus.NewDesc("vstun_director_sync_peer_table_age_seconds", "Time since its whole table came. "+
	"Absent while that is missing.", ofPeer, nil)

var syncHeard = prometheus.NewDesc("vstun_director_sync_peer_heard", "Whether the director has been heard within ten "+
	"minutes: 1 or 0.", ofPeer, nil)

// sendSync sends the metrics of s, none if s is nil.
func sendSync(ch chan<- prometheus.Metric, s *api.Sync) {
	if s == nil {
		return
	}
	for i := range syncSeries {
		syncSeries[i].send(ch, s)
	}
	for i := range s.Peers {
		p := &s.Peers[i]
		for j := range syncPeerSeries {
			syncPeerSeries[j].send(ch, p, p.Address)
		}
		if p.Bulk != nil {
			ch <- prometheus.MustNewConstMetric(syncTableAge, gaugeValue, *p.Bulk, p.Address)
		}
	}
	sendHeard(ch, s)
	for _, reason := range slices.Sorted(slices.Values(connsync.FaultNames())) {
		ch <- prometheus.MustNewConstMetric(syncRefused, prometheus.CounterValue, float64(s.Refused[reason]), reason)
	}
}

// sendHeard sends whether each peer has been heard. An idle kernel director sends nothing: the mode ipvs has no such
// metric.
func sendHeard(ch chan<- prometheus.Metric, s *api.Sync) {
	if s.Mode != "vstun" {
		return
	}
	for i := range s.Peers {
		ch <- prometheus.MustNewConstMetric(syncHeard, gaugeValue, 1, s.Peers[i].Address)
	}
	for _, address := range s.Unheard {
		ch <- prometheus.MustNewConstMetric(syncHeard, gaugeValue, 0, address)
		syncPeerSeries[0].send(ch, &api.SyncPeer{}, address)
	}
}
