// Package metrics is the Prometheus metrics of both programs and the HTTP server for them. They are collected at each
// request, from the status that the control socket serves too. The packet path does not depend on this package.
package metrics

import (
	"maps"
	"math"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"vstun/encap/packet/drop"
	"vstun/encap/packet/stats"
)

// A few servers request metrics every few seconds. With thousands of realservers an answer takes half a second of a
// CPU: more than maxScrapes requests at a time are refused.
const (
	maxScrapes   = 3
	counterValue = prometheus.CounterValue
	gaugeValue   = prometheus.GaugeValue
)

// handler answers with the metrics of c, of Go's runtime and of the process.
func handler(c prometheus.Collector) http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(c, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes})
}

// series is the metrics of one name, with a value for each T.
type series[T any] struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*T) float64 // NaN: this T has no such metric
}

// absent is the value of a metric that does not exist.
func absent() float64 { return math.NaN() }

func (s *series[T]) send(ch chan<- prometheus.Metric, of *T, labels ...string) {
	if v := s.value(of); !math.IsNaN(v) {
		ch <- prometheus.MustNewConstMetric(s.desc, s.kind, v, labels...)
	}
}

// counter returns a series that only grows. Its name ends with the unit and _total.
func counter[T any](labels []string, name, help string, value func(*T) float64) series[T] {
	return series[T]{prometheus.NewDesc(name, help, labels, nil), counterValue, value}
}

func gauge[T any](labels []string, name, help string, value func(*T) float64) series[T] {
	return series[T]{prometheus.NewDesc(name, help, labels, nil), gaugeValue, value}
}

// boolean returns b as a metric's value.
func boolean(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// ago returns the Unix time in seconds, rounded to a tenth: else it would differ a little from request to request.
func ago(seconds float64) float64 {
	return math.Round((float64(time.Now().UnixMilli())/1000-seconds)*10) / 10
}

// buildInfo returns the metric of value 1 whose labels name the program and its version.
func buildInfo(program, version string) prometheus.Metric {
	goVersion := ""
	if info, ok := debug.ReadBuildInfo(); ok {
		goVersion = info.GoVersion
	}
	return prometheus.MustNewConstMetric(buildDesc, gaugeValue, 1, program, version, goVersion)
}

var buildDesc = prometheus.NewDesc("vstun_build_info", "Which program answers: a constant 1.",
	[]string{"program", "version", "goversion"}, nil)

// sendDrops sends the packets refused, by reason. A known reason that has not occurred has the value 0, so that its
// first packet shows as a rise. labels come before the reason.
func sendDrops(ch chan<- prometheus.Metric, desc *prometheus.Desc, known func(drop.Reason) bool,
	drops map[string]uint64, labels ...string) {
	all := map[string]uint64{}
	for d := drop.Accept + 1; d < drop.NumReasons; d++ {
		if known(d) {
			all[d.String()] = 0
		}
	}
	maps.Copy(all, drops)
	for reason, n := range all {
		ch <- prometheus.MustNewConstMetric(desc, counterValue, float64(n), append(slices.Clone(labels), reason)...)
	}
}

// sendBatches sends a histogram of the sizes of batches for each queue.
func sendBatches(ch chan<- prometheus.Metric, desc *prometheus.Desc, queues []*stats.Batches) {
	for i, q := range queues {
		sendBatch(ch, desc, strconv.Itoa(i), q)
	}
}

// sendBatch sends the histogram of a queue. Its sum is the packets read from the queue.
func sendBatch(ch chan<- prometheus.Metric, desc *prometheus.Desc, queue string, q *stats.Batches) {
	var count, sum uint64
	buckets := map[float64]uint64{}
	for n, times := range q.Read() {
		count += times
		sum += times * uint64(n)
		if n > 0 && n&(n-1) == 0 { // 1, 2, 4, … MaxBatch
			buckets[float64(n)] = count
		}
	}
	ch <- prometheus.MustNewConstHistogram(desc, count, float64(sum), buckets, queue)
}
