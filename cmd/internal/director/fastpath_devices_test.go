package director

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/balancer/fastpath"
	"vstun/balancer/method"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/director/plan"
	"vstun/cmd/internal/ingress"
	"vstun/encap/bpf"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/routing/query"
	"vstun/testdata/testkit"
)

// noKernel is a program without flows. It has the devices that it is attached to.
type noKernel struct {
	at   []int
	full error  // of Add
	wait func() // before Attach, if it is not nil

	mu    sync.Mutex
	paths []bpf.Kind // that were added
}

func (k *noKernel) Add(p bpf.Path) (bpf.Ref, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.paths = append(k.paths, p.Kind)
	return bpf.Ref{}, k.full
}

// hasPath reports whether a path of this kind was added.
func (k *noKernel) hasPath(kind bpf.Kind) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Contains(k.paths, kind)
}

func (*noKernel) Remove(bpf.Ref) error                                     { return nil }
func (*noKernel) Set([]bpf.Flow) (int, error)                              { return 0, nil }
func (*noKernel) Delete([]packet.Flow, func(packet.Flow, bpf.State)) error { return nil }
func (*noKernel) Read(func(packet.Flow, bpf.State, bool)) error            { return nil }

func (k *noKernel) Attach(device int) error {
	if k.wait != nil {
		k.wait()
	}
	k.at = append(k.at, device)
	return nil
}

func (k *noKernel) Hook() string { return "TCX" }

func (k *noKernel) Detach(device int) error {
	k.at = slices.DeleteFunc(k.at, func(at int) bool { return at == device })
	return nil
}

func newTestFastPath(t *testing.T) (*fastPath, *noKernel) {
	t.Helper()
	routes, err := query.WatchRoutes()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(routes.Close)
	k := &noKernel{}
	table := conntab.New(conntab.Config{Max: 1024})
	f := &fastPath{log: slog.New(slog.DiscardHandler), routes: routes, devices: ingress.New(k),
		again: make(chan struct{}, 1), marks: noMarks, tracks: noTracking,
		secure: ingress.Policies{Ask: func() (in, out bool, err error) { return false, false, nil }}}
	f.cache = fastpath.New(fastpath.Config{Kernel: k, Table: table, Clock: func() conntab.Ticks { return 0 },
		Ports: []uint16{40000}, Tracked: func() bool { return false }, NoPath: func(err error) { f.noPath(err) }})
	return f, k
}

// stateWith returns a state with these devices, and paths to these realservers.
func stateWith(devices []query.Device, to ...string) *state {
	st := &state{snapshot: balancer.New(conntab.New(conntab.Config{Max: 1024}), 1).Snapshot()}
	st.inputs.Config = &config.Director{}
	st.inputs.Devices, st.inputs.Paths = devices, plan.Paths{}
	for _, a := range to {
		st.inputs.Paths[netip.MustParseAddr(a)] = query.Path{Link: "eth0", Index: 2}
	}
	return st
}

// TestFastPathDevices: the program stays at a device that came later when a state with older devices comes in force.
func TestFastPathDevices(t *testing.T) {
	f, k := newTestFastPath(t)
	card := func(index int) query.Device {
		return query.Device{Name: fmt.Sprintf("eth%d", index), Index: index, Up: true, Ethernet: true, Kind: "device"}
	}
	st := stateWith([]query.Device{card(1)})
	f.follow(st)
	if !slices.Equal(k.at, []int{1}) {
		t.Errorf("at the start: %v", k.at)
	}
	f.attach([]query.Device{card(1), card(2)})
	f.follow(st)
	if !slices.Equal(k.at, []int{1, 2}) {
		t.Errorf("with a second device: %v", k.at)
	}
	f.attach([]query.Device{card(2)})
	f.follow(st)
	if !slices.Equal(k.at, []int{2}) {
		t.Errorf("without the first: %v", k.at)
	}
}

// TestStatusDuringAttach: status answers while the kernel lets the program wait for other changes of devices, such as
// those of a host where many namespaces come and go.
func TestStatusDuringAttach(t *testing.T) {
	f, k := newTestFastPath(t)
	waits, free := make(chan struct{}), make(chan struct{})
	k.wait = func() { close(waits); <-free }
	attached := make(chan struct{})
	go func() {
		f.follow(stateWith([]query.Device{{Name: "eth1", Index: 1, Up: true, Ethernet: true, Kind: "device"}}))
		close(attached)
	}()
	testkit.Receive(t, "the program waits", waits)
	answered := make(chan struct{})
	go func() {
		if st := f.status(); st.On || len(st.Devices) > 0 {
			t.Errorf("status has %+v before the program is at a device", st)
		}
		close(answered)
	}()
	testkit.Receive(t, "status", answered)
	close(free)
	testkit.Receive(t, "the program is at its device", attached)
	if st := f.status(); !st.On || !slices.Equal(st.Devices, []string{"eth1"}) {
		t.Errorf("status has %+v", st)
	}
}

