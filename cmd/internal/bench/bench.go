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
	"time"

	"vstun/cmd/internal/daemon"
)

// Options are the options of a run.
type Options struct {
	JSON  bool   // print data instead of the table
	Quick bool   // only check, within a minute, that everything works; the figures are rough
	Bin   string // directory of the programs director, realserver and lab; "": this program's directory
	// Against is a directory with the programs of another version. If it is set, the run measures only these and the
	// programs in Bin, in alternation.
	Against string
	Prefix  string    // of the namespaces' names, as in lab.Spec; "": "vstun-bench"
	Status  io.Writer // gets a line for each step; nil: none

	timing *timing // of tests
}

// timing is the number and the durations of measurements.
type timing struct {
	// rounds of floods: many short ones, since the machine's speed may change within a second
	floods int
	rounds int           // of all other measurements
	flows  int           // the larger number of flows
	settle time.Duration // time of a flood before its window
	window time.Duration // measured time of a flood
	stream int           // seconds of a TCP stream
	trips  int           // round trips
}

func fullTiming() timing {
	return timing{floods: 25, rounds: 7, flows: manyFlows, settle: 60 * time.Millisecond,
		window: 200 * time.Millisecond, stream: 3, trips: 5000}
}

func quickTiming() timing {
	return timing{floods: 5, rounds: 3, flows: manyFlows, settle: 60 * time.Millisecond, window: 150 * time.Millisecond,
		stream: 1, trips: 1000}
}

// results are the results of all measurements.
type results struct {
	floods  map[floodKey]*flood
	streams map[streamKey]Sample // bits a second
	trips   map[string]*trips    // by the name of the path
	skipped []string

	disturbed int // measurements that failed and were repeated
}

// streamKey is a TCP stream's path and direction.
type streamKey struct {
	path     string
	download bool
}

// trips is the latency of one-byte round trips, in nanoseconds, by round.
type trips struct{ p50, p99 Sample }

// Run measures and writes the report to out. A missed bar is in the report and is no error.
func Run(ctx context.Context, out io.Writer, o Options) (err error) {
	if err := o.complete(); err != nil {
		return err
	}
	begin := time.Now()
	m, err := thisMachine()
	if err != nil {
		return err
	}
	o.status("starting hosts and programs")
	b, err := newBed(ctx, o, m)
	if err != nil {
		return interrupted(ctx, err)
	}
	defer func() { err = errors.Join(err, b.close()) }()
	if o.Against == "" {
		if err := b.openMethods(ctx, o); err != nil {
			return interrupted(ctx, err)
		}
	}
	res, err := b.measure(ctx, o)
	if err != nil {
		return interrupted(ctx, err)
	}
	r := newReport(o, m, res)
	r.Seconds = time.Since(begin).Round(time.Millisecond).Seconds()
	if o.JSON {
		return r.writeJSON(out)
	}
	return r.writeTable(out)
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

// measure runs all rounds.
func (b *bed) measure(ctx context.Context, o Options) (*results, error) {
	t := *o.timing
	r := &results{floods: map[floodKey]*flood{}, streams: map[streamKey]Sample{}, trips: map[string]*trips{}}
	// The packets are counted as on a wire: the director's super-packets are cut before its link, as for most network
	// cards.
	const cut = "tx-udp-segmentation"
	if err := b.lab.Director.Offload(cut, false); err != nil {
		return nil, err
	}
	o.status("does each path deliver?")
	for _, w := range b.paths {
		if err := b.prove(ctx, w, t.flows); err != nil {
			return nil, err
		}
	}
	for round := range t.floods {
		o.status("packets, round %d of %d", round+1, t.floods)
		for _, flows := range []int{1, t.flows} {
			for _, w := range b.paths {
				k := floodKey{w.name, flows}
				if r.floods[k] == nil {
					r.floods[k] = &flood{}
				}
				measure := func() error { return b.flood(ctx, w, flows, t, r.floods[k]) }
				if err := r.repeat(ctx, o, measure); err != nil {
					return nil, err
				}
			}
		}
	}
	if err := b.lab.Director.Offload(cut, true); err != nil {
		return nil, err
	}
	if err := b.measureStreams(ctx, o, r); err != nil {
		return nil, err
	}
	return r, b.measureTrips(ctx, o, r)
}

// measureStreams measures TCP, unless iperf3 is missing.
func (b *bed) measureStreams(ctx context.Context, o Options, r *results) error {
	if _, err := exec.LookPath("iperf3"); err != nil {
		r.skipped = append(r.skipped, "TCP upload and download: iperf3 is not installed (make deps installs it)")
		o.status("SKIPPED: %s", r.skipped[0])
		return nil
	}
	for round := range o.timing.rounds {
		o.status("TCP streams, round %d of %d", round+1, o.timing.rounds)
		for _, download := range []bool{false, true} {
			for _, p := range b.allTCPPaths() {
				if download && p.uploads {
					continue
				}
				measure := func() error {
					rate, err := p.bed.iperf(ctx, p.addr, p.port, download, o.timing.stream)
					if err != nil {
						return fmt.Errorf("%s: %w%s", p.name, err, p.lastWords())
					}
					k := streamKey{p.name, download}
					r.streams[k] = append(r.streams[k], rate)
					return nil
				}
				if err := r.repeat(ctx, o, measure); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// measureTrips measures latency.
func (b *bed) measureTrips(ctx context.Context, o Options, r *results) error {
	e, err := startEcho(b.web)
	if err != nil {
		return err
	}
	defer e.close()
	o.status("round trips, %d rounds", o.timing.rounds)
	for range o.timing.rounds {
		for _, p := range b.tcpPaths() {
			measure := func() error {
				p50, p99, err := b.roundTrips(ctx, p.addr, o.timing.trips)
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

// tcpPaths returns the paths of TCP: the kernel's, to an address of web1, and the director's as users run it, by both
// tunnels. With Against it returns them for both versions.
func (b *bed) tcpPaths() []*path {
	paths := []*path{{name: pathPlain, addr: plainTCP}, b.findPath(pathDirectorAll), b.findPath(pathGUEAll)}
	if b.against != "" {
		paths = append(paths, b.findPath(pathOldAll), b.findPath(pathOldGUEAll))
	}
	return paths
}

// tcpPath is a path of TCP streams.
type tcpPath struct {
	*path
	bed     *bed
	port    int  // of web1's server
	uploads bool // no downloads: replies take the path of plain forwarding
}

// allTCPPaths returns the TCP paths of this lab, and those of the methods' labs.
func (b *bed) allTCPPaths() []tcpPath {
	var all []tcpPath
	for _, w := range b.tcpPaths() {
		all = append(all, tcpPath{path: w, bed: b, port: iperfPort})
	}
	return append(all, b.methods...)
}
