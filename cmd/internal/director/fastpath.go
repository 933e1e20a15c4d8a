package director

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"vstun/balancer/fastpath"
	"vstun/balancer/forward"
	"vstun/balancer/method"
	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/daemon"
	"vstun/cmd/internal/director/plan"
	"vstun/cmd/internal/ingress"
	"vstun/cmd/internal/words"
	"vstun/encap/bpf"
	"vstun/encap/packet"
	"vstun/encap/packet/stats"
	"vstun/routing/query"
)

// fastPath is the fast path in the kernel: the program, the connections that it has, and the devices that it is at. The
// zero value has none.
type fastPath struct {
	log    *slog.Logger
	kernel *bpf.Director   // nil: none is loaded
	cache  *fastpath.Cache // nil, too
	routes *query.Watch
	ask    func([]netip.Addr) (map[netip.Addr]query.Path, error) // query.Paths
	marks  func(map[netip.Addr]query.Path) (query.Marks, error)  // query.FindMarks
	tracks func() (bool, error)                                  // query.TracksConnections
	again  chan struct{}                                         // followWays asks again when it gets a value

	// held while the program comes to devices: the kernel may let that wait, and mu must not, which status needs
	attaching sync.Mutex
	devices   *ingress.Devices
	unused    bool // no device has the program
	secure    ingress.Policies

	mu      sync.Mutex
	reason  string         // why it is off
	host    []query.Device // of this host
	wanted  config.FastPath
	at      []string                   // devices that it is at, and
	left    []string                   // that it is not at, and why
	faults  []string                   // of the last call of put
	ipsec   bool                       // see followIPsec
	paths   plan.Paths                 // in force
	servers map[netip.Addr]method.Kind // see routed
	limits  limits                     // see setWays
	logged  string                     // reason
	ended   sync.Once
}

// Room in the kernel. An idle director uses 13 MB for it: see bpf.DirectorConfig.
const (
	mostFlows4 = 1 << 19
	mostFlows6 = 1 << 18
	mostPaths  = 1 << 13
)

// open loads the program, which a reload cannot do, and that opens nothing else. If that is not possible, the director
// works without: all packets take the TUN device. worker is a number for it in the balancer.
func (f *fastPath) open(cfg *config.Director, p *dataPlane, log *slog.Logger) {
	f.log = log
	switch {
	case cfg.FastPath.Off:
		f.reason = ingress.OffByKey
		return
	case cfg.TAP:
		f.reason = "device = \"tap\": packets take that device alone"
		return
	}
	var kernel *bpf.Director
	device, err := net.InterfaceByName(cfg.TUN)
	if err == nil {
		kernel, err = bpf.LoadDirector(bpf.DirectorConfig{Flows4: min(mostFlows4, 2*cfg.Connections.Max),
			Flows6: min(mostFlows6, 2*cfg.Connections.Max), Paths: mostPaths})
	}
	if err == nil {
		f.routes, err = query.WatchRoutes()
	}
	if err != nil {
		if kernel != nil {
			_ = kernel.Close()
		}
		f.reason = err.Error()
		log.Info("there is no fast path: all packets take the TUN device", "reason", err)
		return
	}
	f.kernel, f.devices = kernel, ingress.New(kernel)
	f.ask, f.marks, f.tracks, f.secure.Ask = query.Paths, query.FindMarks, query.TracksConnections, query.HasIPsec
	f.again = make(chan struct{}, 1)
	f.cache = fastpath.New(fastpath.Config{Kernel: kernel, Table: p.table, Clock: p.now, Worker: len(p.workers),
		Ports: p.udpPorts, Device: device.Index, Tracked: hasTracked, Failed: f.failed, NoPath: f.noPath})
}

// needsCapability reports whether the fast path needs CAP_BPF as long as the director runs.
func (f *fastPath) needsCapability() bool { return f.kernel != nil && bpf.NeedsCapability() }

// hasTracked reports whether this host tracks connections, or does not say.
func hasTracked() bool {
	tracked, err := query.HasTracked()
	return tracked || err != nil
}

// failed ends the fast path after an error of the kernel.
func (f *fastPath) failed(err error) {
	f.mu.Lock()
	f.reason = err.Error()
	f.mu.Unlock()
	f.log.Error("the fast path has failed: all packets take the TUN device until a restart", "error",
		errors.Join(err, f.detach()))
}

// noPath logs why the kernel does not have the path to a realserver.
func (f *fastPath) noPath(err error) {
	f.log.Warn("connections of a realserver do not take the fast path", "error", err)
}

// follow puts a state in force: no connection is in the kernel that goes another way now.
func (f *fastPath) follow(st *state) {
	if f.cache == nil {
		return
	}
	f.cache.Follow(st.snapshot)
	paths, servers := st.inputs.Paths, routed(st.inputs.Config)
	f.mu.Lock()
	moved := !maps.Equal(paths, f.paths) || !maps.Equal(servers, f.servers) // otherwise followWays may know more
	f.mu.Unlock()
	var l limits
	var err error
	if moved {
		l, err = f.look(paths, servers)
	}
	f.mu.Lock()
	f.wanted, f.servers = st.inputs.Config.FastPath, servers
	if f.host == nil { // later, follow may come with older ones than attach
		f.host = st.inputs.Devices
	}
	if moved {
		f.paths = paths
		f.setWays(paths, l, err) // followWays asks again, and logs the error
		f.askAgain()             // followWays may have asked before, for other addresses, and answer later
	}
	f.mu.Unlock()
	f.put()
}

