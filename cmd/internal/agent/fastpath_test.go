package agent

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/ingress"
	"vstun/encap/bpf"
	"vstun/routing/query"
	"vstun/testdata/testkit"
)

// testFastPath returns a loaded program whose device is lo.
func testFastPath(t *testing.T) *fastPath {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root, to load a BPF program")
	}
	f := &fastPath{}
	f.load(slog.New(slog.DiscardHandler), agentOf("198.51.100.80", "10.0.2.2/32", "ipip", false))
	if f.program == nil {
		t.Fatal(f.off)
	}
	t.Cleanup(f.close)
	return f
}

// TestProgramAndWorkers: the program takes no packet while its rules differ from the workers'. A refresh without a
// change does not stop it.
func TestProgramAndWorkers(t *testing.T) {
	f := testFastPath(t)
	own := []netip.Addr{netip.MustParseAddr("10.0.11.3"), netip.MustParseAddr("10.0.11.2")}
	enforce := func(vips, directors string, paused bool) {
		t.Helper()
		cfg := agentOf(vips, directors, "ipip", false)
		cfg.TUN, cfg.FastPath.Devices = "lo", []string{"none"}
		swapped := false
		f.enforce(cfg, own, func() {
			if swapped = true; paused != (f.rules.Device == 0) {
				t.Errorf("VIPs %s, directors %s: meanwhile the program has %+v", vips, directors, f.rules)
			}
		})
		if !swapped || len(f.rules.VIPs) != len(cfg.VIPs) {
			t.Errorf("swapped: %v; rules %+v", swapped, f.rules)
		}
	}
	enforce("198.51.100.80 198.51.100.81", "10.0.2.2/32", true)
	own[0], own[1] = own[1], own[0] // the kernel lists them in any order
	enforce("198.51.100.80 198.51.100.81", "10.0.2.2/32", false)
	vip := netip.MustParseAddr("198.51.100.80")
	own = append(own, vip) // the agent has added it
	enforce("198.51.100.80 198.51.100.81", "10.0.2.2/32", false)
	enforce("198.51.100.80", "10.0.2.2/32", true)
	enforce("198.51.100.80", "10.0.2.2/32 10.0.2.3/32", true)
	enforce("198.51.100.80", "10.0.2.2/32 10.0.2.3/32", false)
}

// slowProgram is a program that the kernel lets wait: it receives from free.
type slowProgram struct {
	waits chan<- struct{}
	free  <-chan struct{}
}

func (p slowProgram) Attach(int) error {
	close(p.waits)
	<-p.free
	return nil
}

func (slowProgram) Detach(int) error { return nil }
func (slowProgram) Hook() string     { return "TCX" }

// TestStatusDuringAttach: status and counts answer while the kernel lets the program wait for other changes of devices,
// such as those of a host where many namespaces come and go.
func TestStatusDuringAttach(t *testing.T) {
	f := testFastPath(t)
	waits, free := make(chan struct{}), make(chan struct{})
	f.devices = ingress.New(slowProgram{waits, free})
	cfg := agentOf("198.51.100.80", "10.0.2.2/32", "ipip", false)
	cfg.TUN, cfg.FastPath.Devices = "lo", []string{"eth1"}
	f.list = func() ([]query.Device, error) {
		return []query.Device{{Name: "lo", Index: 1, Up: true}, {Name: "eth1", Index: 2, Up: true}}, nil
	}
	attached := make(chan struct{})
	go func() {
		f.enforce(cfg, nil, func() {})
		close(attached)
	}()
	testkit.Receive(t, "the program waits", waits)
	answered := make(chan struct{})
	go func() {
		f.read(map[netip.Addr]bpf.Taken{})
		if st := f.status(bpf.Taken{}); st.On || len(st.Devices) > 0 {
			t.Errorf("status has %+v before the program is at a device", st)
		}
		close(answered)
	}()
	testkit.Receive(t, "status", answered)
	close(free)
	testkit.Receive(t, "the program is at its device", attached)
	if st := f.status(bpf.Taken{}); !st.On || !slices.Equal(st.Devices, []string{"eth1"}) {
		t.Errorf("status has %+v", st)
	}
}

// TestIPsec: while there is an IPsec policy for packets that come, the program is at no device.
func TestIPsec(t *testing.T) {
	testkit.NewNamespace(t)
	f := testFastPath(t)
	if err := netlink.LinkAdd(&netlink.Veth{PeerName: "peer", LinkAttrs: netlink.LinkAttrs{Name: "eth0",
		Flags: net.FlagUp}}); err != nil {
		t.Fatal(err)
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatal(err)
	}
	cfg := agentOf("198.51.100.80", "fd00:2::2/128", "ipip", false)
	cfg.TUN, cfg.FastPath.Devices = "lo", []string{"eth0"}
	for _, in := range []bool{false, true, false} {
		f.secure.Ask = func() (bool, bool, error) { return in, true, nil }
		f.enforce(cfg, []netip.Addr{netip.MustParseAddr("fd00:11::2")}, func() {})
		st := f.status(bpf.Taken{})
		if st.On == in || (st.Reason == ingress.OffIPsec) != in || len(st.Devices) == 0 != in {
			t.Errorf("a policy: %v: %+v", in, st)
		}
	}
}

// TestHeardDirectors: the program gets directors of prefixes alone, a bounded number of them, and only those that are
// still in a prefix stay.
func TestHeardDirectors(t *testing.T) {
	f := testFastPath(t)
	own := []netip.Addr{netip.MustParseAddr("10.0.11.2")}
	enforce := func(directors string) {
		t.Helper()
		cfg := agentOf("198.51.100.80", directors, "ipip", false)
		cfg.TUN, cfg.FastPath.Devices = "lo", []string{"none"}
		f.enforce(cfg, own, func() {})
	}
	enforce("10.0.2.2/32 10.1.0.0/16 10.2.0.0/24")
	heard := []api.Counted{{Address: "10.0.2.2"}, {Address: "10.9.9.9"}, {Address: "10.2.0.7"}}
	for i := range 2 * mostHeard {
		heard = append(heard, api.Counted{Address: fmt.Sprintf("10.1.%d.%d", i/256, i%256)})
	}
	f.hear(heard)
	if len(f.heard) != mostHeard || f.heard[0] != netip.MustParseAddr("10.2.0.7") || len(f.rules.Directors) !=
		mostHeard+1 {
		t.Errorf("%d heard, the first is %v; %d directors", len(f.heard), f.heard[0], len(f.rules.Directors))
	}
	enforce("10.0.2.2/32 10.2.0.0/24")
	if len(f.heard) != 1 || len(f.rules.Directors) != 2 {
		t.Errorf("%v; %v", f.heard, f.rules.Directors)
	}
	f.hear(heard)
	if len(f.heard) != 1 {
		t.Errorf("%v", f.heard)
	}
	taken := map[netip.Addr]bpf.Taken{}
	if f.read(taken); len(taken) != mostHeard+1 {
		t.Errorf("counts of %d directors", len(taken))
	}
}
