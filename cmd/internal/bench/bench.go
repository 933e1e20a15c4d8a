// Package bench measures the packet path in one run on one machine. It compares the director with plain forwarding by
// the kernel and with two loops that do less than a director: a fast one and a simple, slow one. The ratios are the
// result; the absolute figures depend on the machine.
//
//	client ──► router ──► director ──► router
//	generator             program      counts and drops
//	└─ its CPU, up to the TUN ┘└ the director's ┘
//
// Packets are UDP in 60-byte frames. The generator's CPU carries them into the director's TUN device, faster than any
// program reads from it. The program's CPU carries them from there on. With plain forwarding no program reads them, and
// the generator's CPU carries them all along. They end at the far end of the director's link: on a veth link, the
// sender's CPU also does the work of the next hosts.
//
// Packets of the fast path do not pass a program. The generator's CPU carries them all along, as with plain forwarding:
// the packets a second that arrive, under more than the path can carry, are what one CPU forwards in either case. The
// fast path has a lab of its own, with the same hosts and links, so that packets of all other paths pass no BPF
// program. Its flows are in the kernel before they are measured.
//
// The kernel's own IPVS, where there is one, is measured like the fast path, in a lab of its own.
//
// Each round measures every variant once, one after the other. Ratios are taken within the round, so that a temporary
// slowdown of the machine affects both sides of a ratio. The report has the median of the rounds, the smallest and the
// largest value.
package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"vstun/cmd/internal/daemon"
	"vstun/cmd/internal/lab"
)

// Options are the options of a run.
type Options struct {
	JSON  bool   // print data instead of the table
	Quick bool   // only check, within two minutes, that everything works; the figures are rough
	Bin   string // directory of the programs director, realserver and lab; "": this program's directory
	// Against is a directory with the programs of another version. If it is set, the run measures only these and the
	// programs in Bin, in alternation.
	Against string
	// Kernel measures only what the kernel forwards: plain forwarding, its own IPVS, and the fast path. One CPU is
	// enough for that. Of the director's TUN device there are TCP uploads, downloads and round trips.
	Kernel bool
	// WireGuard measures only what has to do with WireGuard.
	WireGuard bool
	Prefix    string    // of the namespaces' names, as in lab.Spec; "": "vstun-bench"
	Status    io.Writer // gets a line for each step; nil: none

	timing *timing // of tests
}

// timing is the number and the durations of measurements.
type timing struct {
	// rounds of floods: many short ones, since the machine's speed may change within a second
	floods     int
	rounds     int           // of all other measurements
	flows      int           // the larger number of flows
	most       int           // the largest number of flows; 0: not measured
	mostRounds int           // rounds with that
	settle     time.Duration // time of a flood before its window
	window     time.Duration // measured time of a flood
	stream     int           // seconds of a TCP stream, and of HTTP requests
	trips      int           // round trips
	loads      int           // rounds at a constant rate
	conns      int           // new connections
	first      int           // connections whose way to the fast path is measured
}

func fullTiming() timing {
	return timing{floods: 45, rounds: 13, flows: manyFlows, most: 1_000_000, mostRounds: 5,
		settle: 40 * time.Millisecond, window: 80 * time.Millisecond, stream: 1, trips: 3000, loads: 3, conns: 5000,
		first: 15}
}

func quickTiming() timing {
	return timing{floods: 3, rounds: 2, flows: manyFlows, settle: 60 * time.Millisecond, window: 150 * time.Millisecond,
		stream: 1, trips: 1000, loads: 1, conns: 2000, first: 3}
}

// results are the results of all measurements.
type results struct {
	floods   map[floodKey]*flood
	streams  map[streamKey]Sample // bits a second
	trips    map[string]*trips    // by the name of the path
	requests map[string]Sample    // HTTP requests a second, by the name of the path
	loads    map[streamKey]*load

	connsOff, connsFast connCost
	most                most
	untilFast           Sample // seconds
	idleMaps            Sample // bytes of BPF maps
	flowMemory          Sample // bytes of BPF maps a connection

	skipped []string
	notes   []string

	disturbed int // measurements that failed and were repeated
}

