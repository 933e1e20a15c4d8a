package bench

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"unsafe"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// Names of the threads at both ends of round trips.
const (
	tripClient = "trip-client"
	tripServer = "trip-server"
)

// nameThread keeps the goroutine in its thread and gives the thread a name.
func nameThread(name string) {
	runtime.LockOSThread()
	b := append([]byte(name), 0)
	_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&b[0])), 0, 0, 0)
}

// mark is a moment of a round trip: an event of the kernel's tracing, and the name of the thread that it concerns. Of a
// wake-up that is the thread that is woken.
type mark struct{ event, thread string }

// step is the time from the mark before to this one.
type step struct {
	to    mark
	what  string
	plain bool // of plain forwarding, too
}

var (
	tripBegins = mark{"sys_enter_write", tripClient}
	steps      = []step{
		{mark{"sched_waking", "director"}, "the client sends; two hops of the kernel take the packet to the TUN device",
			false},
		{mark{"sys_exit_read", "director"}, "the director's worker wakes and reads it", false},
		{mark{"sched_waking", "realserver"}, "the worker decides and sends; two hops, to the agent's socket", false},
		{mark{"sys_exit_recvmmsg", "realserver"}, "the agent wakes and reads it", false},
		{mark{"sched_waking", tripServer}, "the agent writes it to its device; to the server's socket " +
			"(plain: the client sends; three hops)", true},
		{mark{"sys_exit_read", tripServer}, "the server wakes and reads it", true},
		{mark{"sched_waking", tripClient}, "the server answers; two hops, to the client's socket", true},
		{mark{"sys_exit_read", tripClient}, "the client wakes and reads the answer", true},
	}
)

// tracer records events of the kernel in an instance of its own (Linux Documentation/trace/ftrace.rst).
type tracer struct {
	mounted  string // by this tracer; empty: tracefs was there
	instance string
}

// errNoTracing is an error of newTracer.
var errNoTracing = errors.New("the kernel's tracing (tracefs) cannot be used")

// newTracer makes the instance. It mounts tracefs in dir if it is not mounted.
func newTracer(dir string) (t *tracer, err error) {
	t = &tracer{}
	root := "/sys/kernel/tracing"
	if _, err := os.Stat(filepath.Join(root, "instances")); err != nil {
		root = filepath.Join(dir, "tracefs")
		if err := errors.Join(os.MkdirAll(root, 0o700), unix.Mount("tracefs", root, "tracefs", 0, "")); err != nil {
			return nil, fmt.Errorf("%w: mount %s: %w", errNoTracing, root, err)
		}
		t.mounted = root
	}
	t.instance = filepath.Join(root, "instances", filepath.Base(dir))
	defer func() {
		if err != nil {
			err = errors.Join(err, t.close())
		}
	}()
	if err := os.Mkdir(t.instance, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return t, fmt.Errorf("%w: %w", errNoTracing, err)
	}
	err = errors.Join(t.set("tracing_on", "0"), t.set("trace_clock", "mono"), t.set("buffer_size_kb", "8192"))
	filters := map[string]string{} // by event
	for _, m := range append(marks(false), tripBegins) {
		if filters[m.event] != "" {
			filters[m.event] += " || "
		}
		filters[m.event] += fmt.Sprintf("comm == %q", m.thread)
	}
	for event, filter := range filters {
		group := "syscalls"
		if event == "sched_waking" {
			group = "sched"
		}
		at := filepath.Join("events", group, event)
		err = errors.Join(err, t.set(filepath.Join(at, "filter"), filter), t.set(filepath.Join(at, "enable"), "1"))
	}
	if err != nil {
		return t, fmt.Errorf("%w: %w", errNoTracing, err)
	}
	return t, nil
}

// marks returns the marks of a round trip, but for its begin.
func marks(plain bool) (all []mark) {
	for _, s := range steps {
		if s.plain || !plain {
			all = append(all, s.to)
		}
	}
	return all
}

func (t *tracer) set(file, value string) error {
	return os.WriteFile(filepath.Join(t.instance, file), []byte(value), 0o600)
}

// record calls fn and returns the events that happened meanwhile, as text.
func (t *tracer) record(fn func() error) ([]byte, error) {
	if err := errors.Join(t.set("trace", ""), t.set("tracing_on", "1")); err != nil {
		return nil, err
	}
	err := fn()
	if err = errors.Join(err, t.set("tracing_on", "0")); err != nil {
		return nil, err
	}
	return os.ReadFile(filepath.Join(t.instance, "trace"))
}

// close removes what newTracer has made.
func (t *tracer) close() error {
	err := unix.Rmdir(t.instance)
	if t.mounted != "" {
		err = errors.Join(err, unix.Unmount(t.mounted, 0), os.Remove(t.mounted))
	}
	return err
}

