package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/spf13/cobra"

	"vstun/cmd/internal/agent"
	"vstun/cmd/internal/cli"
	"vstun/cmd/internal/director"
	"vstun/encap/packet"
	"vstun/testdata/testkit"
)

// The test binary is also the programs, under their names.
func TestMain(m *testing.M) {
	var root *cobra.Command
	switch filepath.Base(os.Args[0]) {
	case "director":
		root = director.Command()
	case "realserver":
		root = agent.Command()
	case "lab":
		root = &cobra.Command{Use: "lab"}
		root.AddCommand(Command(), LoopCommand())
	default:
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	root.SetContext(ctx)
	os.Exit(cli.Main(root))
}

// options are for a run with this binary as the programs, which must leave nothing behind.
func options(t *testing.T, name string) Options {
	t.Helper()
	if _, err := thisMachine(2); err != nil {
		t.Skip(err)
	}
	return someCPUs(t, name)
}

// someCPUs is options for a run that needs no second CPU.
func someCPUs(t *testing.T, name string) Options {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make network namespaces and TUN devices")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Bin: t.TempDir(), Prefix: fmt.Sprintf("benchtest%d-%s", os.Getpid(), name),
		timing: &timing{floods: 1, rounds: 1, flows: 100, settle: 50 * time.Millisecond, window: 200 * time.Millisecond,
			stream: 1, trips: 50, most: 1000, mostRounds: 1, loads: 1, conns: 500, first: 1}}
	for _, program := range []string{"director", "realserver", "lab"} {
		if err := os.Symlink(self, filepath.Join(o.Bin, program)); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, pattern := range []string{"/run/netns/" + o.Prefix + "*", "/run/" + o.Prefix} {
			if left, err := filepath.Glob(pattern); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		}
	})
	return o
}