func newResults() *results {
	return &results{floods: map[floodKey]*flood{}, streams: map[streamKey]Sample{}, trips: map[string]*trips{},
		requests: map[string]Sample{}, loads: map[streamKey]*load{}}
}

// skip notes a measurement that is not made, and why.
func (r *results) skip(o Options, why string) {
	r.skipped = append(r.skipped, why)
	o.status("SKIPPED: %s", why)
}

// streamKey is a TCP stream's path and direction.
type streamKey struct {
	path     string
	download bool
}

// trips is the latency of one-byte round trips, in nanoseconds, by round.
type trips struct{ p50, p99 Sample }

// Run measures and writes the report to out. A missed bar is in the report and is no error.
func Run(ctx context.Context, out io.Writer, o Options) error {
	if err := o.complete(); err != nil {
		return err
	}
	begin := time.Now()
	m, err := thisMachine(o.leastCPUs())
	if err != nil {
		return err
	}
	res := newResults()
	measure := measureAll
	if o.WireGuard {
		measure = measureSealed
	}
	if err := measure(ctx, o, m, res); err != nil {
		return interrupted(ctx, err)
	}
	r := newReport(o, m, res)
	r.Seconds = time.Since(begin).Round(time.Millisecond).Seconds()
	if o.JSON {
		return r.writeJSON(out)
	}
	return r.writeTable(out)
}

// measureAll measures everything that o asks for.
func measureAll(ctx context.Context, o Options, m Machine, r *results) (err error) {
	o.status("starting hosts and programs")
	b, err := newBed(ctx, o, m)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	if o.Against == "" {
		if err := b.openFurther(ctx, o, r); err != nil {
			return err
		}
	}
	return b.measure(ctx, o, r)
}

// interrupted returns a plain error in place of one that only results from the user's interrupt.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return errors.New("benchmark interrupted")
	}
	return err
}

// complete checks the options and fills in defaults.
func (o *Options) complete() error {
	if o.Kernel && o.Against != "" || o.WireGuard && (o.Kernel || o.Against != "") {
		return errors.New("--kernel, --against and --wireguard: use one of them")
	}
	if os.Geteuid() != 0 {
		return errors.New("making network namespaces and TUN devices needs root: run it as root")
	}
	if err := daemon.CheckPrivileges(); err != nil {
		return err
	}
	if o.Bin == "" {
		exe, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find the programs: %w: use --bin", err)
		}
		o.Bin = filepath.Dir(exe)
	}
	for _, name := range []string{"director", "realserver", "lab"} {
		if _, err := exec.LookPath(filepath.Join(o.Bin, name)); err != nil {
			return fmt.Errorf("%w: run make build, or say with --bin where the programs are", err)
		}
	}
	if o.Against != "" {
		if _, err := exec.LookPath(filepath.Join(o.Against, "director")); err != nil {
			return fmt.Errorf("--against: %w: name a directory with the programs of another version", err)
		}
	}
	if o.Prefix == "" {
		o.Prefix = "vstun-bench"
	}
	if o.timing == nil {
		t := fullTiming()
		if o.Quick {
			t = quickTiming()
		}
		o.timing = &t
	}
	return nil
}

func (o *Options) status(format string, args ...any) {
	if o.Status != nil {
		fmt.Fprintf(o.Status, "bench: "+format+"\n", args...)
	}
}

// attempts is the number of tries for one measurement: other work on the machine can disturb it.
const attempts = 4

// repeat runs one measurement, which adds its result only when it succeeds. repeat reports and counts a failed attempt,
// and tries again. It returns the last error when every attempt fails, and the first error when ctx is cancelled.
func (r *results) repeat(ctx context.Context, o Options, measure func() error) error {
	for left := attempts - 1; ; left-- {
		err := measure()
		if err == nil || left == 0 || ctx.Err() != nil {
			return err
		}
		r.disturbed++
		o.status("disturbed, repeated: %v", err)
	}
}

