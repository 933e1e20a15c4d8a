package metrics

import (
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"vstun/balancer/fastpath"
	"vstun/cmd/internal/api"
	"vstun/encap/packet/drop"
	"vstun/encap/packet/stats"
)

// Director answers with the metrics of a director. status is called at each request. batches counts the batches of each
// worker for clients. local counts the batches of the worker for the host's own packets.
func Director(status func() api.DirectorStatus, batches []*stats.Batches, local *stats.Batches) http.Handler {
	return handler(&director{status, batches, local})
}

// director collects a director's metrics.
type director struct {
	status  func() api.DirectorStatus
	batches []*stats.Batches
	local   *stats.Batches
}

var (
	ofService    = []string{"service"}
	ofRealserver = []string{"service", "realserver"}
)

// directorSeries is the metrics of a director as a whole.
var directorSeries = []series[api.DirectorStatus]{
	counter(nil, "vstun_director_received_packets_total", "Packets read from the TUN or TAP device.",
		func(st *api.DirectorStatus) float64 { return float64(st.In.Packets) }),
	counter(nil, "vstun_director_received_bytes_total", "Bytes of packets read from the TUN or TAP device.",
		func(st *api.DirectorStatus) float64 { return float64(st.In.Bytes) }),
	counter(nil, "vstun_director_sent_packets_total",
		"Packets sent to realservers, with nat also to clients, and ICMP errors and TCP resets to clients.",
		func(st *api.DirectorStatus) float64 { return float64(st.Out.Packets) }),
	counter(nil, "vstun_director_sent_bytes_total", "Bytes of packets sent, with the tunnels' headers.",
		func(st *api.DirectorStatus) float64 { return float64(st.Out.Bytes) }),
	counter(nil, "vstun_director_resets_total", "TCP resets sent to clients, for packets of unknown connections.",
		func(st *api.DirectorStatus) float64 { return float64(st.Resets) }),
	counter(nil, "vstun_director_overrun_packets_total", "Packets that the kernel dropped because the director was "+
		"too slow.", func(st *api.DirectorStatus) float64 { return float64(st.Overruns) }),
	gauge(nil, "vstun_director_waiting_fragments", "Fragments that wait for the rest of their packets.",
		func(st *api.DirectorStatus) float64 { return float64(st.Waiting) }),
	gauge(nil, "vstun_director_fast_path", "Whether the kernel forwards connections by itself: 1 or 0.",
		func(st *api.DirectorStatus) float64 { return boolean(st.FastPath.On) }),
	gauge(nil, "vstun_director_fast_path_connections", "Connections that the kernel forwards.",
		func(st *api.DirectorStatus) float64 { return float64(st.FastPath.Connections) }),
	counter(nil, "vstun_director_fast_path_packets_total", "Packets received that the kernel has forwarded.",
		func(st *api.DirectorStatus) float64 { return float64(st.FastPath.Taken.Packets) }),
	counter(nil, "vstun_director_fast_path_bytes_total", "Bytes of those.",
		func(st *api.DirectorStatus) float64 { return float64(st.FastPath.Taken.Bytes) }),
	gauge(nil, "vstun_director_waiting_checks", "Health checks that are due and wait for descriptors.",
		func(st *api.DirectorStatus) float64 { return float64(st.Checks.Waiting) }),
	gauge(nil, "vstun_director_queues", "Workers, and queues of the TUN device.",
		func(st *api.DirectorStatus) float64 { return float64(st.Queues) }),
	gauge(nil, "vstun_director_table_entries", "Entries of the connection table.",
		func(st *api.DirectorStatus) float64 { return float64(st.Connections.Count) }),
	gauge(nil, "vstun_director_table_max_entries", "Bound of the connection table (connections.max).",
		func(st *api.DirectorStatus) float64 { return float64(st.Connections.Max) }),
	gauge(nil, "vstun_director_table_half_open_entries", "TCP connections whose client has not answered yet.",
		func(st *api.DirectorStatus) float64 { return float64(st.Connections.HalfOpen) }),
	gauge(nil, "vstun_director_table_max_half_open_entries", "Bound of half-open connections "+
		"(connections.half_open_max); 0: none of their own.",
		func(st *api.DirectorStatus) float64 { return float64(st.Connections.HalfOpenMax) }),
	counter(nil, "vstun_director_table_evictions_total", "Half-open connections that made room for new ones.",
		func(st *api.DirectorStatus) float64 { return float64(st.Connections.Evicted) }),
	gauge(nil, "vstun_director_leaving_realservers", "Realservers that are not configured any more, but have "+
		"connections.", func(st *api.DirectorStatus) float64 { return float64(st.Leaving.Realservers) }),
	gauge(nil, "vstun_director_leaving_connections", "Connections of those.",
		func(st *api.DirectorStatus) float64 { return float64(st.Leaving.Connections) }),
	counter(nil, "vstun_director_neighbour_answers_total", "Answers to ARP requests and neighbour solicitations for "+
		"VIPs.", func(st *api.DirectorStatus) float64 { return float64(st.Neighbours.Answers) }),
	counter(nil, "vstun_director_neighbour_announcements_total", "Gratuitous ARP requests and unsolicited neighbour "+
		"advertisements of VIPs.",
		func(st *api.DirectorStatus) float64 { return float64(st.Neighbours.Announcements) }),
	counter(nil, "vstun_director_neighbour_conflicts_total", "Packets by which other hosts use a VIP.",
		func(st *api.DirectorStatus) float64 { return float64(st.Neighbours.Conflicts) }),
	counter(nil, "vstun_director_neighbour_send_errors_total", "Answers and announcements that the kernel refused to "+
		"send.", func(st *api.DirectorStatus) float64 { return float64(st.Neighbours.Failed) }),
	counter(nil, "vstun_director_mails_sent_total", "Mails about changes of health that the server has taken.",
		mail(func(m *api.Mail) float64 { return float64(m.Sent) })),
	counter(nil, "vstun_director_mails_failed_total", "Failed attempts at a mail.",
		mail(func(m *api.Mail) float64 { return float64(m.Failed) })),
	counter(nil, "vstun_director_mail_lost_changes_total", "Changes of health that no mail has.",
		mail(func(m *api.Mail) float64 { return float64(m.Lost) })),
	gauge(nil, "vstun_director_config_last_reload_successful", "Whether the last reload of the configuration went "+
		"well: 1 or 0.", func(st *api.DirectorStatus) float64 { return boolean(st.Configuration.Error == "") }),
	gauge(nil, "vstun_director_config_last_reload_success_timestamp_seconds", "When the configuration in force was "+
		"read.", func(st *api.DirectorStatus) float64 { return unixTime(st.Configuration.Read) }),
}

