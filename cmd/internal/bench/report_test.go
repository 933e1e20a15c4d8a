package bench

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"
	"unicode/utf8"
)

// made is results as if measured: every figure of the kernel and of the loops is 100, of the directors ours.
func made(ours float64) *results {
	r := newResults()
	value := func(path string) Sample {
		if strings.HasPrefix(path, "director") || strings.HasPrefix(path, "fast path") {
			return Sample{ours, 2 * ours, 3 * ours}
		}
		return Sample{100, 200, 300}
	}
	names := []string{pathFast, pathIPVS}
	for _, w := range paths() {
		names = append(names, w.name)
	}
	names = append(names, pathSealed, pathGUEBeside)
	for _, name := range names {
		for _, flows := range []int{1, manyFlows} {
			v := value(name)
			r.floods[floodKey{name, flows}] = &flood{delivered: v, offered: over(v, Sample{.25, .25, .25}), cpu: v,
				share: Sample{1, 1, 1}}
		}
	}
	for _, path := range []string{pathPlain, pathDirectorAll, pathGUEAll, pathFast, pathFastGUE, pathFastDirector,
		pathFastAgent, pathIPVS, pathPlainLAN, pathDRAll, pathDROff, pathPlainNAT, pathNATAll, pathNATOff,
		pathSealedAll, pathWireGuardGo} {
		for _, download := range []bool{false, true} {
			k := streamKey{path, download}
			r.streams[k], r.loads[k] = value(path), &load{machine: value(path), process: value(path)}
		}
		r.trips[path], r.requests[path] = &trips{value(path), value(path)}, value(path)
	}
	r.most = most{plain: value(pathPlain), fast: value(pathFast), connections: value(pathFast), memory: value(pathFast)}
	r.connsOff = connCost{value(pathPlain), value(pathPlain)}
	r.connsFast = connCost{value(pathFast), value(pathFast)}
	r.untilFast, r.idleMaps, r.flowMemory = value(pathFast), value(pathFast), value(pathFast)
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
	const sealed = "TCP upload, director with wireguard : wireguard-go"
	const keep = "CPU time per packet, with keep : without, 10,000 flows"
	type rows = map[string]bool
	// Of the fast path: packets with 1, many and most flows; uploads and download; round trip, requests, connections.
	fast := func(one, many, most, up, down, trip, asked, conn bool) rows {
		const packets, plain = "packets a second, fast path : plain forwarding, ", " : plain forwarding"
		return rows{packets + "1 flow": one, packets + "10,000 flows": many, packets + "1,000,000 flows": most,
			"TCP upload, fast path" + plain: up, "TCP upload, fast path with gue" + plain: up,
			"TCP download, fast path" + plain: down, "round trip, median, fast path" + plain: trip,
			"HTTP requests a second, fast path" + plain:         asked,
			"CPU time of a new connection, fast path : without": conn}
	}
	for _, c := range []struct {
		ours float64
		fast rows
		want rows
	}{
		{100, fast(true, true, true, true, true, true, true, true),
			rows{cpu: true, naive: false, flows: true, up: true, down: true, gue: true, gueUp: true,
				drCPU: true, natCPU: true, keep: true, drUp: true, sealed: true, natUp: true, natDown: true}},
		{160, fast(true, true, true, true, true, false, true, false),
			rows{cpu: false, naive: true, flows: true, up: true, down: true, gue: true, gueUp: true,
				drCPU: true, natCPU: true, keep: true, drUp: true, sealed: true, natUp: true, natDown: true}},
		// just so
		{115, fast(true, true, true, true, true, true, true, false),
			rows{cpu: true, naive: false, flows: true, up: true, down: true, gue: true, gueUp: true,
				drCPU: true, natCPU: true, keep: true, drUp: true, sealed: true, natUp: true, natDown: true}},
		{85, fast(false, true, true, false, false, true, false, true),
			rows{cpu: true, naive: false, flows: true, up: true, down: false, gue: true, gueUp: true,
				drCPU: true, natCPU: true, keep: true, drUp: false, sealed: false, natUp: true, natDown: true}},
		{40, fast(false, false, false, false, false, true, false, true),
			rows{cpu: true, naive: false, flows: true, up: false, down: false, gue: true, gueUp: false,
				drCPU: true, natCPU: true, keep: true, drUp: false, sealed: false, natUp: false, natDown: false}},
	} {
		seen := 0
		maps.Copy(c.want, c.fast)
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
	for _, want := range []string{"Linux 6.1", "≤ 1.15  ✗ missed", "≥ 1.50  ✓ met", "20 of 23 bars met",
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

// With Kernel the rows of the kernel's paths are left, without bars.
func TestKernelReport(t *testing.T) {
	timing := fullTiming()
	var out strings.Builder
	r := newReport(Options{timing: &timing, Kernel: true}, Machine{Kernel: "6.1", CPUs: 1}, made(160))
	if err := r.writeTable(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"packets a second, kernel IPVS-TUN : plain forwarding, 10,000 flows",
		"TCP upload, kernel IPVS-TUN : plain forwarding", "round trip, median, kernel IPVS-TUN : plain forwarding",
		"kernel IPVS-TUN, 1 flow: from the director on", "packets a second, fast path : plain forwarding, 1 flow"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	for _, bad := range []string{"NaN", "%!", "≥", "bars met", "floor", "naive"} {
		if strings.Contains(out.String(), bad) {
			t.Errorf("%q in\n%s", bad, out.String())
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
		"Note: naive, 1 flow: something else ran on its CPU, of which it had 30 %", "10 of 13 bars met"} {
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

func TestFlowCount(t *testing.T) {
	for n, want := range map[int]string{1: "1 flow", 100: "100 flows", 1000: "1,000 flows", 10_000: "10,000 flows",
		1_000_000: "1,000,000 flows", 12_003_045: "12,003,045 flows"} {
		if got := flowCount(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}
