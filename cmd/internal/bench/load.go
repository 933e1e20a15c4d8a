package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// load is the CPU time of a TCP stream at a constant rate, in CPUs for each Gbit/s.
type load struct {
	machine Sample // of everything: both ends, all hosts between them, the director
	process Sample // of the director's process; empty for the kernel
}

const (
	loadRate  = "1G"                    // bits a second
	loadStart = 500 * time.Millisecond  // of a stream, before it is measured
	loadTime  = 1500 * time.Millisecond // measured time
)

// measureLoads measures the CPU time at a constant rate. iperf3 is there.
func (b *bed) measureLoads(ctx context.Context, o Options, r *results) error {
	o.status("CPU time at 1 Gbit/s, %d rounds", o.timing.loads)
	for range o.timing.loads {
		for _, download := range []bool{false, true} {
			for _, p := range b.requestPaths() {
				k := streamKey{p.name, download}
				if r.loads[k] == nil {
					r.loads[k] = &load{}
				}
				if err := r.repeat(ctx, o, func() error { return p.load(ctx, download, r.loads[k]) }); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// load measures a stream once, and adds the result to l.
func (p *tcpPath) load(ctx context.Context, download bool, l *load) (err error) {
	type outcome struct {
		rate float64
		err  error
	}
	ended := make(chan outcome, 1)
	go func() {
		rate, err := p.iperf(ctx, download, int((loadStart+loadTime+time.Second-1)/time.Second), "-b", loadRate)
		ended <- outcome{rate, err}
	}()
	machine, process, measured := p.cpuOver(ctx)
	is := <-ended
	if err := errors.Join(is.err, measured); err != nil {
		return err
	}
	giga := is.rate / 1e9
	l.machine = append(l.machine, machine/giga)
	if p.process != nil {
		l.process = append(l.process, process/giga)
	}
	return nil
}

// cpuOver returns the CPUs that the machine, and the director's process, use while a stream runs.
func (p *tcpPath) cpuOver(ctx context.Context) (machine, process float64, err error) {
	if err := pause(ctx, loadStart); err != nil {
		return 0, 0, err
	}
	var at [2]time.Time
	var all, own [2]time.Duration
	for i := range at {
		if i > 0 {
			if err := pause(ctx, loadTime); err != nil {
				return 0, 0, err
			}
		}
		at[i] = time.Now()
		if all[i], err = machineTime(); err == nil && p.process != nil {
			own[i], err = cpuTime(p.process.Pid())
		}
		if err != nil {
			return 0, 0, err
		}
	}
	span := at[1].Sub(at[0]).Seconds()
	return (all[1] - all[0]).Seconds() / span, (own[1] - own[0]).Seconds() / span, nil
}

// machineTime returns the time for which the machine's CPUs have worked since it started: all of the line "cpu" of
// proc_stat(5) but idle, iowait, steal, and the guests' time, which user has, too.
func machineTime() (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("CPU time of this machine: %w", err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	var user, nice, system, idle, iowait, irq, softirq int64
	if _, err := fmt.Sscanf(line, "cpu %d %d %d %d %d %d %d", &user, &nice, &system, &idle, &iowait, &irq,
		&softirq); err != nil {
		return 0, fmt.Errorf("CPU time of this machine: /proc/stat: %w", err)
	}
	const hertz = 100 // USER_HZ
	return time.Duration(user+nice+system+irq+softirq) * time.Second / hertz, nil
}
