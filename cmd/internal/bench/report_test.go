package bench

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

// made is results as if measured: every figure of the kernel and of the loops is 100, of the directors ours.
func made(ours float64) *results {
	r := &results{floods: map[floodKey]*flood{}, streams: map[streamKey]Sample{}, trips: map[string]*trips{}}
	value := func(path string) Sample {
		if strings.HasPrefix(path, "director") {
			return Sample{ours, 2 * ours, 3 * ours}
		}
		return Sample{100, 200, 300}
	}
	for _, w := range paths() {
		for _, flows := range []int{1, manyFlows} {
			v := value(w.name)
			r.floods[floodKey{w.name, flows}] = &flood{delivered: v, offered: over(v, Sample{.25, .25, .25}), cpu: v,
				share: Sample{1, 1, 1}}
		}
	}
	for _, path := range []string{pathPlainLAN, pathDRAll, pathPlainNAT, pathNATAll} {
		for _, download := range []bool{false, true} {
			r.streams[streamKey{path, download}] = value(path)
		}
	}
	for _, path := range []string{pathPlain, pathDirectorAll, pathGUEAll} {
		for _, download := range []bool{false, true} {
			r.streams[streamKey{path, download}] = value(path)
		}
		r.trips[path] = &trips{value(path), value(path)}
	}
	return r
}

func report(ours float64, change func(*results)) *Report {
	res := made(ours)
	if change != nil {
		change(res)
	}
	timing := fullTiming()
	return newReport(Options{timing: &timing}, Machine{Kernel: "6.1", CPUs: 2}, res)
}

func TestBars(t *testing.T) {
	const cpu, naive, flows = "CPU time per packet, director : floor, 1 flow", "packets a second, director : naive, " +
		"1 flow", "CPU time per packet, director, 10,000 flows : 1 flow"
	const up, down = "TCP upload, director : plain forwarding", "TCP download, director : plain forwarding"
	const gue, gueUp = "CPU time per packet, director with gue : with ipip, 1 flow",
		"TCP upload, director with gue : plain forwarding"
	const drCPU, natCPU = "CPU time per packet, dr : tun, 1 flow", "CPU time per packet, nat : tun, 1 flow"
	const drUp, natUp, natDown = "TCP upload, dr : plain forwarding", "TCP upload, nat : plain forwarding",
		"TCP download, nat : plain forwarding"
	const keep = "CPU time per packet, with keep : without, 10,000 flows"
	for _, c := range []struct {
		ours float64
		want map[string]bool
	}{
		{100, map[string]bool{cpu: true, naive: false, flows: true, up: true, down: true, gue: true, gueUp: true,
			drCPU: true, natCPU: true, keep: true, drUp: true, natUp: true, natDown: true}},
		{160, map[string]bool{cpu: false, naive: true, flows: true, up: true, down: true, gue: true, gueUp: true,
			drCPU: true, natCPU: true, keep: true, drUp: true, natUp: true, natDown: true}},
		// just so
		{115, map[string]bool{cpu: true, naive: false, flows: true, up: true, down: true, gue: true, gueUp: true,
			drCPU: true, natCPU: true, keep: true, drUp: true, natUp: true, natDown: true}},
		{85, map[string]bool{cpu: true, naive: false, flows: true, up: true, down: false, gue: true, gueUp: true,
			drCPU: true, natCPU: true, keep: true, drUp: false, natUp: true, natDown: true}},
		{40, map[string]bool{cpu: true, naive: false, flows: true, up: false, down: false, gue: true, gueUp: false,
			drCPU: true, natCPU: true, keep: true, drUp: false, natUp: false, natDown: false}},
	} {
		seen := 0
		for _, row := range report(c.ours, nil).Ratios {
			if row.Bar == nil {
				continue
			}
			seen++
			want, known := c.want[row.Name]
			if !known || *row.Met != want {
				t.Errorf("%v: %s = %v, bar %v: met %v, want %v", c.ours, row.Name, row.Median, *row.Bar, *row.Met, want)
			}
		}
		if seen != len(c.want) {
			t.Errorf("%d bars, want %d", seen, len(c.want))
		}
	}
}

func TestTable(t *testing.T) {
	var out strings.Builder
	if err := report(160, nil).writeTable(&out); err != nil {
		t.Fatal(err)
	}
	text := out.String()
	for _, want := range []string{"Linux 6.1", "≤ 1.15  ✗ missed", "≥ 1.50  ✓ met", "12 of 13 bars met",
		"director, all CPUs, 10,000 flows: CPU time"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	for _, bad := range []string{"NaN", "%!", "SKIPPED", "Note"} {
		if strings.Contains(text, bad) {
			t.Errorf("%q in\n%s", bad, text)
		}
	}
	for i, line := range strings.Split(text, "\n") {
		if i > 0 && utf8.RuneCountInString(line) > 120 {
			t.Errorf("%d columns: %s", utf8.RuneCountInString(line), line)
		}
	}
}

func TestWhatMakesFiguresDoubtful(t *testing.T) {
	r := report(160, func(res *results) {
		res.streams, res.skipped = map[streamKey]Sample{}, []string{"TCP: no iperf3"}
		f := res.floods[floodKey{pathFloor, 1}]
		f.offered = f.delivered
		res.floods[floodKey{pathNaive, 1}].share = Sample{0.2, 0.3, 1}
	})
	var out strings.Builder
	if err := r.writeTable(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"SKIPPED: TCP: no iperf3", "Note: floor, 1 flow: the generator offered no more " +
		"than 1.00",
		"Note: naive, 1 flow: something else ran on its CPU, of which it had 30 %", "6 of 7 bars met"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "TCP upload") {
		t.Errorf("a row without figures in\n%s", out.String())
	}
}

func TestJSON(t *testing.T) {
	var out strings.Builder
	if err := report(160, nil).writeJSON(&out); err != nil {
		t.Fatal(err)
	}
	var r struct {
		Machine map[string]any
		Ratios  []struct {
			Name                string
			Median, Least, Most float64
			Rounds              []float64
			Bar                 *struct {
				Is    string
				Limit float64
			}
			Met *bool
		}
		Skipped, Notes []string
	}
	if err := json.Unmarshal([]byte(out.String()), &r); err != nil {
		t.Fatal(err)
	}
	first := r.Ratios[0]
	if first.Median != 1.6 || len(first.Rounds) != 3 || first.Bar == nil || first.Bar.Is != "<=" ||
		first.Bar.Limit != 1.15 || *first.Met {
		t.Errorf("%+v", first)
	}
	if second := r.Ratios[1]; second.Bar != nil || second.Met != nil {
		t.Errorf("a row without a bar: %+v", second)
	}
	if r.Skipped == nil || r.Notes == nil {
		t.Error("null where a list should be")
	}
}
