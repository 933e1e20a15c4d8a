// Package bench measures the packet path, in one run and on one machine, against plain forwarding by the kernel and
// against two loops that do less than a director: one as fast and one as slow as such a loop can be. Ratios are what it
// is about; the absolute figures depend on the machine.
//
//	client ──► router ──► director ──► router
//	generator             program      counts and drops
//	└─ its CPU, up to the TUN ┘└ the director's ┘
//
// Packets are UDP in 60-byte frames. The generator's CPU carries them into the director's TUN device, at more than any
// program takes from there, and the program's CPU from there on. With plain forwarding, where no program takes them
// over, the generator's CPU carries them all the way. They end at the far end of the director's link: on a veth link,
// what further hosts do with a packet is done, and charged, on the CPU of its sender.
//
// In each round everything is measured once, one variant after the other, and ratios are taken within the round, so
// that a machine which is slow for a while is slow for both sides of a ratio. Given are the median of the rounds, and
// the smallest and the largest.
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

// Options say what to run.
type Options struct {
	JSON  bool   // print data instead of the table
	Quick bool   // a check that everything works, within a minute; the figures are rough
	Bin   string // directory of the programs director, realserver and lab; empty for that of this program
	// Against is a directory of the programs of another version, which are measured in alternation with those in Bin,
	// and nothing else is; empty for none.
	Against string
	Prefix  string    // of the namespaces' names, as in lab.Spec; empty for "vstun-bench"
	Status  io.Writer // gets a line for each step; nil for none

	timing *timing // of tests
}

// timing is how long and how often is measured.
type timing struct {
	// rounds of floods: many, and short, since the machine's speed may change from one second to the next
	floods int
	rounds int           // of all else
	flows  int           // the larger number of them
	settle time.Duration // of a flood, before its window
	window time.Duration // of a flood
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

// results is everything that was measured.
type results struct {
	floods  map[floodKey]*flood
	streams map[streamKey]Sample // bits a second
	trips   map[string]*trips    // by way
	skipped []string

	disturbed int // measurements that failed and were repeated
}

// streamKey is a TCP stream's way and direction.
type streamKey struct {
	way      string
	download bool
}

// trips is the latency of one-byte round trips, in nanoseconds, by round.
type trips struct{ p50, p99 Sample }

// Run measures and writes the report to out. Bars that are missed are in the report and no error.
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

// interrupted replaces an error that is only the consequence of the user's interrupt.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return errors.New("benchmark interrupted")
	}
	return err
}

// complete checks the options and fills in what is missing.
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

// attempts is the number of times that one measurement is tried: a machine that is busy with other work can disturb it.
const attempts = 4

// repeat runs one measurement, which adds its result only when it succeeds. It repeats, reports and counts a failed
// one. It returns the last error when every attempt fails, and the first one when ctx is cancelled.
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
	// Packets are counted as they are on a wire: those that the director gives to the kernel together are cut before
	// its link, as for most network cards.
	const cut = "tx-udp-segmentation"
	if err := b.lab.Director.Offload(cut, false); err != nil {
		return nil, err
	}
	o.status("does each way deliver?")
	for _, w := range b.ways {
		if err := b.prove(ctx, w, t.flows); err != nil {
			return nil, err
		}
	}
	for round := range t.floods {
		o.status("packets, round %d of %d", round+1, t.floods)
		for _, flows := range []int{1, t.flows} {
			for _, w := range b.ways {
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
			for _, road := range b.roads() {
				measure := func() error {
					rate, err := b.iperf(ctx, road.addr, download, o.timing.stream)
					if err != nil {
						return fmt.Errorf("%s: %w%s", road.name, err, road.lastWords())
					}
					k := streamKey{road.name, download}
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
		for _, road := range b.roads() {
			measure := func() error {
				p50, p99, err := b.roundTrips(ctx, road.addr, o.timing.trips)
				if err != nil {
					return fmt.Errorf("%s: %w%s", road.name, err, road.lastWords())
				}
				t := r.trips[road.name]
				if t == nil {
					t = &trips{}
					r.trips[road.name] = t
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

// roads are the ways of TCP: the kernel's, to an address of web1's own, and the director's as users run it, by either
// kind of tunnel, of both versions.
func (b *bed) roads() []*way {
	roads := []*way{{name: wayPlain, addr: plainTCP}, b.findWay(wayDirectorAll), b.findWay(wayGUEAll)}
	if b.against != "" {
		roads = append(roads, b.findWay(wayOldAll), b.findWay(wayOldGUEAll))
	}
	return roads
}
