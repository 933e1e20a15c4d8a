package metrics

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"

	"vstun/cmd/internal/api"
	"vstun/encap/packet/drop"
	"vstun/encap/packet/stats"
)

// Realserver answers with the metrics of a realserver's agent. status is called at each request. batches counts the
// batches of each worker.
func Realserver(status func() api.RealserverStatus, batches []*stats.Batches) http.Handler {
	return handler(&agent{status, batches})
}

// agent collects an agent's metrics.
type agent struct {
	status  func() api.RealserverStatus
	batches []*stats.Batches
}

// agentSeries is the metrics of an agent as a whole.
var agentSeries = []series[api.RealserverStatus]{
	counter(nil, "vstun_agent_received_packets_total", "Packets received from tunnels.",
		func(st *api.RealserverStatus) float64 { return float64(st.In.Packets) }),
	counter(nil, "vstun_agent_received_bytes_total", "Bytes of packets received, with the tunnels' headers.",
		func(st *api.RealserverStatus) float64 { return float64(st.In.Bytes) }),
	counter(nil, "vstun_agent_injected_packets_total", "Packets given to the TUN device.",
		func(st *api.RealserverStatus) float64 { return float64(st.Out.Packets) }),
	counter(nil, "vstun_agent_injected_bytes_total", "Bytes of packets given to the TUN device.",
		func(st *api.RealserverStatus) float64 { return float64(st.Out.Bytes) }),
	counter(nil, "vstun_agent_answer_packets_total", "Answers that left by the TUN device and were forwarded.",
		func(st *api.RealserverStatus) float64 { return float64(st.Answers.Packets) }),
	counter(nil, "vstun_agent_answer_bytes_total", "Bytes of those answers.",
		func(st *api.RealserverStatus) float64 { return float64(st.Answers.Bytes) }),
	counter(nil, "vstun_agent_merged_packets_total", "Packets written as a part of another one, behind it, which "+
		"saves a write each.", func(st *api.RealserverStatus) float64 { return float64(st.Merged) }),
	counter(nil, "vstun_agent_overrun_packets_total", "Packets that the kernel dropped because the agent was too slow.",
		func(st *api.RealserverStatus) float64 { return float64(st.Overruns) }),
	counter(nil, "vstun_agent_questions_total", "Questions of directors' doctors, answered.",
		func(st *api.RealserverStatus) float64 { return float64(st.Questions) }),
	gauge(nil, "vstun_agent_fast_path", "Whether the program in the kernel takes packets out of tunnels: 1 or 0.",
		func(st *api.RealserverStatus) float64 { return boolean(st.FastPath.On) }),
	counter(nil, "vstun_agent_fast_path_packets_total", "Packets received that the program in the kernel has taken.",
		func(st *api.RealserverStatus) float64 { return float64(st.FastPath.Taken.Packets) }),
	counter(nil, "vstun_agent_fast_path_bytes_total", "Bytes of those packets, with the tunnels' headers.",
		func(st *api.RealserverStatus) float64 { return float64(st.FastPath.Taken.Bytes) }),
	gauge(nil, "vstun_agent_config_last_reload_successful",
		"Whether the last reload of the configuration went well: 1 or 0.",
		func(st *api.RealserverStatus) float64 { return boolean(st.Configuration.Error == "") }),
	gauge(nil, "vstun_agent_config_last_reload_success_timestamp_seconds", "When the configuration in force was read.",
		func(st *api.RealserverStatus) float64 { return unixTime(st.Configuration.Read) }),
	gauge(nil, "vstun_agent_queues", "Workers, each with its sockets and a queue of the TUN device.",
		func(st *api.RealserverStatus) float64 { return float64(st.Queues) }),
}

var (
	agentDrops = prometheus.NewDesc("vstun_agent_dropped_packets_total", "Packets refused, by reason.",
		[]string{"reason"}, nil)
	agentBatches = prometheus.NewDesc("vstun_agent_batch_packets", "Reads from the sockets by the packets, or "+
		"trains of them, that came at once; full batches mean that more were waiting.", []string{"queue"}, nil)
	agentFrom = prometheus.NewDesc("vstun_agent_director_packets_total",
		"Packets by outer source, of those that directors allows; a bounded number of the last ones.",
		[]string{"director"}, nil)
	agentMSS = prometheus.NewDesc("vstun_agent_mss_bytes", "TCP MSS that servers advertise: ip 4 or 6.", []string{"ip"},
		nil)
	agentVIP = prometheus.NewDesc("vstun_agent_vip_info", "A VIP that the agent accepts: a constant 1.",
		[]string{"vip"}, nil)
)

// Describe is for the registry.
func (c *agent) Describe(ch chan<- *prometheus.Desc) {
	describe(ch, agentSeries)
	describe(ch, chanceSeries)
	describe(ch, wireguardSeries)
	describe(ch, tunnelSeries)
	ch <- tunnelDrops
	for _, d := range []*prometheus.Desc{buildDesc, agentDrops, agentBatches, agentFrom, agentMSS, agentVIP,
		chanceRefused} {
		ch <- d
	}
}

// Collect is for the registry. It takes the status once.
func (c *agent) Collect(ch chan<- prometheus.Metric) {
	st := c.status()
	ch <- buildInfo(st.Program, st.Version)
	for i := range agentSeries {
		agentSeries[i].send(ch, &st)
	}
	ch <- prometheus.MustNewConstMetric(agentMSS, gaugeValue, float64(st.MSS), "4")
	ch <- prometheus.MustNewConstMetric(agentMSS, gaugeValue, float64(st.MSS6), "6")
	for _, vip := range st.VIPs {
		ch <- prometheus.MustNewConstMetric(agentVIP, gaugeValue, 1, vip)
	}
	for _, c := range st.FromDirectors {
		ch <- prometheus.MustNewConstMetric(agentFrom, counterValue, float64(c.Packets), c.Address)
	}
	sendDrops(ch, agentDrops, drop.Reason.Realserver, st.Drops)
	sendBatches(ch, agentBatches, c.batches)
	sendChance(ch, st.SecondChance)
	sendWireGuard(ch, st.WireGuard)
	sendTunnels(ch, st.Tunnels)
}
