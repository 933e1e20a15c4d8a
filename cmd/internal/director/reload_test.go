package director

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/balancer/health"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/metrics"
	"vstun/routing"
)

// TestReloadOfFaultyFile: every fault comes back, and nothing changes, however many ask at once.
func TestReloadOfFaultyFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.toml")
	if err := os.WriteFile(file, []byte("[director]\nqueues = -1\ncolour = 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := &config.Director{}
	d := &director{file: file, log: slog.New(slog.DiscardHandler), cfg: cfg}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			lines, err := d.reload()
			if err == nil || strings.Count(err.Error(), "\n") != 2 || lines != nil {
				t.Errorf("%v, %v", lines, err)
			}
		})
	}
	all.Wait()
	if d.cfg != cfg {
		t.Error("another configuration is in force")
	}
}

// TestSameProgram: a change that needs another device, socket or table is refused and named; every other one is not.
func TestSameProgram(t *testing.T) {
	for name, change := range map[string]func(*config.Director){
		"tun":             func(d *config.Director) { d.TUN = "vs1" },
		"queues":          func(d *config.Director) { d.Queues++ },
		"offload":         func(d *config.Director) { d.Offload = true },
		"control":         func(d *config.Director) { d.Control = "/run/x.sock" },
		"connections.max": func(d *config.Director) { d.Connections.Max++ },
	} {
		is := running()
		change(is)
		is.Connections.ConnReuse = 2
		err := (&director{file: "x.toml", cfg: running()}).sameProgram(is)
		if err == nil || !strings.HasPrefix(err.Error(), "x.toml: "+name+" changed, ") ||
			!strings.Contains(err.Error(), "restart") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, change := range map[string]func(*config.Director){
		"log":                                   func(d *config.Director) { d.Log = slog.LevelDebug },
		"no_service":                            func(d *config.Director) { d.Silent = true },
		"connections: timeouts":                 func(d *config.Director) { d.Connections.Timeouts.SCTP++ },
		"connections: half_open_max 0 -> 7":     func(d *config.Director) { d.Connections.HalfOpenMax = 7 },
		"connections: on_removal drain -> drop": func(d *config.Director) { d.Connections.DropOnRemoval = true },
		"service":                               func(d *config.Director) { d.Services = d.Services[:1] },
	} {
		is := running()
		change(is)
		if err := (&director{cfg: running()}).sameProgram(is); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if lines := texts(changes(running(), is)); len(lines) != 1 || !strings.HasPrefix(lines[0], name) {
			t.Errorf("%s: the changes are %q", name, lines)
		}
	}
}

// TestReloadAtTheEnd: a reload that meets the director's end is given up, which is no error in the log. It keeps no
// address of metrics that came with it.
func TestReloadAtTheEnd(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "x.toml")
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free.Close()
	text := fmt.Sprintf("[director]\nmetrics = %q\n", free.Addr()) +
		"[[service]]\nname = \"web\"\nvip = \"198.51.100.80\"\nprotocol = \"tcp\"\nport = 80\n" +
		"[[service.realserver]]\naddress = \"198.51.100.90\"\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := load(file)
	if err != nil {
		t.Fatal(err)
	}
	former := *cfg
	former.Metrics = netip.AddrPort{}
	var lines strings.Builder
	table := conntab.New(conntab.Config{Max: 1024})
	d := &director{file: file, log: slog.New(slog.NewTextHandler(&lines, nil)), cfg: &former, start: time.Now(),
		table: table, http: metrics.NewServer(),
		bal: balancer.New(table, 1), monitor: health.New(nil)}
	if d.network, err = routing.Open(filepath.Join(dir, "journal"), nil); err != nil {
		t.Fatal(err)
	}
	if err := d.network.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.reload(); err == nil || !strings.Contains(err.Error(), "the director is ending") ||
		strings.Contains(err.Error(), "\n") {
		t.Errorf("the reload: %v", err)
	}
	if l, err := net.Listen("tcp", free.Addr().String()); err != nil {
		t.Errorf("after the reload the address of metrics is taken: %v", err)
	} else {
		l.Close()
	}
	d.leftVIPs = vips(cfg) // whose routes would be let go
	d.refresh()
	if got := lines.String(); strings.Contains(got, "level=ERROR") || !strings.Contains(got,
		`level=INFO msg="reload given up: the director is ending"`) {
		t.Errorf("the log:\n%s", got)
	}
}