// TestFastPathMarks: status and log say to how many realservers packets do not take the fast path because of a rule by
// mark: those to which a mark leads another way, and those of nat.
func TestFastPathMarks(t *testing.T) {
	f, _ := newTestFastPath(t)
	var out testkit.Log
	f.log = slog.New(slog.NewTextHandler(&out, nil))
	one, two := netip.MustParseAddr("10.0.11.2"), netip.MustParseAddr("10.0.11.3")
	six, direct := netip.MustParseAddr("fd00:11::2"), netip.MustParseAddr("10.0.11.4")
	serve := func(list ...config.RealserverRef) *config.Director {
		return &config.Director{Services: []config.Service{{Realservers: list}}}
	}
	ref := func(a netip.Addr, forward method.Kind) config.RealserverRef {
		return config.RealserverRef{Address: a, Forward: forward}
	}
	marks := query.Marks{Rule4: "ip rule 1: fwmark 0x1/0x1", Rule6: "ip rule 2: fwmark 0x2/0x2",
		// The last two are behind the default route, and a neighbour, which no route leads to.
		Other: map[netip.Addr]bool{one: true, netip.MustParseAddr("192.0.2.1"): true, direct: true}}
	f.marks = func(map[netip.Addr]query.Path) (query.Marks, error) { return marks, nil }
	st := stateWith([]query.Device{{Name: "eth0", Index: 2, Up: true, Ethernet: true, Kind: "device"}}, one.String(),
		two.String())
	st.inputs.Config = serve(ref(one, method.TUN), ref(two, method.TUN), ref(direct, method.DR))
	reason := func(of, rules string) {
		t.Helper()
		want := "a mark may lead packets of " + of + " another way (" + rules + ")"
		if is := f.status(); !is.On || is.Reason != want {
			t.Errorf("%+v, want %q", is, want)
		}
	}
	f.follow(st)
	reason("1 realserver", marks.Rule4)
	if got := out.String(); strings.Count(got, "\n") != 2 || !strings.Contains(got,
		`msg="some packets do not take the fast path"`) {
		t.Errorf("the log, with a line about the device: %s", got)
	}
	st.inputs.Config = serve(ref(one, method.TUN), ref(two, method.NAT), ref(direct, method.DR))
	f.follow(st)
	reason("2 realservers", marks.Rule4)
	marks.Other = map[netip.Addr]bool{six: true}
	st.inputs.Config = serve(ref(six, method.TUN), ref(one, method.TUN))
	st.inputs.Paths = plan.Paths{six: {Link: "eth0", Index: 2}}
	f.follow(st)
	reason("1 realserver", marks.Rule6)
	marks.Other[one] = true
	st.inputs.Paths = plan.Paths{six: {Link: "eth0", Index: 2}, one: {Link: "eth0", Index: 2}}
	f.follow(st)
	reason("2 realservers", marks.Rule4+", "+marks.Rule6)
	f.marks = noMarks
	f.follow(stateWith(st.inputs.Devices, one.String()))
	if got := out.String(); f.status().Reason != "" || !strings.Contains(got, "packets take the fast path again") {
		t.Errorf("without the rule: %+v; the log: %s", f.status(), got)
	}
}

// TestFastPathTracking: while this host tracks connections, status says to how many realservers of nat packets do not
// take the fast path, and the kernel gets no path to them. Those of tun do. The host is not asked without realservers
// of nat, and followTracking lets followWays ask when its answer has changed.
func TestFastPathTracking(t *testing.T) {
	f, k := newTestFastPath(t)
	asked, tracks := 0, true
	f.tracks = func() (bool, error) {
		asked++
		return tracks, nil
	}
	one, two := netip.MustParseAddr("10.0.11.2"), netip.MustParseAddr("10.0.11.3")
	st := stateWith([]query.Device{{Name: "eth0", Index: 2, Up: true, Ethernet: true, Kind: "device"}}, one.String(),
		two.String())
	st.inputs.Config = &config.Director{Services: []config.Service{{Realservers: []config.RealserverRef{
		{Address: one, Forward: method.TUN}, {Address: two, Forward: method.TUN}}}}}
	asks := func() bool { // it asks again for ways because of tracking
		select {
		case <-f.again: // follow has let it
		default:
		}
		f.followTracking()
		return len(f.again) > 0
	}
	f.follow(st)
	if again, reason := asks(), f.status().Reason; reason != "" || asked > 0 || again {
		t.Errorf("without nat: %q; asked %d times; asks again: %v", reason, asked, again)
	}
	st.inputs.Config = &config.Director{Services: []config.Service{{Realservers: []config.RealserverRef{
		{Address: one, Forward: method.TUN}, {Address: two, Forward: method.NAT}}}}}
	servers := []balancer.Realserver{{Address: one, Weight: 1, Config: method.Config{Kind: method.TUN, MTU: 1500}},
		{Address: two, Weight: 1, Config: method.Config{Kind: method.NAT, MTU: 1500}}}
	send := busyClients(t, f, st, servers)
	f.follow(st)
	const want = "this host tracks connections of 1 realserver by nat, and would take their ends for invalid"
	if reason := f.status().Reason; reason != want || !f.status().On {
		t.Errorf("with nat: %q, want %q", reason, want)
	}
	send()
	testkit.Eventually(t, "there is a path by tun", func() bool { return k.hasPath(bpf.Tunnel) })
	if k.hasPath(bpf.NAT) {
		t.Error("there is a path by nat")
	}
	if asks() {
		t.Error("it asks again although nothing has changed")
	}
	tracks = false
	if !asks() {
		t.Fatal("it does not ask again after a change")
	}
	st.inputs.Paths = plan.Paths{one: {Link: "eth0", Index: 2}, two: {Link: "eth0", Index: 2, Source: one}}
	f.follow(st)
	if reason := f.status().Reason; reason != "" {
		t.Errorf("without tracking: %q", reason)
	}
	send()
	testkit.Eventually(t, "there is a path by nat", func() bool { return k.hasPath(bpf.NAT) })
}

