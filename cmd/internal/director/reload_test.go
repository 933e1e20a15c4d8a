package director

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"vstun/cmd/internal/config"
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
