package agent

import (
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/ingress"
	"vstun/encap/bpf"
	"vstun/routing/query"
)

// fastPath is the program in the kernel that takes the packets out of tunnels that the policy in force accepts. The
// sockets get all other packets. Without the program they get all packets. Any goroutine may use it. The zero value has
// no program.
type fastPath struct {
	log *slog.Logger

	changes sync.Mutex      // of all but view; the kernel may let them wait, and status must not
	program *bpf.Realserver // nil: there is none
	devices *ingress.Devices
	list    func() ([]query.Device, error) // of this host
	cfg     *config.Realserver
	own     []netip.Addr // addresses of this host, in ascending order
	heard   []netip.Addr // directors that directors has by prefixes
	tun     query.Device // the agent's
	rules   bpf.Rules    // that the program has; the zero value: it takes no packet
	off     string       // why there is no program
	full    bool         // the program takes no more of them
	refused string       // why the program has no rules
	left    []string     // devices that it is not at, and why
	secure  ingress.Policies
	past    map[netip.Addr]bpf.Taken // of a program that has been closed

	mu   sync.Mutex
	view view
}

// view is what status and read know of a fastPath: its state after the last change.
type view struct {
	program *bpf.Realserver
	past    map[netip.Addr]bpf.Taken
	status  api.FastPath
}

// show gives status and read what is so now. f.changes is held.
func (f *fastPath) show() {
	v := view{f.program, f.past, f.state()}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.view = v
}

// mostHeard bounds the directors of prefixes that the program knows. The sockets get the packets of all others.
const mostHeard = 256

// These are reasons for a fast path that is not on.
const (
	offNoTunnel = "encap is empty: there is no tunnel"
	offDown     = "the agent's device is down"

	offSecondChance = "second_chance is on: the agent must see each packet"
)

// noFastPath is the log's line for a fast path that does not work.
const noFastPath = "no fast path: the sockets take all packets"

// load loads the program if cfg allows it. It takes no packet before enforce. A failure is one line of the log.
func (f *fastPath) load(log *slog.Logger, cfg *config.Realserver) {
	f.changes.Lock()
	defer f.changes.Unlock()
	defer f.show()
	f.log, f.cfg, f.secure.Ask = log, cfg, query.HasIPsec
	if cfg.FastPath.Off {
		f.off = ingress.OffByKey
		return
	}
	program, err := bpf.LoadRealserver()
	if err != nil {
		f.off = err.Error()
		if len(cfg.Encaps) > 0 {
			log.Warn(noFastPath, "error", err)
		}
		return
	}
	f.program, f.devices, f.list = program, ingress.New(program), query.Devices
}

// needsCapability reports whether the fast path needs CAP_BPF as long as the agent runs.
func (f *fastPath) needsCapability() bool { return f.program != nil && bpf.NeedsCapability() }

// enforce puts cfg in force for the program, with the addresses of this host. swap puts the same in force for the
// workers. While the two differ, the program takes no packet: it takes none that the workers would refuse.
func (f *fastPath) enforce(cfg *config.Realserver, own []netip.Addr, swap func()) {
	f.changes.Lock()
	defer f.changes.Unlock()
	defer f.show()
	f.cfg, f.own = cfg, slices.Clone(own)
	slices.SortFunc(f.own, netip.Addr.Compare)
	f.own = slices.Compact(f.own)
	if f.program != nil && cfg.FastPath.Off {
		f.end(ingress.OffByKey)
	}
	if f.program == nil {
		swap()
		return
	}
	f.heard = slices.DeleteFunc(f.heard, func(a netip.Addr) bool {
		return !inPrefixes(cfg, a) || cfg.WireGuard.Peer(a) != nil
	})
	if !reflect.DeepEqual(f.wanted(), f.rules) {
		f.pause()
	}
	swap()
	f.update()
}

// inPrefixes reports whether one of the directors' prefixes of several addresses contains a.
func inPrefixes(cfg *config.Realserver, a netip.Addr) bool {
	return slices.ContainsFunc(cfg.Directors, func(d netip.Prefix) bool { return !d.IsSingleIP() && d.Contains(a) })
}