// leastCPUs returns the number of CPUs that the run needs. The kernel's paths need the generator's only.
func (o *Options) leastCPUs() int {
	if o.Kernel {
		return 1
	}
	return 2
}

// everything reports whether the run has all measurements.
func (o *Options) everything() bool { return o.Against == "" && !o.Kernel }

// openFurther builds the labs beside the first one.
func (b *bed) openFurther(ctx context.Context, o Options, r *results) error {
	if o.everything() {
		if err := b.openMethods(ctx, o); err != nil {
			return err
		}
	}
	for _, open := range []func(context.Context, Options) (string, error){b.openFast, b.openIPVS} {
		missing, err := open(ctx, o)
		if err != nil {
			return err
		}
		if missing != "" {
			r.skip(o, missing)
		}
	}
	return nil
}

// measure runs all rounds.
func (b *bed) measure(ctx context.Context, o Options, r *results) error {
	whole := func(measure func(context.Context, Options, *results) error) func() error {
		return func() error {
			if !o.everything() {
				return nil
			}
			return measure(ctx, o, r)
		}
	}
	return inTurn(
		whole(b.measureNewConnections),
		func() error { return b.uncut(func() error { return b.measureFloods(ctx, o, r) }) },
		func() error { return b.measureStreams(ctx, o, r) },
		func() error { return b.measureTrips(ctx, o, r) },
		whole(b.measureRequests),
		whole(func(ctx context.Context, o Options, r *results) error { return measureSealed(ctx, o, b.machine, r) }),
		// The last: the director's process looks after all these flows for a while.
		whole(func(ctx context.Context, o Options, r *results) error {
			return b.uncut(func() error { return b.measureMost(ctx, o, r) })
		}),
	)
}

// uncut calls fn while packets are counted as on a wire: the directors' super-packets are cut before their links, as
// for most network cards.
func (b *bed) uncut(fn func() error) (err error) {
	const cut = "tx-udp-segmentation"
	for _, in := range append([]*bed{b}, b.labs...) {
		if err := in.lab.Director.Offload(cut, false); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, in.lab.Director.Offload(cut, true)) }()
	}
	return fn()
}

// flooded is a path that is flooded, and its lab.
type flooded struct {
	*path
	in *bed
}

// allFlooded returns the paths that are flooded. Those of other labs come next to plain forwarding.
func (b *bed) allFlooded() (all []flooded) {
	for _, w := range b.paths {
		if b.kernel && w.process != nil {
			continue
		}
		all = append(all, flooded{w, b})
		if w.name == pathPlain {
			all = append(all, b.beside...)
		}
	}
	return all
}

// measureFloods measures floods of packets.
func (b *bed) measureFloods(ctx context.Context, o Options, r *results) error {
	t := *o.timing
	maps := b.fast != nil && !b.kernel
	if maps {
		if err := b.fast.measureMaps(ctx, r); err != nil {
			return err
		}
	}
	o.status("does each path deliver?")
	for _, w := range b.allFlooded() {
		if err := w.in.prove(ctx, w.path, t.flows); err != nil {
			return err
		}
		if w.fast { // on one CPU, a flood of all flows leaves the director too little time
			if _, err := w.in.fillKernel(ctx, w.path, t.flows); err != nil {
				return err
			}
		}
	}
	for round := range t.floods {
		o.status("packets, round %d of %d", round+1, t.floods)
		for _, flows := range []int{1, t.flows} {
			for _, w := range b.allFlooded() {
				if err := w.in.floodOnce(ctx, o, r, w.path, flows); err != nil {
					return err
				}
			}
		}
	}
	if !maps {
		return nil
	}
	return b.fast.measureMaps(ctx, r)
}

// floodOnce adds a flood to r.
func (b *bed) floodOnce(ctx context.Context, o Options, r *results, w *path, flows int) error {
	f := r.floodOf(w.name, flows)
	return r.repeat(ctx, o, func() error { return b.flood(ctx, w, flows, flows, *o.timing, f) })
}