// withWireGuardGo builds wireguard-go's own program beside the others.
func withWireGuardGo(t *testing.T, o Options) {
	t.Helper()
	build := exec.Command("go", "build", "-o", filepath.Join(o.Bin, wireguardGo), "golang.zx2c4.com/wireguard")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// measured runs the measurements of o and returns their report.
func measured(t *testing.T, o Options) (r Report) {
	t.Helper()
	var out, status bytes.Buffer
	o.JSON, o.Status = true, &status
	if err := Run(t.Context(), &out, o); err != nil {
		t.Fatalf("%v\n%s", err, status.String())
	}
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestTrace: each step of a round trip has a time, and the sums are those of the steps.
func TestTrace(t *testing.T) {
	testkit.NeedFull(t, "the measurements of the bench take some 10 s each")
	o := someCPUs(t, "trace")
	var out, status bytes.Buffer
	o.Status = &status
	if err := Trace(t.Context(), &out, o); err != nil {
		if errors.Is(err, errNoTracing) {
			t.Skip("SKIPPED: ", err)
		}
		t.Fatalf("%v\n%s", err, status.String())
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != len(steps)+3 {
		t.Fatalf("%d lines:\n%s", len(lines), out.String())
	}
	var sum [2]float64
	for i, line := range lines[1 : len(steps)+2] {
		fields := strings.Fields(line)
		for j := range sum {
			us, err := strconv.ParseFloat(fields[j], 64)
			switch {
			case i < len(steps) && j == 1 && !steps[i].plain:
			case err != nil || us <= 0:
				t.Errorf("%q: %v", line, err)
			case i < len(steps):
				sum[j] += us
			case us < sum[j]-0.5 || us > sum[j]+0.5: // each is rounded
				t.Errorf("together %v, want %v:\n%s", us, sum[j], out.String())
			}
		}
	}
}

// TestStepTimes: the steps of whole round trips count, whatever other threads do meanwhile.
func TestStepTimes(t *testing.T) {
	var trace strings.Builder
	for i := range 20 {
		at := 100 + float64(i)
		for j, line := range []string{
			"trip-client-8959    [000] ..... %f: sys_write(fd: 0x1b, buf: 0x2d342270ccef, count: 1)",
			"trip-client-8959    [000] d.s5. %f: sched_waking: comm=trip-server pid=8967 prio=120 target_cpu=000",
			"a-b c-7             [001] ..... %f: sys_read -> 0x1",
			"trip-server-8967    [000] ..... %f: sys_read -> 0x1",
			"trip-server-8967    [000] ..... %f: sys_read -> 0xfffffffffffffff5",
			"trip-server-8967    [000] d.s5. %f: sched_waking: comm=trip-client pid=8959 prio=120 target_cpu=000",
			"trip-client-8959    [000] ..... %f: sys_read -> 0x1",
		} {
			if i == 7 && j == 3 {
				break // the server's buffer is full
			}
			fmt.Fprintf(&trace, line+"\n", at+float64(j)*1e-5)
		}
	}
	got, err := stepTimes([]byte(trace.String()), true)
	want := []float64{10_000, 20_000, 20_000, 10_000}
	if err != nil || !cmp.Equal(got, want, cmpopts.EquateApprox(0, 1)) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	if got, err := stepTimes([]byte(trace.String()), false); err == nil {
		t.Errorf("without the director's marks: %v", got)
	}
}

// TestEveryVariantDelivers runs all measurements (`make long`). The other tests run parts of them.
func TestEveryVariantDelivers(t *testing.T) {
	testkit.NeedFull(t, "the whole bench takes a minute")
	o := options(t, "smoke")
	withWireGuardGo(t, o)
	r := measured(t, o)
	figures := map[string]float64{}
	for _, f := range r.Figures {
		figures[f.Name] = f.Median
	}
	var want []string
	for _, w := range paths() {
		for _, flows := range []string{"1 flow", "100 flows"} {
			want = append(want, w.name+", "+flows)
			if strings.HasPrefix(w.name, "director") || w.name == pathFloor || w.name == pathNaive {
				want = append(want, w.name+", "+flows+": CPU time")
			}
		}
	}
	for _, path := range []string{pathPlain, pathDirectorAll, pathGUEAll, pathFast} {
		want = append(want, "round trip, median, "+path, "round trip, 99th percentile, "+path)
	}
	skipped := strings.Join(r.Skipped, "\n")
	missing := func(tool string) bool {
		_, err := exec.LookPath(tool)
		if (err != nil) != strings.Contains(skipped, tool) {
			t.Errorf("%s: %v, but skipped: %q", tool, err, skipped)
		}
		return err != nil
	}
	if strings.Contains(skipped, "fast path: ") {
		t.Skip("SKIPPED: " + skipped)
	}
	bars := 12 // without TCP streams and HTTP
	if !missing("iperf3") {
		bars += 10
		want = append(want, "TCP upload, "+pathSealedAll, "TCP upload, "+pathWireGuardGo)
		for _, path := range []string{pathPlain, pathDirectorAll, pathGUEAll, pathFast, pathPlainNAT, pathNATAll,
			pathNATOff} {
			want = append(want, "TCP upload, "+path, "TCP download, "+path)
		}
		for _, path := range []string{pathFastGUE, pathFastDirector, pathFastAgent, pathPlainLAN, pathDRAll,
			pathDROff} {
			want = append(want, "TCP upload, "+path)
		}
		for _, name := range []string{"upload", "ACKs of a download"} {
			want = append(want, "CPU at 1 Gbit/s, "+name+", "+pathPlain+": machine",
				"CPU at 1 Gbit/s, "+name+", "+pathDirectorAll+": process",
				"CPU at 1 Gbit/s, "+name+", "+pathFast+": machine")
		}
		want = append(want, "time until a connection is in the fast path")
	}
	if !missing("wrk") && !missing("nginx") {
		bars++
		for _, path := range []string{pathPlain, pathDirectorAll, pathFast} {
			want = append(want, "HTTP, 64 connections, "+path)
		}
	}
	if !strings.Contains(skipped, pathIPVS+": ") {
		want = append(want, pathIPVS+", 1 flow", pathIPVS+", 100 flows", "round trip, median, "+pathIPVS)
	}
	want = append(want, pathSealed+", 1 flow: CPU time", pathGUEBeside+", 1 flow: CPU time", pathFast+", 1 flow",
		pathFast+", 100 flows", pathFast+", 1,000 flows",
		"connections in the fast path, of 1,000 flows", "new connection, with fast path",
		"new connection, without fast path", "BPF maps of an idle director")
	if !slices.Contains(r.Notes, roomOfMaps) {
		want = append(want, "BPF maps, for each connection in the fast path")
	}
	for _, name := range want {
		if figures[name] <= 0 {
			t.Errorf("%s: %v", name, figures[name])
		}
	}
	got := 0
	for _, row := range r.Ratios {
		if row.Median <= 0 {
			t.Errorf("%s: %v", row.Name, row.Median)
		}
		if row.Bar != nil {
			got++
		}
	}
	if got != bars {
		t.Errorf("%d bars, want %d", got, bars)
	}
	if n := figures["connections in the fast path, of 1,000 flows"]; n < 1000 {
		t.Errorf("%v of 1,000 flows were in the fast path", n)
	}
}

// TestWireGuard: the rows of WireGuard alone. Without wireguard-go's program there is no row of uploads, and the report
// says how to get it.
func TestWireGuard(t *testing.T) {
	testkit.NeedFull(t, "the measurements of the bench take some 10 s each")
	if _, err := exec.LookPath("iperf3"); err != nil {
		t.Skip("SKIPPED: ", err)
	}
	o := options(t, "wireguard")
	o.WireGuard = true
	const up, cpu = "TCP upload, director with wireguard : wireguard-go",
		"CPU time per packet, director with wireguard : with gue, 1 flow"
	for _, want := range [][]string{{cpu}, {up, cpu}} {
		r := measured(t, o)
		var got []string
		for _, row := range r.Ratios {
			got = append(got, row.Name)
			if row.Median <= 0 || (row.Bar != nil) != (row.Name == up) || (row.Met != nil) != (row.Name == up) {
				t.Errorf("%+v", row)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
		if skipped := strings.Join(r.Skipped, "\n"); strings.Contains(skipped, "make bench") != (len(want) == 1) {
			t.Errorf("skipped: %q", skipped)
		}
		withWireGuardGo(t, o)
	}
	o.Kernel = true
	if err := Run(t.Context(), io.Discard, o); err == nil || !strings.Contains(err.Error(), "--wireguard") {
		t.Errorf("with --kernel: %v", err)
	}
}

// older makes a directory with a director that does not know the key that switches the fast path off.
func older(t *testing.T, bin string) string {
	t.Helper()
	dir := t.TempDir()
	script := fmt.Sprintf("#!/bin/sh\nif grep -q fast_path \"$3\"; then echo \"unknown key fast_path\"; exit 1; fi\n"+
		"exec %s/director \"$@\"\n", bin)
	if err := os.WriteFile(filepath.Join(dir, "director"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestAgainst compares the programs with an older version, which are the programs themselves but for a key.
func TestAgainst(t *testing.T) {
	testkit.NeedFull(t, "the measurements of the bench take some 10 s each")
	o := options(t, "against")
	o.Against = older(t, o.Bin)
	r := measured(t, o)
	bars := map[string]bool{}
	for _, row := range r.Ratios {
		if row.Median <= 0 {
			t.Errorf("%s: %v", row.Name, row.Median)
		}
		if row.Bar != nil {
			bars[row.Name] = true
		}
	}
	for _, name := range []string{"CPU time per packet, 1 flow, new : old", "CPU time per packet, 100 flows, new : old",
		"round trip, median, ipip, new : old", "round trip, median, gue, new : old"} {
		if !bars[name] {
			t.Errorf("no bar %q in %v", name, bars)
		}
	}
	if len(r.Skipped) == 0 && !bars["TCP upload, ipip, time per bit, new : old"] {
		t.Errorf("no bar of uploads in %v", bars)
	}
	o.Against = t.TempDir()
	if err := Run(t.Context(), io.Discard, o); err == nil || !strings.Contains(err.Error(), "--against: ") {
		t.Errorf("a directory without programs: %v", err)
	}
}

// cancelling cancels a run once it writes a line with that text.
type cancelling struct {
	text   string
	cancel func()
}

func (c *cancelling) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte(c.text)) {
		c.cancel()
	}
	return len(b), nil
}

func TestInterrupt(t *testing.T) {
	for _, at := range []string{"starting", "deliver", "packets", "WireGuard: packets"} {
		t.Run(at, func(t *testing.T) {
			o := options(t, strings.ReplaceAll(at, ": ", "-"))
			o.WireGuard = strings.HasPrefix(at, "WireGuard")
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			o.Status = &cancelling{at, cancel}
			var out bytes.Buffer
			err := Run(ctx, &out, o)
			if err == nil || err.Error() != "benchmark interrupted" || out.Len() > 0 {
				t.Errorf("got %v and %d bytes", err, out.Len())
			}
		})
	}
}

// pausing stops the naive loop's process when the floods begin, and lets it go on once a measurement is repeated.
type pausing struct {
	t        *testing.T
	paused   int // the process, 0 for none
	repeated int
}

func (p *pausing) Write(b []byte) (int, error) {
	switch {
	case bytes.Contains(b, []byte("packets, round 1")):
		p.paused = child(p.t, Naive)
		if err := syscall.Kill(p.paused, syscall.SIGSTOP); err != nil {
			p.t.Error(err)
		}
	case bytes.Contains(b, []byte("disturbed, repeated")):
		p.repeated++
		if err := syscall.Kill(p.paused, syscall.SIGCONT); err != nil {
			p.t.Error(err)
		}
	}
	return len(b), nil
}

// child returns the id of this process's child that has arg among its arguments.
func child(t *testing.T, arg string) int {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range stats {
		stat, _ := os.ReadFile(path)
		line, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
		_, fields, _ := strings.Cut(string(stat), ") ")
		var state string
		var parent int
		if n, _ := fmt.Sscan(fields, &state, &parent); n == 2 && parent == os.Getpid() &&
			slices.Contains(strings.Split(string(line), "\x00"), arg) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	t.Fatalf("no child runs %q", arg)
	return 0
}

func TestDisturbedRoundIsRepeated(t *testing.T) {
	testkit.NeedFull(t, "the measurements of the bench take some 10 s each")
	o := options(t, "disturbed")
	o.JSON = true
	t.Setenv("PATH", t.TempDir()) // without iperf3: streams are not repeated
	status := &pausing{t: t}
	o.Status = status
	var out bytes.Buffer
	if err := Run(t.Context(), &out, o); err != nil {
		t.Fatal(err)
	}
	var r Report
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("measurements that were disturbed and repeated: %d", status.repeated)
	if status.repeated == 0 || !slices.Contains(r.Notes, want) {
		t.Errorf("repeated %d times; notes: %q", status.repeated, r.Notes)
	}
}

func TestProgramsMissing(t *testing.T) {
	o := options(t, "missing")
	if err := os.Remove(filepath.Join(o.Bin, "director")); err != nil {
		t.Fatal(err)
	}
	if err := Run(t.Context(), &bytes.Buffer{}, o); err == nil || !strings.Contains(err.Error(), "make build") {
		t.Errorf("got %v", err)
	}
}

// gopacket checks the frames independently.
func TestDatagrams(t *testing.T) {
	source, mac := net.HardwareAddr{2, 0, 0, 0, 0, 2}, net.HardwareAddr{2, 0, 0, 0, 0, 3}
	from, to := netip.MustParseAddr("10.0.1.2"), netip.MustParseAddr("198.51.100.80")
	frames := datagrams(source, mac, from, to, manyFlows)
	for _, i := range []int{0, 1, manyFlows - 1} {
		if len(frames[i]) != frameLen {
			t.Errorf("frame %d has %d bytes", i, len(frames[i]))
		}
		p := gopacket.NewPacket(frames[i], layers.LayerTypeEthernet, gopacket.Default)
		if p.ErrorLayer() != nil {
			t.Fatal(p.ErrorLayer().Error())
		}
		ether := p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
		ip := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
		udp := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
		if ether.SrcMAC.String() != source.String() || ether.DstMAC.String() != mac.String() {
			t.Errorf("frame %d: %s to %s", i, ether.SrcMAC, ether.DstMAC)
		}
		if ip.SrcIP.String() != from.String() || ip.DstIP.String() != to.String() || ip.Length != 46 || ip.TTL == 0 {
			t.Errorf("frame %d: %+v", i, ip)
		}
		if packet.Checksum(ip.Contents) != 0 {
			t.Errorf("frame %d: checksum %#x", i, ip.Checksum)
		}
		if int(udp.SrcPort) != firstPort+i || udp.DstPort != discardPort || udp.Length != 26 || len(udp.Payload) != 18 {
			t.Errorf("frame %d: %+v", i, udp)
		}
	}
}

func TestIperfRate(t *testing.T) {
	rate, err := iperfRate([]byte(`{"end": {"sum_sent": {"bits_per_second": 5e9}, "sum_received": ` +
		`{"bits_per_second": 4.5e9}}}`))
	if err != nil || rate != 4.5e9 {
		t.Errorf("%v, %v", rate, err)
	}
	for _, out := range []string{"", "{", "{}", `{"error": "unable to connect to server"}`,
		`{"end": {"sum_received": {"bits_per_second": 0}}}`} {
		if _, err := iperfRate([]byte(out)); err == nil {
			t.Errorf("%q: no error", out)
		}
	}
}

func TestWrkRate(t *testing.T) {
	rate, err := wrkRate([]byte("  65210 requests in 1.10s, 9.95MB read\nRequests/sec:  59283.50\nTransfer/sec: 9MB\n"))
	if err != nil || rate != 59283.5 {
		t.Errorf("%v, %v", rate, err)
	}
	for _, out := range []string{"", "Requests/sec:      0.00\n",
		"  Socket errors: connect 0, read 0, write 0, timeout 1\nRequests/sec:  59283.50\n",
		"  Non-2xx or 3xx responses: 7\nRequests/sec:  59283.50\n"} {
		if _, err := wrkRate([]byte(out)); err == nil {
			t.Errorf("%q: no error", out)
		}
	}
}

// Every flow has another source, in the client's subnet.
func TestFlowSource(t *testing.T) {
	seen := map[netip.AddrPort]bool{}
	from := netip.MustParseAddr("10.0.1.2")
	for i := range fastRoom {
		a, port := flowSource(from, i)
		seen[netip.AddrPortFrom(a, port)] = true
		if !netip.MustParsePrefix("10.0.1.0/24").Contains(a) {
			t.Fatalf("flow %d comes from %v", i, a)
		}
	}
	if len(seen) != fastRoom {
		t.Errorf("%d sources of %d flows", len(seen), fastRoom)
	}
}

// gopacket checks the segments independently.
func TestSegments(t *testing.T) {
	from, to := netip.MustParseAddr("10.0.1.7"), netip.MustParseAddr("198.51.100.80")
	f := segment(net.HardwareAddr{2, 0, 0, 0, 0, 2}, net.HardwareAddr{2, 0, 0, 0, 0, 3}, to)
	for stage, flags := range []string{"S", "A", "PA", "PA", "FA", "A"} {
		setSegment(f, from, 1234, stage)
		p := gopacket.NewPacket(f, layers.LayerTypeEthernet, gopacket.Default)
		if p.ErrorLayer() != nil {
			t.Fatal(p.ErrorLayer().Error())
		}
		ip := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
		tcp := p.Layer(layers.LayerTypeTCP).(*layers.TCP)
		if ip.SrcIP.String() != from.String() || ip.DstIP.String() != to.String() ||
			packet.Checksum(ip.Contents) != 0 || tcp.SrcPort != 1234 || tcp.DstPort != discardPort ||
			len(tcp.Payload) > 0 || len(f) != frameLen {
			t.Errorf("stage %d: %+v, %+v", stage, ip, tcp)
		}
		if tcp.SYN != (flags == "S") || tcp.ACK != strings.Contains(flags, "A") ||
			tcp.FIN != strings.Contains(flags, "F") {
			t.Errorf("stage %d: %+v", stage, tcp)
		}
	}
}

func TestThisMachineHasUsedCPU(t *testing.T) {
	if used, err := machineTime(); err != nil || used <= 0 {
		t.Errorf("%v, %v", used, err)
	}
	if bytes, err := privateMemory(os.Getpid()); err != nil || bytes < 1<<20 {
		t.Errorf("%v bytes of memory, %v", bytes, err)
	}
}

func TestLoopCommandUsage(t *testing.T) {
	for _, args := range [][]string{{}, {"quick"}, {Floor, "--vip", "198.51.100.80", "--from", "10.0.2.2"},
		{Naive, "--to", "fe80::1"}} {
		c := LoopCommand()
		c.SetArgs(args)
		c.SilenceErrors, c.SilenceUsage = true, true
		c.SetContext(t.Context())
		if err := c.Execute(); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
	c := LoopCommand()
	c.SetArgs([]string{Floor})
	c.SilenceErrors, c.SilenceUsage = true, true
	if err := c.Execute(); !errors.As(err, &cli.UsageError{}) || !strings.Contains(err.Error(), "--vip") {
		t.Errorf("got %v", err)
	}
}

func TestThisProcessHasUsedCPU(t *testing.T) {
	before, err := cpuTime(os.Getpid())
	if err != nil || before <= 0 {
		t.Fatalf("%v, %v", before, err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		now, err := cpuTime(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if now > before {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a process that works uses no CPU time")
		}
	}
	if _, err := cpuTime(1<<22 + 1); err == nil {
		t.Error("a process that can't be, past PID_MAX_LIMIT, has CPU time")
	}
}