// mail returns the value of a metric of mail, which is absent without notify.mail.
func mail(value func(*api.Mail) float64) func(*api.DirectorStatus) float64 {
	return func(st *api.DirectorStatus) float64 {
		if st.Mail == nil {
			return absent()
		}
		return value(st.Mail)
	}
}

// serviceSeries is the metrics of a service.
var serviceSeries = []series[api.Service]{
	gauge(ofService, "vstun_service_up", "Whether the weights that are up reach the quorum: 1 or 0.",
		func(s *api.Service) float64 { return health(s.Health) }),
	gauge(ofService, "vstun_service_quorum", "Weight that must be up.",
		func(s *api.Service) float64 { return float64(s.Quorum) }),
	gauge(ofService, "vstun_service_up_weight", "Weight of its realservers that are up or unchecked.",
		func(s *api.Service) float64 { return float64(s.WeightUp) }),
	gauge(ofService, "vstun_service_sorry_server_in_use", "Whether its connections go to the sorry server: 1 or 0.",
		func(s *api.Service) float64 { return boolean(s.Sorry) }),
}

// realserverSeries is the metrics of a realserver of a service.
var realserverSeries = []series[api.Realserver]{
	counter(ofRealserver, "vstun_realserver_connections_total", "Connections scheduled to it.",
		func(r *api.Realserver) float64 { return float64(r.Connections) }),
	counter(ofRealserver, "vstun_realserver_packets_total", "Packets of clients sent to it.",
		func(r *api.Realserver) float64 { return float64(r.Forwarded.Packets) }),
	counter(ofRealserver, "vstun_realserver_bytes_total", "Bytes of those, without the tunnel's header.",
		func(r *api.Realserver) float64 { return float64(r.Forwarded.Bytes) }),
	gauge(ofRealserver, "vstun_realserver_weight", "Its weight in the configuration, or as an operator has set it; "+
		"0: it drains.", func(r *api.Realserver) float64 { return float64(r.Weight) }),
	gauge(ofRealserver, "vstun_realserver_effective_weight", "What its health leaves of the weight.",
		func(r *api.Realserver) float64 { return float64(r.Effective) }),
	gauge(ofRealserver, "vstun_realserver_up", "Whether it is up by its checks: 1 or 0. None without a check.",
		func(r *api.Realserver) float64 { return health(r.Health) }),
	gauge(ofRealserver, "vstun_realserver_check_duration_seconds", "Time that the last check took.",
		func(r *api.Realserver) float64 {
			if r.Check == nil || r.Check.Last == 0 {
				return absent()
			}
			return r.Check.Duration
		}),
	gauge(ofRealserver, "vstun_realserver_last_check_timestamp_seconds", "When the last check ended. None before "+
		"the first one.", func(r *api.Realserver) float64 {
		if r.Check == nil || r.Check.Last == 0 {
			return absent()
		}
		return ago(r.Check.Last)
	}),
	gauge(ofRealserver, "vstun_realserver_last_change_timestamp_seconds", "Since when it has been up, or down. None "+
		"before it has changed.", func(r *api.Realserver) float64 {
		if r.Check == nil || r.Check.Since == 0 {
			return absent()
		}
		return ago(r.Check.Since)
	}),
}