// happened returns the time of the event that a line of a trace reports, in nanoseconds, and what it is a mark of. A
// system call that has read nothing is none.
func happened(line string) (at float64, m mark, ok bool) {
	// trip-client-8959    [000] ..... 14565.024895: sys_read -> 0x1
	head, rest, ok := strings.Cut(line, ": ")
	fields := strings.Fields(head)
	if !ok || len(fields) < 4 {
		return 0, m, false
	}
	seconds, err := strconv.ParseFloat(fields[len(fields)-1], 64)
	if err != nil {
		return 0, m, false
	}
	m.thread = strings.TrimSpace(head[:strings.LastIndex(head[:strings.Index(head, " [")], "-")])
	switch name, details, _ := strings.Cut(rest, " "); {
	case name == "sched_waking:":
		m.event = "sched_waking"
		m.thread, _, _ = strings.Cut(strings.TrimPrefix(details, "comm="), " pid=")
	case strings.HasPrefix(name, "sys_write("):
		m.event = "sys_enter_write"
	default:
		result, exit := strings.CutPrefix(details, "-> ")
		n, err := strconv.ParseUint(result, 0, 64)
		if !exit || err != nil || int64(n) <= 0 {
			return 0, m, false
		}
		m.event = strings.Replace(name, "sys_", "sys_exit_", 1)
	}
	return seconds * 1e9, m, true
}

// stepTimes returns the mean time of each step in the round trips of a trace, in nanoseconds. It leaves out trips whose
// marks are not in order, and the slowest tenth.
func stepTimes(trace []byte, plain bool) ([]float64, error) {
	want := marks(plain)
	var all [][]float64 // times of the marks of a trip, its begin among them
	var trip []float64
	for line := range bytes.Lines(trace) {
		at, m, ok := happened(strings.TrimSpace(string(line)))
		switch {
		case !ok:
		case m == tripBegins:
			trip = append(trip[:0:0], at)
		case len(trip) > 0 && m == want[len(trip)-1]:
			if trip = append(trip, at); len(trip) > len(want) {
				all, trip = append(all, trip), nil
			}
		}
	}
	if len(all) < 10 {
		return nil, fmt.Errorf("only %d whole round trips in a trace of %d bytes", len(all), len(trace))
	}
	took := func(trip []float64) float64 { return trip[len(want)] - trip[0] }
	slices.SortFunc(all, func(a, b []float64) int { return int(took(a) - took(b)) })
	all = all[:len(all)-len(all)/10]
	mean := make([]float64, len(want))
	for _, trip := range all {
		for i := range mean {
			mean[i] += (trip[i+1] - trip[i]) / float64(len(all))
		}
	}
	return mean, nil
}

// TraceCommand is the command trace of the lab.
func TraceCommand() *cobra.Command {
	o := Options{Status: os.Stderr}
	c := &cobra.Command{
		Use:   "trace",
		Short: "Show where the time of a round trip through the TUN device goes; needs root",
		Long: "trace sends one byte there and back, many times, through the director without its fast path and by " +
			"plain forwarding.\nThe kernel's tracing (tracefs) says when each thread is woken and reads. It takes a " +
			"few seconds and leaves nothing behind.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return Trace(c.Context(), c.OutOrStdout(), o) },
	}
	binFlag(c, &o)
	return c
}

// traced is the round trips of one path.
type traced struct {
	steps  []float64 // nanoseconds
	median float64   // of round trips without a trace, nanoseconds
}

// Trace measures the steps of round trips, and writes them to out.
func Trace(ctx context.Context, out io.Writer, o Options) (err error) {
	if err := o.complete(); err != nil {
		return err
	}
	m, err := thisMachine(o.leastCPUs())
	if err != nil {
		return err
	}
	b, err := newBed(ctx, o, m)
	if err != nil {
		return interrupted(ctx, err)
	}
	defer func() { err = errors.Join(err, b.close()) }()
	t, err := newTracer(b.dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	e, err := startEcho(b.web)
	if err != nil {
		return err
	}
	defer e.close()
	paths := b.tcpPaths()
	plain, err := t.trips(ctx, &paths[0], true)
	if err != nil {
		return interrupted(ctx, err)
	}
	through, err := t.trips(ctx, &paths[1], false)
	if err != nil {
		return interrupted(ctx, err)
	}
	return writeSteps(out, through, plain)
}

// Round trips of Trace.
const (
	untracedTrips = 5000
	tracedTrips   = 2000
)

// trips measures the round trips of a path.
func (t *tracer) trips(ctx context.Context, p *tcpPath, plain bool) (is traced, err error) {
	if is.median, _, err = p.roundTrips(ctx, untracedTrips); err != nil {
		return is, err
	}
	trace, err := t.record(func() error {
		_, _, err := p.roundTrips(ctx, tracedTrips)
		return err
	})
	if err != nil {
		return is, err
	}
	if is.steps, err = stepTimes(trace, plain); err != nil {
		return is, fmt.Errorf("%s: %w", p.name, err)
	}
	return is, nil
}

// writeSteps writes the steps as a table, in microseconds.
func writeSteps(out io.Writer, through, plain traced) error {
	w := bufio.NewWriter(out)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	row := func(director, plain, what string) { fmt.Fprintf(table, "%s\t%s\t  %s\n", director, plain, what) }
	us := func(ns float64) string { return strconv.FormatFloat(ns/1e3, 'f', 1, 64) }
	row("director", "plain", "µs of a round trip, mean")
	var sums [2]float64
	at := 0
	for i, s := range steps {
		other := ""
		if s.plain {
			other = us(plain.steps[at])
			sums[1] += plain.steps[at]
			at++
		}
		sums[0] += through.steps[i]
		row(us(through.steps[i]), other, s.what)
	}
	row(us(sums[0]), us(sums[1]), "together")
	row(us(through.median), us(plain.median), "without the trace, median")
	return errors.Join(table.Flush(), w.Flush())
}
