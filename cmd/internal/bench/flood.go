package bench

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"vstun/cmd/internal/api"
)

// floodKey is a path and the number of flows.
type floodKey struct {
	path  string
	flows int
}

// flood is the result of a path under more datagrams than it can carry, by round.
type flood struct {
	delivered Sample // packets a second
	offered   Sample // packets a second
	cpu       Sample // nanoseconds of the program's CPU time per delivered packet; empty for the kernel
	share     Sample // CPUs that the program used: about 1 if it had one for itself; empty for the kernel
	fast      Sample // flows that the kernel forwards instead of the program; empty without a fast path
}

// cost returns the time per delivered packet, in nanoseconds, over the whole path.
func (f *flood) cost() Sample {
	out := make(Sample, len(f.delivered))
	for i, pps := range f.delivered {
		out[i] = 1e9 / pps
	}
	return out
}

// reading is the state of the counters at one time.
type reading struct {
	at        time.Time
	delivered uint64
	sent      uint64
	cpu       time.Duration
}

func (w *path) read(s *stream) (r reading, err error) {
	if r.delivered, err = w.host.Received(w.link); err != nil {
		return r, err
	}
	r.at, r.sent = time.Now(), s.sent.Load()
	if w.process != nil {
		r.cpu, err = cpuTime(w.process.Pid())
	}
	return r, err
}

// flood measures one path for one window and adds the result to f. On a fast path the kernel forwards at least this
// number of flows before.
func (b *bed) flood(ctx context.Context, w *path, flows, fastFlows int, t timing, f *flood) (err error) {
	g := generator{host: b.lab.Client, cpu: b.machine.GeneratorCPU, source: b.lab.Client.Addr}
	s := g.start(w.mac, w.addr, flows)
	defer func() { err = errors.Join(err, s.end()) }()
	select {
	case <-s.begun: // many frames take their time
	case <-ctx.Done():
		return ctx.Err()
	}
	fast := 0
	if w.fast {
		if fast, err = w.awaitFlows(ctx, fastFlows); err != nil {
			return err
		}
	}
	if err := pause(ctx, t.settle); err != nil {
		return err
	}
	first, err := w.read(s)
	if err != nil {
		return err
	}
	if err := pause(ctx, t.window); err != nil {
		return err
	}
	if flows > t.flows { // the window has a packet of each, those in the kernel and those that are not
		for deadline := first.at.Add(fastTimeout); s.sent.Load() < first.sent+uint64(flows); {
			if err := pause(ctx, pollEvery); err != nil {
				return err
			}
			if time.Now().After(deadline) {
				break
			}
		}
	}
	last, err := w.read(s)
	if err != nil {
		return err
	}
	seconds, packets := last.at.Sub(first.at).Seconds(), float64(last.delivered-first.delivered)
	if packets == 0 {
		return fmt.Errorf("%s: of %d packets none was delivered in %v%s", w.name, last.sent-first.sent, t.window,
			w.lastWords())
	}
	f.delivered = append(f.delivered, packets/seconds)
	f.offered = append(f.offered, float64(last.sent-first.sent)/seconds)
	if w.fast {
		f.fast = append(f.fast, float64(fast))
	}
	if w.process != nil {
		used := last.cpu - first.cpu
		f.cpu = append(f.cpu, float64(used.Nanoseconds())/packets)
		f.share = append(f.share, used.Seconds()/seconds)
	}
	return nil
}

// proveTries is the number of attempts after which lost packets are an error: other work on the machine may cause a
// loss. Each attempt is slower than the one before.
const proveTries = 3

// prove sends one datagram of each flow, slowly. It returns an error unless all arrive. The datagrams also add the
// flows to the tables of the program on the path.
func (b *bed) prove(ctx context.Context, w *path, flows int) error {
	g := generator{host: b.lab.Client, cpu: b.machine.GeneratorCPU, source: b.lab.Client.Addr}
	var arrived uint64
	for every := pacedEvery; every < pacedEvery<<(2*proveTries); every <<= 2 {
		before, err := w.host.Received(w.link)
		if err != nil {
			return err
		}
		if err := g.trickle(ctx, w.mac, w.addr, flows, every); err != nil {
			return err
		}
		arrived, err = w.awaitDelivered(ctx, before, uint64(flows))
		if err != nil || arrived >= uint64(flows) {
			return err
		}
	}
	return fmt.Errorf("%s: of %d packets, sent slowly, %d arrived at %s%s", w.name, flows, arrived, w.host.Name,
		w.lastWords())
}

// awaitDelivered waits for packets in flight, until their number since the count before is at least want, or a second
// is over. It returns their number.
func (w *path) awaitDelivered(ctx context.Context, before, want uint64) (uint64, error) {
	for deadline := time.Now().Add(time.Second); ; {
		now, err := w.host.Received(w.link)
		if err != nil || now-before >= want || time.Now().After(deadline) {
			return now - before, err
		}
		if err := pause(ctx, pollEvery); err != nil {
			return 0, err
		}
	}
}

// lastWords returns, for an error, a director's counters and the end of the program's output.
func (w *path) lastWords() string {
	if w.process == nil {
		return ""
	}
	var words string
	if w.socket != "" {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		var st api.DirectorStatus
		if err := api.Get(ctx, w.socket, "/status", &st); err != nil {
			words = fmt.Sprintf("; its status: %v", err)
		} else {
			words = fmt.Sprintf("; it has read %d packets, sent %d, dropped %v, and the kernel refused with %q; its "+
				"fast path: %+v", st.In.Packets, st.Out.Packets, st.Drops, st.SendError, st.FastPath)
		}
	}
	if text := strings.TrimSpace(w.process.Output()); text != "" {
		words += "; it wrote: " + text
	}
	return words
}

// pause waits, unless ctx is cancelled.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