var (
	directorDrops = prometheus.NewDesc("vstun_director_dropped_packets_total", "Packets refused, by reason.",
		[]string{"reason"}, nil)
	directorBatches = prometheus.NewDesc("vstun_director_batch_packets", "Packets that were read from a queue of "+
		"the TUN device at once; full batches mean that more were waiting.", []string{"queue"}, nil)
	fastPathRefused = prometheus.NewDesc("vstun_director_fast_path_refused_total", "Times that the kernel could not "+
		"get a connection with many packets, by reason.", []string{"reason"}, nil)
	serviceInfo = prometheus.NewDesc("vstun_service_info", "What a service is: a constant 1.",
		[]string{"service", "protocol", "vips", "ports", "scheduler"}, nil)
	current = prometheus.NewDesc("vstun_realserver_current_connections",
		"Its connections, as IPVS counts them: state active or inactive.", append(ofRealserver, "state"), nil)
)

// Describe is for the registry.
func (c *director) Describe(ch chan<- *prometheus.Desc) {
	describe(ch, directorSeries)
	describe(ch, serviceSeries)
	describe(ch, realserverSeries)
	describe(ch, vrrpSeries)
	describe(ch, syncSeries)
	describe(ch, syncPeerSeries)
	describe(ch, tablesSeries)
	describe(ch, bgpSeries)
	describe(ch, bgpPeerSeries)
	describe(ch, wireguardSeries)
	describe(ch, tunnelSeries)
	describe(ch, nameSeries)
	ch <- tunnelDrops
	for _, d := range []*prometheus.Desc{buildDesc, directorDrops, directorBatches, fastPathRefused, serviceInfo,
		current, vrrpRefused, syncRefused, syncTableAge, syncHeard, tablesRefused, tablesCurrent} {
		ch <- d
	}
}

func describe[T any](ch chan<- *prometheus.Desc, all []series[T]) {
	for i := range all {
		ch <- all[i].desc
	}
}

// Collect is for the registry. It takes the status once.
func (c *director) Collect(ch chan<- prometheus.Metric) {
	st := c.status()
	ch <- buildInfo(st.Program, st.Version)
	for i := range directorSeries {
		directorSeries[i].send(ch, &st)
	}
	sendDrops(ch, directorDrops, drop.Reason.Director, st.Drops)
	sendBatches(ch, directorBatches, c.batches)
	sendBatch(ch, directorBatches, "local", c.local)
	for _, reason := range fastpath.RefusalNames() {
		n := float64(st.FastPath.Refused[reason])
		ch <- prometheus.MustNewConstMetric(fastPathRefused, counterValue, n, reason)
	}
	sendSync(ch, st.Sync)
	sendTables(ch, st.Tables)
	sendBGP(ch, st.BGP)
	sendWireGuard(ch, st.WireGuard)
	sendTunnels(ch, st.Tunnels)
	sendNames(ch, st.Names)
	for i := range st.Services {
		sendService(ch, &st.Services[i])
	}
	for i := range st.VRRP {
		sendVRRP(ch, &st.VRRP[i])
	}
}

func sendService(ch chan<- prometheus.Metric, s *api.Service) {
	ch <- prometheus.MustNewConstMetric(serviceInfo, gaugeValue, 1, s.Name, s.Protocol, strings.Join(s.VIPs, ","),
		strings.Join(s.Ports, ","), s.Scheduler)
	for i := range serviceSeries {
		serviceSeries[i].send(ch, s, s.Name)
	}
	for i := range s.Realservers {
		r := &s.Realservers[i]
		name := r.Name()
		for i := range realserverSeries {
			realserverSeries[i].send(ch, r, s.Name, name)
		}
		ch <- prometheus.MustNewConstMetric(current, gaugeValue, float64(r.Active), s.Name, name, "active")
		ch <- prometheus.MustNewConstMetric(current, gaugeValue, float64(r.Inactive), s.Name, name, "inactive")
	}
}

// health returns "up" as 1 and "down" as 0. An unchecked realserver has no such metric.
func health(state string) float64 {
	switch state {
	case "up":
		return 1
	case "down":
		return 0
	}
	return absent()
}

// unixTime returns t as a metric's value.
func unixTime(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }
