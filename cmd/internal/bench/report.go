package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"vstun/cmd/internal/daemon"
)

// Report is the result of a run. Scripts rely on its JSON names and on the names of the ratios.
type Report struct {
	Version string   `json:"version"`
	Machine Machine  `json:"machine"`
	Quick   bool     `json:"quick"`
	Floods  int      `json:"flood_rounds"`
	Rounds  int      `json:"rounds"`  // of streams and round trips
	Seconds float64  `json:"seconds"` // duration of the run
	Ratios  []Ratio  `json:"ratios"`
	Figures []Figure `json:"figures"`
	Skipped []string `json:"skipped"` // measurements that were not made, and why
	Notes   []string `json:"notes"`   // reasons to doubt figures
}

// Value is the summary of all rounds for one row.
type Value struct {
	Median float64 `json:"median"`
	Least  float64 `json:"least"`
	Most   float64 `json:"most"`
	Rounds Sample  `json:"rounds"`
}

// Ratio is a row of ratios, each of two figures from the same round.
type Ratio struct {
	Name string `json:"name"`
	Value
	Bar *Bar `json:"bar,omitempty"` // nil: for information
	// Met reports whether the median meets the bar.
	Met *bool `json:"met,omitempty"`
}

// Bar is the bound that a ratio should meet.
type Bar struct {
	Is    string  `json:"is"` // "<=" or ">="
	Limit float64 `json:"limit"`
}

// Figure is a row of absolute figures.
type Figure struct {
	Name string `json:"name"`
	Unit string `json:"unit"`
	Value
}

func newValue(s Sample) Value {
	v := Value{Median: s.Median(), Rounds: s}
	v.Least, v.Most = s.Spread()
	return v
}

func atMost(limit float64) *Bar  { return &Bar{"<=", limit} }
func atLeast(limit float64) *Bar { return &Bar{">=", limit} }

func (b *Bar) met(v float64) bool {
	if b.Is == "<=" {
		return v <= b.Limit
	}
	return v >= b.Limit
}

const (
	busy      = 0.3 // load of other programs above which the report has a note
	saturated = 1.1 // offered : delivered below which the generator was the bottleneck
	hungry    = 0.9 // CPUs below which an overloaded program was kept from working
)

// newReport makes the rows of all results.
func newReport(o Options, m Machine, res *results) *Report {
	r := &Report{Version: daemon.Version(), Machine: m, Quick: o.Quick, Floods: o.timing.floods,
		Rounds: o.timing.rounds, Skipped: append([]string{}, res.skipped...), Notes: []string{}}
	if m.Load > busy {
		r.Notes = append(r.Notes, fmt.Sprintf("the machine was at work on something else before the start (load "+
			"%.1f): expect figures to spread", m.Load))
	}
	if o.Quick {
		r.Notes = append(r.Notes, "a quick run: the figures are rough")
	}
	if res.disturbed > 0 {
		r.Notes = append(r.Notes, fmt.Sprintf("measurements that were disturbed and repeated: %d", res.disturbed))
	}
	r.Notes = append(r.Notes, res.notes...)
	if o.Against != "" {
		r.against(res, o.timing.flows)
		return r
	}
	if o.WireGuard {
		r.sealed(res)
		return r
	}
	if o.Kernel {
		r.floodFigures(res, kernelPaths(), o.timing.flows)
	} else {
		r.floods(res, o.timing.flows)
	}
	r.streams(res)
	r.trips(res)
	r.fastPath(res, *o.timing)
	r.sealed(res)
	r.kernelIPVS(res, o.timing.flows)
	if o.Kernel {
		r.withoutBars()
	}
	return r
}

// withoutBars makes all rows information: the bars are for two CPUs.
func (r *Report) withoutBars() {
	for i := range r.Ratios {
		r.Ratios[i].Bar, r.Ratios[i].Met = nil, nil
	}
}

// ratio adds a row, unless it has no values.
func (r *Report) ratio(name string, a, b Sample, bar *Bar) {
	s := over(a, b)
	if len(s) == 0 {
		return
	}
	row := Ratio{Name: name, Value: newValue(s), Bar: bar}
	if bar != nil {
		met := bar.met(row.Median)
		row.Met = &met
	}
	r.Ratios = append(r.Ratios, row)
}

// figure adds a row with an absolute figure, unless it has no values.
func (r *Report) figure(name, unit string, s Sample) {
	if len(s) > 0 {
		r.Figures = append(r.Figures, Figure{name, unit, newValue(s)})
	}
}

// flowCount returns a number of flows in words.
func flowCount(n int) string {
	switch {
	case n == 1:
		return "1 flow"
	case n < 1000:
		return fmt.Sprintf("%d flows", n)
	}
	text := fmt.Sprintf("%03d flows", n%1000)
	for n /= 1000; n >= 1000; n /= 1000 {
		text = fmt.Sprintf("%03d,%s", n%1000, text)
	}
	return fmt.Sprintf("%d,%s", n, text)
}

// floods adds the rows of 60-byte packets.
func (r *Report) floods(res *results, many int) {
	one := func(path string) *flood { return res.floods[floodKey{path, 1}] }
	all := func(path string) *flood { return res.floods[floodKey{path, many}] }
	r.ratio("CPU time per packet, director : floor, 1 flow", one(pathDirector).cpu, one(pathFloor).cpu, atMost(1.15))
	r.ratio(fmt.Sprintf("CPU time per packet, director : floor, %s", flowCount(many)), all(pathDirector).cpu,
		all(pathFloor).cpu, nil)
	r.ratio(fmt.Sprintf("CPU time per packet, director, %s : 1 flow", flowCount(many)), all(pathDirector).cpu,
		one(pathDirector).cpu, atMost(1.10))
	r.ratio(fmt.Sprintf("CPU time per packet, floor, %s : 1 flow", flowCount(many)), all(pathFloor).cpu,
		one(pathFloor).cpu,
		nil)
	r.ratio("packets a second, director : naive, 1 flow", one(pathDirector).delivered, one(pathNaive).delivered,
		atLeast(1.5))
	r.ratio(fmt.Sprintf("packets a second, director : naive, %s", flowCount(many)), all(pathDirector).delivered,
		all(pathNaive).delivered, nil)
	r.ratio("CPU time per packet, director with gue : with ipip, 1 flow", one(pathGUE).cpu, one(pathDirector).cpu,
		atMost(1.0))
	r.ratio("CPU time per packet, dr : tun, 1 flow", one(pathDR).cpu, one(pathDirector).cpu, atMost(1.05))
	r.ratio("CPU time per packet, nat : tun, 1 flow", one(pathNAT).cpu, one(pathDirector).cpu, atMost(1.15))
	r.ratio(fmt.Sprintf("CPU time per packet, with keep : without, %s", flowCount(many)), all(pathDirector).cpu,
		all(pathPrivate).cpu, atMost(1.03))
	r.ratio("packets a second, director : plain forwarding, 1 flow", one(pathDirector).delivered,
		one(pathPlain).delivered, nil)
	r.ratio(fmt.Sprintf("packets a second, director : plain forwarding, %s", flowCount(many)),
		all(pathDirector).delivered,
		all(pathPlain).delivered, nil)
	r.floodFigures(res, paths(), many)
}

// floodFigures adds the absolute figures of 60-byte packets by these paths.
func (r *Report) floodFigures(res *results, paths []opening, many int) {
	for _, n := range []int{1, many} {
		for _, w := range paths {
			f := res.floods[floodKey{w.name, n}]
			if f == nil {
				continue
			}
			name := fmt.Sprintf("%s, %s", w.name, flowCount(n))
			r.figure(name, "packets/s", f.delivered)
			r.figure(name+": CPU time", "ns/packet", f.cpu)
			if len(f.cpu) > 0 {
				r.doubt(name, f)
			}
		}
		hop := each(res.floods[floodKey{pathPlain, n}].cost(), res.floods[floodKey{pathAtDirector, n}].cost(),
			minus)
		r.figure(fmt.Sprintf("plain forwarding, %s: from the director on", flowCount(n)), "ns/packet", hop)
	}
}

// doubt notes why a program's packets a second may be below its real limit.
func (r *Report) doubt(name string, f *flood) {
	switch offered, share := over(f.offered, f.delivered).Median(), f.share.Median(); {
	case offered < saturated:
		r.Notes = append(r.Notes, fmt.Sprintf("%s: the generator offered no more than %.2f of what was delivered: "+
			"the path carries more than that", name, offered))
	case share < hungry:
		r.Notes = append(r.Notes, fmt.Sprintf("%s: something else ran on its CPU, of which it had %.0f %%: its "+
			"packets a second say little", name, 100*share))
	}
}

