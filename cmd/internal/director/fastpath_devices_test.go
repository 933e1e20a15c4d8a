package director

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"testing"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/balancer/fastpath"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/director/plan"
	"vstun/cmd/internal/ingress"
	"vstun/encap/bpf"
	"vstun/encap/packet"
	"vstun/routing/query"
)

// noKernel is a program without flows. It has the devices that it is attached to.
type noKernel struct{ at []int }

func (*noKernel) Add(bpf.Path) (bpf.Ref, error)                            { return bpf.Ref{}, nil }
func (*noKernel) Remove(bpf.Ref) error                                     { return nil }
func (*noKernel) Set([]bpf.Flow) (int, error)                              { return 0, nil }
func (*noKernel) Delete([]packet.Flow, func(packet.Flow, bpf.State)) error { return nil }
func (*noKernel) Read(func(packet.Flow, bpf.State, bool)) error            { return nil }

func (k *noKernel) Attach(device int) error {
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
	cache := fastpath.New(fastpath.Config{Kernel: k, Table: table, Clock: func() conntab.Ticks { return 0 },
		Ports: []uint16{40000}})
	return &fastPath{log: slog.New(slog.DiscardHandler), cache: cache, routes: routes, devices: ingress.New(k),
		again:  make(chan struct{}, 1),
		secure: ingress.Policies{Ask: func() (in, out bool, err error) { return false, false, nil }}}, k
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
