package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/ingress"
	"vstun/cmd/internal/lab"
)

// Names of the paths with the fast path. They have a lab of their own, so that the packets of all others pass no BPF
// program. One director has them, but for the last, with a queue for each CPU.
const (
	pathFast         = "director, fast path"
	pathFastGUE      = "director, gue, fast path"
	pathFastDirector = "fast path of the director alone"
	pathFastAgent    = "fast path of the realserver alone"
)

// fastRoom is the size of the connection table of the director with the fast path: enough for the largest number of
// flows and all other connections.
const fastRoom = 1 << 21

// openFast builds the lab of the fast path and starts its programs. Where this machine has no fast path it returns the
// reason, and measures without.
func (b *bed) openFast(ctx context.Context, o Options) (missing string, err error) {
	spec := lab.Spec{Prefix: o.Prefix + "-fast", Webs: 2}
	if err := b.open(o, spec, func(in *bed) error { return in.startFast(ctx) }); err != nil {
		return "", err
	}
	in := b.labs[len(b.labs)-1]
	w := in.findPath(pathFast)
	var st api.FastPath
	err = await(ctx, w.process, "says what its fast path does", func() bool {
		st, err = w.fastPath(ctx)
		return err == nil && (st.On || st.Reason != ingress.OffNoDevice)
	})
	if err != nil || !st.On {
		return "fast path: " + st.Reason, err
	}
	b.fast = in
	b.beside = append(b.beside, flooded{w, in})
	var fast []tcpPath
	for _, name := range []string{pathFast, pathFastGUE, pathFastDirector, pathFastAgent} {
		fast = append(fast, tcpPath{in.findPath(name), in, iperfPort, name != pathFast})
	}
	b.methods = append(fast, b.methods...)
	return "", nil
}

// startFast starts the programs of the fast path. web2's agent is the one without.
func (b *bed) startFast(ctx context.Context) error {
	if err := b.prepare(); err != nil {
		return err
	}
	web1, web2 := b.web, b.lab.Webs[1]
	mac, err := b.lab.Router.MAC(b.lab.Client.Name)
	if err != nil {
		return err
	}
	addr := firstVIP
	open := func(name string, fast bool) *path {
		w := &path{name: name, addr: addr, mac: mac, host: b.lab.Router, link: b.lab.Director.Name, tcp: true,
			fast: fast, room: fastRoom}
		b.paths, addr = append(b.paths, w), addr.Next()
		return w
	}
	first, overGUE, alone, agent := open(pathFast, true), open(pathFastGUE, true), open(pathFastDirector, true),
		open(pathFastAgent, false)
	for _, w := range b.paths {
		if err := b.lab.Router.Route(w.addr, b.lab.Director.Addr); err != nil {
			return err
		}
	}
	services := service("udp", first.addr, discardPort, ipip.keys, realserver(beyondSink, 0)) +
		tcpServices(first.addr, ipip, web1) + tcpServices(overGUE.addr, gue, web1) + tcpServices(alone.addr, ipip, web2)
	if err := b.startDirector(ctx, first, allCPUs, b.bin, services); err != nil {
		return err
	}
	for _, w := range []*path{overGUE, alone} {
		w.process, w.socket = first.process, first.socket
	}
	return inTurn(
		func() error { return b.startDirector(ctx, agent, allCPUs, b.bin, tcpServices(agent.addr, ipip, web1)) },
		func() error { return b.startAgent(ctx, web1, []*path{first, overGUE, agent}, tunnels) },
		func() error { return b.startAgent(ctx, web2, []*path{alone}, noFastPath+tunnels) },
	)
}

// fastPath returns what the fast path of a director does.
func (w *path) fastPath(ctx context.Context) (api.FastPath, error) {
	st, err := w.status(ctx)
	return st.FastPath, err
}

// status returns the status of a director.
func (w *path) status(ctx context.Context) (st api.DirectorStatus, err error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	err = api.Get(ctx, w.socket, "/status", &st)
	return st, err
}

const (
	statusTimeout = 10 * time.Second // it takes the counts of all flows of the fast path
	fastTimeout   = 10 * time.Second // for flows to be fast
	mostTimeout   = 2 * time.Minute  // for the largest number of flows
	fullTimeout   = 2 * time.Second  // without a further flow, after which the fast path has no room for more
)

// awaitFlows waits, under a flood, until the kernel forwards this number of connections. It returns the number.
func (w *path) awaitFlows(ctx context.Context, flows int) (int, error) {
	for deadline := time.Now().Add(fastTimeout); ; {
		st, err := w.fastPath(ctx)
		if err != nil || st.Connections >= flows {
			return st.Connections, err
		}
		if time.Now().After(deadline) {
			return 0, w.slow(flows, st)
		}
		if err := pause(ctx, pollEvery); err != nil {
			return 0, err
		}
	}
}