// busyClients lets f's cache run with the snapshot of a service of servers, which it puts into st. send sends many
// packets of two clients.
func busyClients(t *testing.T, f *fastPath, st *state, servers []balancer.Realserver) (send func()) {
	t.Helper()
	vip := netip.MustParseAddr("198.51.100.80")
	b := balancer.New(f.cache.Table, 2)
	if err := b.Apply(balancer.Config{Services: []balancer.Service{{Name: "web", VIPs: []netip.Addr{vip},
		Protocol: packet.ProtoUDP, Ports: []balancer.PortRange{{First: 53, Last: 53}}, Scheduler: "rr",
		Realservers: servers}}}); err != nil {
		t.Fatal(err)
	}
	st.snapshot = b.Snapshot()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = f.cache.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return func() {
		t.Helper()
		for i := range 2 * 3 * 16 {
			p := packet.Info{Len: 60, Flow: packet.Flow{Src: netip.MustParseAddr("192.0.2.1"), Dst: vip,
				SrcPort: 1 + uint16(i%2), DstPort: 53, Proto: packet.ProtoUDP}}
			if _, reason := st.snapshot.Decide(&p, 0); reason != drop.Accept {
				t.Fatal(reason)
			}
		}
	}
}

// TestFastPathVRF: the program is at no port of a VRF, and status says so, where it is at other devices, too.
func TestFastPathVRF(t *testing.T) {
	f, k := newTestFastPath(t)
	card := query.Device{Name: "eth0", Index: 1, Up: true, Ethernet: true, Kind: "device"}
	vrf := query.Device{Name: "red", Index: 2, Up: true, Ethernet: true, Kind: "vrf"}
	port := query.Device{Name: "eth1", Index: 3, Up: true, Ethernet: true, Kind: "device", Master: 2}
	const reason = "eth1 is a port of VRF red, and fast_path_devices does not name it"
	st := stateWith([]query.Device{card, vrf, port})
	f.follow(st)
	if is := f.status(); !slices.Equal(k.at, []int{1}) || !is.On || is.Reason != reason {
		t.Errorf("at %v; %+v", k.at, is)
	}
	f.attach([]query.Device{vrf, port})
	if is := f.status(); len(k.at) > 0 || is.On || is.Reason != reason {
		t.Errorf("at %v; %+v", k.at, is)
	}
	st.inputs.Config.FastPath.Devices = []string{"eth1"}
	f.follow(st)
	if is := f.status(); !slices.Equal(k.at, []int{3}) || !is.On || is.Reason != "" {
		t.Errorf("at %v; %+v", k.at, is)
	}
}

// TestFastPathFull: where the kernel has no room for the path to a realserver, the log says so once, and status has the
// cause and the number of connections that have asked.
func TestFastPathFull(t *testing.T) {
	f, k := newTestFastPath(t)
	k.full = bpf.ErrPathsFull
	var out testkit.Log
	f.log = slog.New(slog.NewTextHandler(&out, nil))
	to := "10.0.11.2"
	st := stateWith([]query.Device{{Name: "eth0", Index: 2, Up: true, Ethernet: true, Kind: "device"}}, to)
	send := busyClients(t, f, st, []balancer.Realserver{{Address: netip.MustParseAddr(to), Weight: 1,
		Config: method.Config{Kind: method.TUN, MTU: 1500}}})
	f.follow(st)
	send()
	testkit.Within(t, "it is counted", 10*time.Second, func() bool { return f.status().Refused["paths_full"] == 2*3 })
	is := f.status()
	if want := "no path in the kernel to 1 realserver: " + bpf.ErrPathsFull.Error(); !is.On || is.Reason != want {
		t.Errorf("%+v, want %q", is, want)
	}
	testkit.Within(t, "the log says so", 10*time.Second, func() bool {
		return strings.Contains(out.String(), "level=WARN")
	})
	if got := out.String(); strings.Count(got, "level=WARN") != 1 || !strings.Contains(got,
		`msg="connections of a realserver do not take the fast path"`) {
		t.Errorf("the log: %s", got)
	}
}
