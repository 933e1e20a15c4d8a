package director

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/balancer/forward"
	"vstun/balancer/health"
	"vstun/balancer/keep"
	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/director/plan"
	"vstun/encap/packet"
)

// keptMemory is a director's memory with a data plane that has no devices.
type keptMemory struct {
	memory
	plane dataPlane
	said  bytes.Buffer // the log
}

// remember opens the memory at path, as the start of a director does. It is closed by the test.
func remember(t *testing.T, path string, cfg *config.Director) *keptMemory {
	t.Helper()
	k := &keptMemory{plane: dataPlane{start: time.Now(), shared: forward.NewShared()}}
	cfg.Connections = config.Connections{Max: 1024, Keep: path}
	if err := k.open(cfg, slog.New(slog.NewTextHandler(&k.said, nil))); err != nil {
		t.Fatal(err)
	}
	k.plane.table = conntab.NewIn(k.sections(), plan.Table(cfg.Connections))
	k.plane.balancer = balancer.NewIn(k.sections(), k.plane.table, 1)
	return k
}

// begin puts the configuration in force and takes over what is there.
func (k *keptMemory) begin(t *testing.T, cfg *config.Director) {
	t.Helper()
	desired, _ := plan.Plan(plan.Inputs{}.Reconfigured(cfg), nil)
	if err := k.plane.balancer.Apply(desired.Balancer); err != nil {
		t.Fatal(err)
	}
	k.adopt(&k.plane)
}

func (k *keptMemory) end(t *testing.T) {
	t.Helper()
	if err := k.close(&k.plane); err != nil {
		t.Error(err)
	}
}

// onTmpfs returns the path of a file in a folder on a tmpfs.
func onTmpfs(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size="+size); errors.Is(err, unix.EPERM) {
		t.Skip("SKIPPED: no right to mount a tmpfs")
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return filepath.Join(dir, "d.table")
}

// send opens n connections of web, and sends a packet of each.
func (k *keptMemory) send(t *testing.T, n int) {
	t.Helper()
	for i := range n {
		p := packet.Info{Len: 60, TCPFlags: packet.FlagSYN, Flow: packet.Flow{Proto: packet.ProtoTCP,
			SrcPort: uint16(i), DstPort: 80, Src: netip.MustParseAddr("192.0.2.1"),
			Dst: netip.MustParseAddr("198.51.100.80")}}
		d, reason := k.plane.balancer.Snapshot().Decide(&p, k.plane.now())
		if d == nil {
			t.Fatal(reason)
		}
		d.Count(0, 1, 60)
	}
}

// TestMemory: the next process has the connections, the weights that still hold, the health, and the counts.
func TestMemory(t *testing.T) {
	path, cfg := onTmpfs(t, "32m"), running()
	first := remember(t, path, cfg)
	first.begin(t, cfg)
	web := plan.RealserverID{Service: "web", Realserver: netip.MustParseAddrPort("10.0.11.1:0")}
	gone := plan.RealserverID{Service: "gone", Realserver: netip.MustParseAddrPort("10.0.11.9:0")}
	vip := netip.MustParseAddr("198.51.100.99")
	server := plan.NATServer{Address: netip.MustParseAddr("10.0.3.9"), Protocol: packet.ProtoUDP,
		Ports: config.PortRange{First: 53, Last: 54}}
	in := plan.Inputs{Config: cfg, RetiredVIPs: []netip.Addr{vip}, RetiredNAT: []plan.NATServer{server},
		Weights: plan.Weights{web: {Weight: 0, Configured: 1}, gone: {Weight: 3, Configured: 1}},
		Health: []health.State{{Service: "web", Realserver: web.Realserver, Checked: true, Known: true},
			{Service: "web", Realserver: gone.Realserver, Checked: true, Known: true, Up: true, Offset: -2},
			{Service: "web", Realserver: netip.MustParseAddrPort("10.0.11.3:0"), Checked: true, Up: true},
			{Service: "web", Realserver: netip.MustParseAddrPort("10.0.11.4:0"), Known: true, Up: true}}}
	first.note(&in)
	first.send(t, 7)
	first.before.In.Packets, first.before.Drops = 100, map[string]uint64{"ttl": 3, "of another version": 1}
	first.end(t)

	second := remember(t, path, cfg)
	former, states := second.recall()
	if weights := former.Weights; len(weights) != 2 || weights[web] != in.Weights[web] {
		t.Errorf("weights %v", weights)
	}
	if now := former.Reconfigured(cfg); len(now.Weights) != 1 || !slices.Equal(now.RetiredVIPs, in.RetiredVIPs) ||
		!slices.Equal(now.RetiredNAT, in.RetiredNAT) || !slices.Contains(former.RetiredVIPs, cfg.Services[0].VIPs[0]) {
		t.Errorf("in force are %+v, of %+v", now, former)
	}
	if want := []health.State{{Service: "web", Realserver: web.Realserver},
		{Service: "web", Realserver: gone.Realserver, Up: true, Offset: -2}}; !slices.Equal(states, want) {
		t.Errorf("health %+v, want %+v", states, want)
	}
	second.begin(t, cfg)
	if a := second.adopted; a == nil || a.Connections != 7 || a.Dropped+a.Expired > 0 {
		t.Errorf("adopted %+v\n%s", a, &second.said)
	}
	total := uint64(0)
	for _, r := range second.plane.balancer.Snapshot().Status()[0].Realservers {
		total += r.Packets
	}
	if k := second.read(&second.plane); total != 7 || k.In.Packets != 100 || k.Drops["ttl"] != 3 || len(k.Drops) != 1 {
		t.Errorf("%d packets to realservers, totals %+v", total, k)
	}
	if err := new(memory).open(cfg, slog.New(slog.DiscardHandler)); !errors.Is(err, keep.ErrInUse) {
		t.Errorf("a second director with the same file: %v", err)
	}
	second.end(t)
}