// attach brings the program to those of the host's present devices that it belongs to.
func (f *fastPath) attach(host []query.Device) {
	if f.cache == nil {
		return
	}
	f.mu.Lock()
	f.host = host
	f.mu.Unlock()
	f.put()
}

// put is attach for the known devices.
func (f *fastPath) put() {
	f.attaching.Lock()
	defer f.attaching.Unlock()
	var devices []query.Device
	f.mu.Lock()
	if f.left = nil; f.reason == "" && !f.wanted.Off {
		devices, f.left = ingress.Select(f.host, f.wanted.Devices), ingress.LeftOut(f.host, f.wanted.Devices)
	}
	f.mu.Unlock()
	f.unused = len(devices) == 0
	f.lookForIPsec()
	if err := f.devices.Follow(devices); err != nil {
		f.log.Warn("packets of a device do not take the fast path", "error", err)
	}
	f.devices.Log(f.log)
	f.show()
}

// show gives status the devices. f.attaching is held.
func (f *fastPath) show() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at, f.faults = f.devices.Names(), f.devices.Faults()
}

// detach takes the program from its devices.
func (f *fastPath) detach() error {
	f.attaching.Lock()
	defer f.attaching.Unlock()
	defer f.show()
	return f.devices.Follow(nil)
}

// followIPsec keeps all connections out of the kernel while there is an IPsec policy: the program would send packets
// on without it.
func (f *fastPath) followIPsec() {
	f.attaching.Lock()
	defer f.attaching.Unlock()
	f.lookForIPsec()
}

// lookForIPsec is followIPsec while f.attaching is held.
func (f *fastPath) lookForIPsec() {
	_, has := f.secure.Look(f.log)
	f.secure.Log(f.log, has)
	f.cache.Pause(f.unused || has)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ipsec = has
}

// run gives connections to the kernel, and follows the ways to the realservers, until ctx is cancelled.
func (f *fastPath) run(ctx context.Context) error {
	if f.cache == nil {
		<-ctx.Done()
		return nil
	}
	return daemon.Run(ctx, f.cache.Run, f.routes.Run, f.followWays,
		daemon.Every(trackingEvery, f.followTracking))
}

// exclude keeps the connections that c captures out of the kernel until the call of end, or of exclude for the next
// capture.
func (f *fastPath) exclude(c *forward.Capture) (end func()) {
	if f.cache == nil {
		return func() {}
	}
	return f.cache.Exclude(c.Selects)
}

// has reports whether the kernel forwards a connection.
func (f *fastPath) has(flow packet.Flow) bool { return f.cache != nil && f.cache.Has(flow) }

// sync takes the kernel's counts before they are read.
func (f *fastPath) sync() {
	if f.cache != nil {
		f.cache.Sync()
	}
}

// read adds what the kernel has forwarded to t.
func (f *fastPath) read(t *stats.Tally) {
	if f.cache == nil {
		return
	}
	s := f.cache.Stats()
	t.InPackets += s.InPackets
	t.InBytes += s.InBytes
	t.OutPackets += s.OutPackets
	t.OutBytes += s.OutBytes
}

// status returns the fast path's state.
func (f *fastPath) status() api.FastPath {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cache == nil {
		return api.FastPath{Reason: f.reason}
	}
	s := f.cache.Stats()
	st := api.FastPath{Reason: f.reason, Devices: slices.Clone(f.at), Connections: s.Connections, Promoted: s.Promoted,
		Taken: api.Traffic{Packets: s.InPackets, Bytes: s.InBytes}}
	for r, n := range s.Refused {
		if n > 0 {
			if st.Refused == nil {
				st.Refused = map[string]uint64{}
			}
			st.Refused[fastpath.Refusal(r).String()] = n
		}
	}
	faults := slices.Concat(f.left, f.faults)
	st.Resumes = st.Reason == "" && !f.wanted.Off
	switch {
	case st.Reason != "":
	case f.wanted.Off:
		st.Reason = ingress.OffByKey
	case f.ipsec:
		st.Reason = ingress.OffIPsec
	case len(st.Devices) == 0 && len(faults) == 0:
		st.Reason = ingress.OffNoDevice
	default:
		st.On = len(st.Devices) > 0
		if reason := f.limitReason(); reason != "" {
			faults = append(faults, reason)
		}
		if n, err := f.cache.PathFaults(); err != nil {
			faults = append(faults, fmt.Sprintf("no path in the kernel to %s: %v", words.Count(n, "realserver"), err))
		}
		st.Reason = strings.Join(faults, "; ")
	}
	return st
}

// end takes the program from its devices, and takes the last counts. From then on all packets take the TUN device.
func (f *fastPath) end() error {
	if f.cache == nil {
		return nil
	}
	err := f.detach()
	f.ended.Do(f.cache.Close)
	return err
}

// close undoes open.
func (f *fastPath) close() error {
	if f.kernel == nil {
		return nil
	}
	f.routes.Close()
	kernel := f.kernel
	f.kernel = nil
	return kernel.Close()
}
