package metrics

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"vstun/balancer/secondchance"
	"vstun/cmd/internal/api"
)

// tablesSeries is the metrics of the tables that a director sends to agents. There are none without [second_chance].
var tablesSeries = []series[api.Tables]{
	counter(nil, "vstun_director_tables_changes_total", "Changes of the tables of mh that agents get.",
		func(t *api.Tables) float64 { return float64(t.Version) }),
	counter(nil, "vstun_director_tables_sent_datagrams_total", "Datagrams with tables sent to agents.",
		func(t *api.Tables) float64 { return float64(t.Sent) }),
	gauge(nil, "vstun_director_tables_too_large", "Services whose tables no datagram can carry.",
		func(t *api.Tables) float64 { return float64(len(t.TooLarge)) }),
}

var (
	tablesRefused = prometheus.NewDesc("vstun_director_tables_refused_total", "Refused datagrams of agents, by reason.",
		[]string{"reason"}, nil)
	tablesCurrent = prometheus.NewDesc("vstun_director_tables_agent_current", "Whether the agent of a realserver has "+
		"answered that it has the last tables: 1 or 0.", []string{"realserver"}, nil)
)

// sendTables sends the metrics of t, none if t is nil.
func sendTables(ch chan<- prometheus.Metric, t *api.Tables) {
	if t == nil {
		return
	}
	for i := range tablesSeries {
		tablesSeries[i].send(ch, t)
	}
	for _, a := range t.Agents {
		ch <- prometheus.MustNewConstMetric(tablesCurrent, gaugeValue, boolean(a.Current), a.Address)
	}
	for _, reason := range slices.Sorted(slices.Values(secondchance.FaultNames())) {
		ch <- prometheus.MustNewConstMetric(tablesRefused, counterValue, float64(t.Refused[reason]), reason)
	}
}

// chanceSeries is the metrics of an agent's second chances. There are none while they are off.
var chanceSeries = []series[api.SecondChance]{
	counter(nil, "vstun_agent_second_chance_forwarded_packets_total", "Packets sent on to other realservers.",
		func(c *api.SecondChance) float64 { return float64(c.Forwarded.Packets) }),
	counter(nil, "vstun_agent_second_chance_received_packets_total", "Packets that other realservers have sent on.",
		func(c *api.SecondChance) float64 { return float64(c.Received) }),
	counter(nil, "vstun_agent_second_chance_questions_total", "Connections that the kernel was asked for.",
		func(c *api.SecondChance) float64 { return float64(c.Queries) }),
	counter(nil, "vstun_agent_second_chance_unasked_packets_total", "Packets of unknown connections beyond the bound "+
		"of questions.", func(c *api.SecondChance) float64 { return float64(c.Unasked) }),
	counter(nil, "vstun_agent_second_chance_tables_total", "Tables of directors taken.",
		func(c *api.SecondChance) float64 { return float64(c.Tables) }),
	gauge(nil, "vstun_agent_second_chance_directors", "Directors that have sent tables.",
		func(c *api.SecondChance) float64 { return float64(len(c.Directors)) }),
}

var chanceRefused = prometheus.NewDesc("vstun_agent_second_chance_refused_total", "Refused datagrams with tables, by "+
	"reason.", []string{"reason"}, nil)

// sendChance sends the metrics of c, none if c is nil.
func sendChance(ch chan<- prometheus.Metric, c *api.SecondChance) {
	if c == nil {
		return
	}
	for i := range chanceSeries {
		chanceSeries[i].send(ch, c)
	}
	for _, reason := range slices.Sorted(slices.Values(secondchance.FaultNames())) {
		ch <- prometheus.MustNewConstMetric(chanceRefused, counterValue, float64(c.Refused[reason]), reason)
	}
}