// slow returns the error of flows that are not fast in time.
func (w *path) slow(flows int, st api.FastPath) error {
	return fmt.Errorf("%s: of %d connections under a flood the kernel forwards %d%s%s", w.name, flows, st.Connections,
		reasonOf(st), w.lastWords())
}

// fill floods a path until the kernel forwards this number of connections, or has no room for more, and the director
// knows all others. It returns the number that the kernel forwards.
func (b *bed) fill(ctx context.Context, w *path, flows int) (is int, err error) {
	if is, err = b.fillKernel(ctx, w, flows); err != nil {
		return 0, err
	}
	g := generator{host: b.lab.Client, cpu: b.machine.GeneratorCPU, source: b.lab.Client.Addr}
	s := g.start(w.mac, w.addr, flows)
	for deadline := time.Now().Add(fastTimeout); s.sent.Load() < uint64(flows) && time.Now().Before(deadline); {
		if err = pause(ctx, pollEvery); err != nil {
			break
		}
	}
	return is, errors.Join(err, s.end())
}

// fillKernel floods a path, flow by flow, until the kernel forwards this number of connections, or no more get there.
func (b *bed) fillKernel(ctx context.Context, w *path, flows int) (is int, err error) {
	g := generator{host: b.lab.Client, cpu: b.machine.GeneratorCPU, source: b.lab.Client.Addr, row: packetsToFast}
	s := g.start(w.mac, w.addr, flows)
	defer func() { err = errors.Join(err, s.end()) }()
	begin := time.Now()
	for at := begin; ; {
		st, err := w.fastPath(ctx)
		if err != nil {
			return 0, err
		}
		now := time.Now()
		if st.Connections > is {
			is, at = st.Connections, now
		}
		switch {
		case is >= flows || is > manyFlows && now.Sub(at) > fullTimeout:
			return is, nil
		case now.Sub(begin) > mostTimeout:
			return 0, w.slow(flows, st)
		}
		if err := pause(ctx, 10*pollEvery); err != nil {
			return 0, err
		}
	}
}

// packetsToFast is the number of a client's packets after which the kernel gets its connection:
// balancer/conntab/fast.go.
const packetsToFast = 16

// reasonOf returns, for an error, why a fast path is off.
func reasonOf(st api.FastPath) string {
	if st.On {
		return ""
	}
	return ", since its fast path is off: " + st.Reason
}

// promotion watches for connections that a director gives to the kernel.
type promotion struct {
	path   *path
	before uint64
	none   bool // there is no fast path on this path
}

// watchPromotion begins to watch.
func (w *path) watchPromotion(ctx context.Context) (promotion, error) {
	p := promotion{path: w, none: !w.fast}
	if p.none {
		return p, nil
	}
	st, err := w.fastPath(ctx)
	p.before, p.none = st.Promoted, !st.On
	return p, err
}

// count returns the number of connections since the beginning.
func (p *promotion) count(ctx context.Context) (int, error) {
	st, err := p.path.fastPath(ctx)
	return int(st.Promoted - p.before), err
}

// done returns an error unless the kernel has got at least this number of connections.
func (p *promotion) done(ctx context.Context, least int) error {
	if p.none {
		return nil
	}
	n, err := p.count(ctx)
	if err == nil && n < least {
		err = fmt.Errorf("the kernel has got %d connections to forward, want %d", n, least)
	}
	return err
}

// doubtAgent returns a note if the agent has no fast path.
func (b *bed) doubtAgent(ctx context.Context) []string {
	var st struct {
		FastPath api.FastPath `json:"fast_path"`
	}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	if err := api.Get(ctx, b.agentSocket(b.web), "/status", &st); err != nil || st.FastPath.On {
		return nil
	}
	return []string{strings.TrimSuffix("the realserver has no fast path: "+st.FastPath.Reason, ": ")}
}

// doubtPrograms returns a note if the kernel interprets the director's programs.
func (b *bed) doubtPrograms() []string {
	jited, err := descriptors(b.findPath(pathFast).process.Pid(), "prog_jited:", "prog_jited:")
	if err != nil || len(jited) == 0 || slices.Max(jited) > 0 {
		return nil
	}
	return []string{"the kernel interprets BPF programs, for want of a JIT compiler: the fast path is slow"}
}

