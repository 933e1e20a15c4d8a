package director

import (
	"log/slog"
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

// TestSameProgram: what is read at the start only is refused.
func TestSameProgram(t *testing.T) {
	for name, change := range map[string]func(*config.Director){
		"table":        func(d *config.Director) { d.Table++ },
		"queues":       func(d *config.Director) { d.Queues++ },
		"conn_reuse":   func(d *config.Director) { d.Connections.ConnReuse = 2 },
		"on_removal":   func(d *config.Director) { d.Connections.DropOnRemoval = true },
		"sctp timeout": func(d *config.Director) { d.Connections.Timeouts.SCTP++ },
	} {
		is := running()
		change(is)
		if err := (&director{cfg: running()}).sameProgram(is); err == nil || !strings.Contains(err.Error(), "restart") {
			t.Errorf("%s: %v", name, err)
		}
	}
	is := running()
	is.Services = is.Services[:1]
	if err := (&director{cfg: running()}).sameProgram(is); err != nil {
		t.Error(err)
	}
}

// TestReloadAtTheEnd: a reload that meets the director's end is given up, which is no error in the log.
func TestReloadAtTheEnd(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "x.toml")
	text := "[[service]]\nname = \"web\"\nvip = \"198.51.100.80\"\nprotocol = \"tcp\"\nport = 80\n" +
		"[[service.realserver]]\naddress = \"198.51.100.90\"\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := load(file)
	if err != nil {
		t.Fatal(err)
	}
	var lines strings.Builder
	table := conntab.New(conntab.Config{Max: 1024})
	d := &director{file: file, log: slog.New(slog.NewTextHandler(&lines, nil)), cfg: cfg, start: time.Now(), table: table,
		bal: balancer.New(table, 1, balancer.Options{}), monitor: health.New(nil)}
	if d.network, err = routing.Open(filepath.Join(dir, "journal"), nil); err != nil {
		t.Fatal(err)
	}
	if err := d.network.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.reload(); err == nil || !strings.Contains(err.Error(), "the director is ending") || strings.Contains(err.Error(), "\n") {
		t.Errorf("the reload: %v", err)
	}
	d.leftVIPs = vips(cfg) // whose routes would be let go
	d.refresh()
	if got := lines.String(); strings.Contains(got, "level=ERROR") || !strings.Contains(got, `level=INFO msg="reload given up: the director is ending"`) {
		t.Errorf("the log:\n%s", got)
	}
}
