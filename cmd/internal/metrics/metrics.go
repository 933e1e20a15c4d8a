// Package metrics is what Prometheus reads of both programs, and the HTTP server on which it does. Everything is
// collected when somebody asks, from what the control socket answers too: the packet path knows nothing of it.
package metrics

import (
	"maps"
	"math"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"vstun/encap/packet/drop"
	"vstun/encap/packet/stats"
)

// Metrics are asked for by a few servers every few seconds. With thousands of realservers an answer takes half a second
// of a CPU: more at a time are refused.
const (
	askedAtOnce  = 3
	counterValue = prometheus.CounterValue
	gaugeValue   = prometheus.GaugeValue
)

// handler answers with the metrics of c, of Go's runtime and of the process.
func handler(c prometheus.Collector) http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(c, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{MaxRequestsInFlight: askedAtOnce})
}

// series is the metrics of one name, with a value of each T.
type series[T any] struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*T) float64 // none: there is none of this T
}

// none is the value of what there is none of.
func none() float64 { return math.NaN() }

func (s *series[T]) send(ch chan<- prometheus.Metric, of *T, labels ...string) {
	if v := s.value(of); !math.IsNaN(v) {
		ch <- prometheus.MustNewConstMetric(s.desc, s.kind, v, labels...)
	}
}

// counter is a series that only grows. Its name says so, and the unit.
func counter[T any](labels []string, name, help string, value func(*T) float64) series[T] {
	return series[T]{prometheus.NewDesc(name, help, labels, nil), counterValue, value}
}

func gauge[T any](labels []string, name, help string, value func(*T) float64) series[T] {
	return series[T]{prometheus.NewDesc(name, help, labels, nil), gaugeValue, value}
}

// yes is a truth as Prometheus has it.
func yes(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// ago is when it was, in seconds of Unix time to a tenth: else the time that answering takes would make it another one
// each time.
func ago(seconds float64) float64 {
	return math.Round((float64(time.Now().UnixMilli())/1000-seconds)*10) / 10
}

// buildInfo is a metric of value 1 whose labels say which program answers.
func buildInfo(program, version string) prometheus.Metric {
	goVersion := ""
	if info, ok := debug.ReadBuildInfo(); ok {
		goVersion = info.GoVersion
	}
	return prometheus.MustNewConstMetric(buildDesc, gaugeValue, 1, program, version, goVersion)
}

var buildDesc = prometheus.NewDesc("vstun_build_info", "Which program answers: a constant 1.",
	[]string{"program", "version", "goversion"}, nil)

// sendDrops sends the packets refused, by reason: those of a program's reasons that have not occurred too, so that the
// first one shows as a rise.
func sendDrops(ch chan<- prometheus.Metric, desc *prometheus.Desc, known func(drop.Reason) bool,
	drops map[string]uint64) {
	all := map[string]uint64{}
	for d := drop.Accept + 1; d < drop.NumReasons; d++ {
		if known(d) {
			all[d.String()] = 0
		}
	}
	maps.Copy(all, drops)
	for reason, n := range all {
		ch <- prometheus.MustNewConstMetric(desc, counterValue, float64(n), reason)
	}
}

// sendBatches sends a histogram of the sizes of batches for each queue.
func sendBatches(ch chan<- prometheus.Metric, desc *prometheus.Desc, queues []*stats.Batches) {
	for i, q := range queues {
		sendBatch(ch, desc, strconv.Itoa(i), q)
	}
}

// sendBatch sends the histogram of a queue. Its sum is the packets that were read from it.
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