// streams adds the rows of TCP streams.
func (r *Report) streams(res *results) {
	rate := func(path string, download bool) Sample { return res.streams[streamKey{path, download}] }
	r.ratio("TCP upload, director : plain forwarding", rate(pathDirectorAll, false), rate(pathPlain, false),
		atLeast(0.45))
	r.ratio("TCP download, director : plain forwarding", rate(pathDirectorAll, true), rate(pathPlain, true),
		atLeast(0.97))
	r.ratio("TCP upload, director with gue : plain forwarding", rate(pathGUEAll, false), rate(pathPlain, false),
		atLeast(0.70))
	r.ratio("TCP download, director with gue : plain forwarding", rate(pathGUEAll, true), rate(pathPlain, true), nil)
	for _, m := range []struct {
		name           string
		on, off, plain string
		download       bool
		bar            float64
	}{
		{"TCP upload, dr", pathDRAll, pathDROff, pathPlainLAN, false, 0.90},
		{"TCP upload, nat", pathNATAll, pathNATOff, pathPlainNAT, false, 0.80},
		{"TCP download, nat", pathNATAll, pathNATOff, pathPlainNAT, true, 0.80},
	} {
		plain := rate(m.plain, m.download)
		r.ratio(m.name+" : plain forwarding", rate(m.on, m.download), plain, atLeast(m.bar))
		r.ratio(m.name+", without fast path : plain forwarding", rate(m.off, m.download), plain, nil)
	}
	for _, d := range []struct {
		name     string
		download bool
	}{{"TCP upload", false}, {"TCP download", true}} {
		for _, path := range []string{pathPlain, pathDirectorAll, pathGUEAll, pathFast, pathFastGUE, pathFastDirector,
			pathFastAgent, pathIPVS, pathPlainLAN, pathDRAll, pathDROff, pathPlainNAT, pathNATAll, pathNATOff} {
			r.figure(d.name+", "+path, "Mbit/s", rate(path, d.download).times(1e-6))
		}
	}
}

// trips adds the rows of round trips.
func (r *Report) trips(res *results) {
	ours, plain := res.trips[pathDirectorAll], res.trips[pathPlain]
	r.ratio("round trip, median, director : plain forwarding", ours.p50, plain.p50, nil)
	r.ratio("round trip, 99th percentile, director : plain forwarding", ours.p99, plain.p99, nil)
	for _, w := range []struct {
		name string
		t    *trips
	}{{pathPlain, plain}, {pathDirectorAll, ours}, {pathGUEAll, res.trips[pathGUEAll]},
		{pathFast, res.trips[pathFast]}, {pathIPVS, res.trips[pathIPVS]}} {
		if w.t == nil {
			continue
		}
		r.figure("round trip, median, "+w.name, "µs", w.t.p50.times(1e-3))
		r.figure("round trip, 99th percentile, "+w.name, "µs", w.t.p99.times(1e-3))
	}
}

func (r *Report) writeJSON(out io.Writer) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(r)
}

// writeTable writes the report as text.
func (r *Report) writeTable(out io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "vstun %s, Linux %s, %d CPUs (%s), generator on CPU %d, director on CPU %d; %d rounds of "+
		"packets, %d of TCP, %.0f s\n\n", r.Version, r.Machine.Kernel,
		r.Machine.CPUs, r.Machine.Processor, r.Machine.GeneratorCPU, r.Machine.DirectorCPU, r.Floods, r.Rounds,
		r.Seconds)
	fmt.Fprintf(&b, "%-66s %8s   %-17s %s\n", "Ratio", "median", "spread", "bar")
	met, barred := 0, 0
	for _, row := range r.Ratios {
		bar := ""
		if row.Bar != nil {
			barred++
			sign, verdict := "≤", "✗ missed"
			if row.Bar.Is == ">=" {
				sign = "≥"
			}
			if *row.Met {
				met++
				verdict = "✓ met"
			}
			bar = fmt.Sprintf("%s %.2f  %s", sign, row.Bar.Limit, verdict)
		}
		line := fmt.Sprintf("%-66s %8.3f   %-17s %s", row.Name, row.Median, fmt.Sprintf("%.3f … %.3f", row.Least,
			row.Most), bar)
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	fmt.Fprintf(&b, "\n%-66s %10s   %-23s %s\n", "Figure (60-byte frames, TCP, one byte there and back)", "median",
		"spread", "unit")
	for _, row := range r.Figures {
		digits := 0
		if row.Median < 1000 {
			digits = 1
		}
		fmt.Fprintf(&b, "%-66s %10.*f   %-23s %s\n", row.Name, digits, row.Median, fmt.Sprintf("%.*f … %.*f", digits,
			row.Least, digits, row.Most), row.Unit)
	}
	b.WriteString("\n")
	for _, text := range r.Skipped {
		fmt.Fprintf(&b, "SKIPPED: %s\n", text)
	}
	for _, text := range r.Notes {
		fmt.Fprintf(&b, "Note: %s.\n", text)
	}
	if barred > 0 {
		fmt.Fprintf(&b, "%d of %d bars met.\n", met, barred)
	}
	_, err := io.WriteString(out, b.String())
	return err
}