// wanted returns the rules that the program should have. f.changes is held.
func (f *fastPath) wanted() bpf.Rules {
	if !f.tun.Up || f.cfg.SecondChance.On { // the kernel would drop the packets; a worker must see each packet
		return bpf.Rules{}
	}
	r := bpf.Rules{Device: f.tun.Index, MTU: f.tun.MTU, VIPs: f.cfg.VIPs, Decapsulators: decapsulators(f.cfg),
		Port: f.cfg.EncapPort}
	vips := map[netip.Addr]bool{} // no tunnel ends there, and the rules have them before this host has
	for _, a := range f.cfg.VIPs {
		vips[a] = true
	}
	for _, a := range f.own {
		if !vips[a] {
			r.LocalAddrs = append(r.LocalAddrs, a)
		}
	}
	for _, d := range f.cfg.Directors {
		if d.IsSingleIP() && f.cfg.WireGuard.Peer(d.Addr()) == nil {
			r.Directors = append(r.Directors, d.Addr())
		}
	}
	r.Directors = append(r.Directors, f.heard...)
	return r
}

// pause lets the program take no packet. f.changes is held, and there is a program.
func (f *fastPath) pause() {
	f.rules = bpf.Rules{}
	if err := f.program.Pause(); err != nil {
		f.log.Warn(noFastPath, "error", err)
		f.end(err.Error())
	}
}

// set gives the program the rules that it should have. f.changes is held, and there is a program.
func (f *fastPath) set() {
	rules, was := f.wanted(), f.refused
	f.refused = ""
	switch {
	case reflect.DeepEqual(rules, f.rules):
	case rules.Device == 0:
		f.pause()
	default:
		f.rules = bpf.Rules{}
		if err := f.program.Set(rules); err != nil {
			if f.refused = err.Error(); f.refused != was {
				f.log.Warn(noFastPath, "error", err)
			}
			return
		}
		f.rules = rules
	}
}

// hear gives the program the directors of prefixes that the sockets have heard from. Until then it leaves their packets
// to the sockets. The caller ensures that no other configuration comes in force meanwhile.
func (f *fastPath) hear(directors []api.Counted) {
	f.changes.Lock()
	defer f.changes.Unlock()
	if f.program == nil || f.rules.Device == 0 || f.full {
		return
	}
	for _, d := range directors {
		a, err := netip.ParseAddr(d.Address)
		if err != nil || f.cfg.WireGuard.Peer(a) != nil || len(f.heard) == mostHeard || slices.Contains(f.heard, a) ||
			!inPrefixes(f.cfg, a) {
			continue
		}
		if err := f.program.AddDirector(a); err != nil {
			f.full = true
			f.log.Warn("no fast path for more directors: the sockets take their packets", "director", a, "error", err)
			return
		}
		f.heard = append(f.heard, a)
		f.rules = f.wanted()
	}
}

// read adds what the program has taken from each director to t.
func (f *fastPath) read(t map[netip.Addr]bpf.Taken) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for a, n := range f.view.past {
		t[a] = t[a].Plus(n)
	}
	if f.view.program != nil {
		_ = f.view.program.Read(t) // an error: the agent has lost a right, and a later call of Set reports it
	}
}

// status returns what the fast path does. taken is what it has taken from all directors.
func (f *fastPath) status(taken bpf.Taken) api.FastPath {
	f.mu.Lock()
	st := f.view.status
	f.mu.Unlock()
	st.Taken = api.Traffic{Packets: taken.Packets, Bytes: taken.Bytes}
	return st
}

// state is status without what was taken. f.changes is held.
func (f *fastPath) state() api.FastPath {
	st := api.FastPath{Reason: f.off}
	if f.program == nil {
		return st
	}
	st.Devices, st.Resumes = f.devices.Names(), true
	faults := slices.Concat(f.left, f.devices.Faults())
	if f.refused != "" {
		faults = append(faults, f.refused)
	}
	st.On = f.rules.Device != 0 && len(st.Devices) > 0
	switch {
	case len(faults) > 0:
		st.Reason = strings.Join(faults, "; ")
	case st.On:
	case len(f.cfg.Encaps) == 0:
		st.Reason = offNoTunnel
	case f.cfg.SecondChance.On:
		st.Reason = offSecondChance
	case !f.tun.Up:
		st.Reason = offDown
	default:
		st.Reason = ingress.OffNoDevice
	}
	return st
}

// close detaches the program from all devices.
func (f *fastPath) close() {
	f.changes.Lock()
	defer f.changes.Unlock()
	if f.program != nil {
		f.end("the agent is ending")
	}
}

// end is close for this reason. What the program has taken stays in the counts. f.changes is held, and there is a
// program.
func (f *fastPath) end(reason string) {
	past, program := map[netip.Addr]bpf.Taken{}, f.program
	_ = program.Read(past)
	f.program, f.rules, f.off, f.past = nil, bpf.Rules{}, reason, past
	f.show() // before the program is closed, which read uses
	if err := program.Close(); err != nil {
		f.log.Error("cannot detach the fast path's program", "error", err)
	}
}