// TestHealthStaysRemembered: starts that end before a check has confirmed the health do not forget it. What a check has
// found, and a realserver that is checked no more, takes its place.
func TestHealthStaysRemembered(t *testing.T) {
	path, cfg := onTmpfs(t, "32m"), running()
	state := health.State{Service: "web", Realserver: cfg.Services[0].Realservers[0].ID(), Checked: true, Known: true,
		Up: true}
	recalled := state
	recalled.Checked, recalled.Known = false, false
	down, confirmed, unchecked := recalled, state, state
	down.Up, confirmed.Up, unchecked.Checked, unchecked.Known = false, false, false, false
	unknown := unchecked
	unknown.Checked = true
	for i, step := range []struct {
		recalled []health.State
		now      health.State
	}{{nil, unknown}, {nil, state}, {[]health.State{recalled}, unknown}, {[]health.State{recalled}, unknown},
		{[]health.State{recalled}, confirmed}, {[]health.State{down}, unchecked}, {nil, unknown}} {
		m := remember(t, path, cfg)
		if _, states := m.recall(); !slices.Equal(states, step.recalled) {
			t.Errorf("start %d recalls %+v, want %+v", i, states, step.recalled)
		}
		m.note(&plan.Inputs{Config: cfg, Health: []health.State{step.now}})
		m.begin(t, cfg)
		m.end(t)
	}
}

// TestMemoryWithoutRoom: a director works without memory that outlives it, with one warning, and leaves nothing that
// would be out of date.
func TestMemoryWithoutRoom(t *testing.T) {
	full, cfg := onTmpfs(t, "64k"), running()
	for _, path := range []string{full, "/proc/d.table", filepath.Join(t.TempDir(), "not", "there")} {
		for range 2 {
			k := remember(t, path, cfg)
			k.begin(t, cfg)
			k.send(t, 5)
			if n := strings.Count(k.said.String(), "will not outlive"); n != 1 || k.adopted != nil &&
				k.adopted.Connections > 0 {
				t.Errorf("%s: %d warnings, adopted %+v:\n%s", path, n, k.adopted, &k.said)
			}
			k.end(t)
		}
	}
	cfg.Connections.Keep = ""
	var m memory
	if err := m.open(cfg, nil); err != nil || m.file != nil {
		t.Errorf("keep = \"\": %v, %v", m.file, err)
	}
}

// TestLostPart: the warning says what of the memory is lost. The status has the file as long as connections are there.
func TestLostPart(t *testing.T) {
	path, cfg := onTmpfs(t, "32m"), running()
	m := remember(t, path, cfg)
	for _, step := range []struct{ section, said, keep string }{{"realservers3", "changes of realservers", path},
		{"slots4", "connections will not outlive", ""}} {
		m.fail(step.section, errRefused)
		m.fail(step.section, errRefused)
		var st api.Connections
		m.status(&st)
		if strings.Count(m.said.String(), step.said) != 1 || st.Keep != step.keep {
			t.Errorf("%+v: keep %q\n%s", step, st.Keep, &m.said)
		}
	}
	m.end(t)
}

// TestUnusedTable: a start with another connections.keep, or none, removes the table that an earlier one has left: it
// would be out of date.
func TestUnusedTable(t *testing.T) {
	path, cfg := onTmpfs(t, "32m"), running()
	cfg.Control = strings.TrimSuffix(path, ".table") + ".sock"
	for _, kept := range []string{"", path + "2"} {
		first := remember(t, path, cfg)
		first.begin(t, cfg)
		first.end(t)
		var m memory
		cfg.Connections.Keep = kept
		if err := errors.Join(m.open(cfg, slog.New(slog.DiscardHandler)), m.close(&first.plane)); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("keep = %q: the former file is there: %v", kept, err)
		}
	}
}

// TestMemoryInUnit: a file that systemd removes at the end of the unit is worth a warning.
func TestMemoryInUnit(t *testing.T) {
	path := filepath.Join(keep.SharedMemory, fmt.Sprintf("vstun-test-%d.table", os.Getpid()))
	for _, in := range []bool{false, true} {
		if in {
			t.Setenv("VSTUN_HANDOVER", "1")
			t.Setenv("NOTIFY_SOCKET", "/not/there")
		}
		m := remember(t, path, running())
		if warned := strings.Contains(m.said.String(), "RemoveIPC="); warned != in {
			t.Errorf("in a unit %v: warned %v\n%s", in, warned, &m.said)
		}
		m.end(t)
	}
}

// TestMemoryOfAnotherVersion: a table of another layout is left alone, and the log says so. Everything else goes on.
func TestMemoryOfAnotherVersion(t *testing.T) {
	path, cfg := onTmpfs(t, "32m"), running()
	f, err := keep.Create(path, "9.9", nil, func(_ string, err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	f.Section("slots4", 1, 4096)
	f.Blob(totalsBlob).Set([]byte(`{"in": {"packets": 5}}`))
	if err := errors.Join(f.Commit(), f.Close()); err != nil {
		t.Fatal(err)
	}
	k := remember(t, path, cfg)
	k.begin(t, cfg)
	if said := k.said.String(); !strings.Contains(said, "another layout") || !strings.Contains(said, "9.9") ||
		k.adopted.Connections != 0 || k.read(&k.plane).In.Packets != 5 {
		t.Errorf("adopted %+v, totals %+v:\n%s", k.adopted, k.read(&k.plane), said)
	}
	k.end(t)
}