// floodOf returns the results of a path with this number of flows.
func (r *results) floodOf(path string, flows int) *flood {
	k := floodKey{path, flows}
	if r.floods[k] == nil {
		r.floods[k] = &flood{}
	}
	return r.floods[k]
}

// measureStreams measures TCP, unless iperf3 is missing.
func (b *bed) measureStreams(ctx context.Context, o Options, r *results) error {
	if _, err := exec.LookPath("iperf3"); err != nil {
		r.skip(o, "TCP upload and download: iperf3 is not installed (make deps installs it)")
		return nil
	}
	for round := range o.timing.rounds {
		o.status("TCP streams, round %d of %d", round+1, o.timing.rounds)
		for _, download := range []bool{false, true} {
			for _, p := range inRound(round, b.allTCPPaths()) {
				if download && p.uploads {
					continue
				}
				if err := p.stream(ctx, o, r, download); err != nil {
					return err
				}
			}
		}
	}
	if b.fast != nil {
		r.notes = append(r.notes, b.fast.doubtAgent(ctx)...)
		r.notes = append(r.notes, b.fast.doubtPrograms()...)
	}
	if !o.everything() {
		return nil
	}
	if b.fast != nil {
		if err := b.fast.firstFlows(ctx, o, r); err != nil {
			return err
		}
	}
	return b.measureLoads(ctx, o, r)
}

// measureTrips measures latency.
func (b *bed) measureTrips(ctx context.Context, o Options, r *results) error {
	paths, hosts := b.tcpPaths(), []*lab.Host{b.web}
	for _, w := range b.beside {
		paths = slices.Insert(paths, 1, tcpPath{path: w.path, bed: w.in}) // beside plain forwarding
		hosts = append(hosts, w.in.web)
	}
	for _, h := range hosts {
		e, err := startEcho(h)
		if err != nil {
			return err
		}
		defer e.close()
	}
	o.status("round trips, %d rounds", o.timing.rounds)
	for round := range o.timing.rounds {
		for _, p := range inRound(round, paths) {
			measure := func() error {
				p50, p99, err := p.roundTrips(ctx, o.timing.trips)
				if err != nil {
					return fmt.Errorf("%s: %w%s", p.name, err, p.lastWords())
				}
				t := r.trips[p.name]
				if t == nil {
					t = &trips{}
					r.trips[p.name] = t
				}
				t.p50, t.p99 = append(t.p50, p50), append(t.p99, p99)
				return nil
			}
			if err := r.repeat(ctx, o, measure); err != nil {
				return err
			}
		}
	}
	return nil
}

// tcpPaths returns the TCP paths of this lab: the kernel's, to an address of web1, and the director's as users run it
// but for the fast path, by both tunnels. With Against it returns them for both versions.
func (b *bed) tcpPaths() []tcpPath {
	paths := []*path{{name: pathPlain, addr: plainTCP}, b.findPath(pathDirectorAll), b.findPath(pathGUEAll)}
	if b.against != "" {
		paths = append(paths, b.findPath(pathOldAll), b.findPath(pathOldGUEAll))
	}
	var all []tcpPath
	for _, w := range paths {
		all = append(all, tcpPath{path: w, bed: b, port: iperfPort})
	}
	return all
}

// tcpPath is a path of TCP streams.
type tcpPath struct {
	*path
	bed     *bed
	port    int  // of the web server's server
	uploads bool // no downloads: replies take the path of plain forwarding
}

// server returns the host with the server.
func (p *tcpPath) server() *lab.Host {
	if p.name == pathFastDirector {
		return p.bed.lab.Webs[1]
	}
	return p.bed.web
}

// allTCPPaths returns the TCP paths of this lab, and, beside plain forwarding, those of the others.
func (b *bed) allTCPPaths() []tcpPath { return slices.Insert(b.tcpPaths(), 1, b.methods...) }

// inRound returns paths in the order in which they are measured in a round: in every second one it is reversed, so that
// a machine that becomes slower or faster meanwhile favours none.
func inRound[T any](round int, paths []T) []T {
	paths = slices.Clone(paths)
	if round%2 == 1 {
		slices.Reverse(paths)
	}
	return paths
}