// most is the results of the largest number of flows, by round.
type most struct {
	plain, fast Sample // packets a second
	connections Sample // that the kernel forwards
	memory      Sample // bytes of the director's process a connection
}

// measureMost measures the largest number of flows by plain forwarding and by the fast path.
func (b *bed) measureMost(ctx context.Context, o Options, r *results) error {
	t := *o.timing
	if b.fast == nil || t.most == 0 {
		return nil
	}
	o.status("packets of %s", flowCount(t.most))
	w := b.fast.findPath(pathFast)
	before, err := privateMemory(w.process.Pid())
	if err != nil {
		return err
	}
	is, err := b.fast.fill(ctx, w, t.most)
	t.window, t.settle = mostWindow, mostWindow/4
	for round := 0; round < t.mostRounds && err == nil; round++ {
		f, plain := &flood{}, &flood{}
		err = errors.Join(b.flood(ctx, b.findPath(pathPlain), t.most, 0, t, plain),
			b.fast.flood(ctx, w, t.most, is/2, t, f))
		if err != nil {
			break
		}
		after, err := privateMemory(w.process.Pid())
		if err != nil {
			return err
		}
		r.most.plain, r.most.fast = append(r.most.plain, plain.delivered...), append(r.most.fast, f.delivered...)
		r.most.connections = append(r.most.connections, f.fast...)
		r.most.memory = append(r.most.memory, (after-before)/f.fast[0])
	}
	if err != nil && ctx.Err() == nil { // what there is counts: a busy machine may need minutes for all these flows
		r.skip(o, fmt.Sprintf("a round of %s: %v", flowCount(t.most), err))
		return nil
	}
	return err
}

// mostWindow is the measured time of a flood of the largest number of flows, in which each has a packet.
const mostWindow = 1500 * time.Millisecond

// measureMaps measures the memory of the BPF maps: of an idle director, and of its flows. The flood of the larger
// number of flows has to come in between.
func (b *bed) measureMaps(ctx context.Context, r *results) error {
	w := b.findPath(pathFast)
	bytes, err := mapMemory(w.process.Pid())
	if err != nil {
		return err
	}
	st, err := w.fastPath(ctx)
	if err != nil {
		return err
	}
	switch {
	case st.Connections == 0:
		r.idleMaps = Sample{bytes}
	case bytes == r.idleMaps[0]:
		r.notes = append(r.notes, roomOfMaps)
	default:
		r.flowMemory = Sample{(bytes - r.idleMaps[0]) / float64(st.Connections)}
	}
	return nil
}

// roomOfMaps is the note of a kernel before Linux 6.4.
const roomOfMaps = "this kernel reports what BPF maps have room for, not what they use"

// firstFlows measures the time until a connection is in the kernel, from its first packet on.
func (b *bed) firstFlows(ctx context.Context, o Options, r *results) (err error) {
	o.status("the time until a connection is fast")
	w := b.findPath(pathFast)
	sink, err := b.web.Listen("tcp", fmt.Sprintf(":%d", iperfPort))
	if err != nil {
		return err
	}
	var served sync.WaitGroup
	defer func() {
		err = errors.Join(err, sink.Close())
		served.Wait()
	}()
	served.Go(func() {
		for {
			conn, err := sink.Accept()
			if err != nil {
				return // closed
			}
			_, _ = io.Copy(io.Discard, conn) // to the client's end
			conn.Close()
		}
	})
	for range o.timing.first {
		measure := func() error {
			took, err := b.firstFlow(ctx, w)
			if err == nil {
				r.untilFast = append(r.untilFast, took.Seconds())
			}
			return err
		}
		if err := r.repeat(ctx, o, measure); err != nil {
			return err
		}
	}
	return nil
}

// firstFlow opens a connection, sends without a pause, and returns the time until the kernel has it.
func (b *bed) firstFlow(ctx context.Context, w *path) (time.Duration, error) {
	p, err := w.watchPromotion(ctx)
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	conn, err := b.lab.Client.DialContext(ctx, "tcp", netip.AddrPortFrom(w.addr, iperfPort).String())
	if err != nil {
		return 0, fmt.Errorf("%s: %w", w.name, err)
	}
	defer conn.Close()
	if err := conn.SetWriteDeadline(begin.Add(fastTimeout)); err != nil {
		return 0, err
	}
	data := make([]byte, 128<<10)
	for {
		if _, err := conn.Write(data); err != nil {
			return 0, fmt.Errorf("%s: the kernel has got no connection to forward: %w%s", w.name, err, w.lastWords())
		}
		n, err := p.count(ctx)
		if n > 0 || err != nil {
			return time.Since(begin), err
		}
	}
}
