package director

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"vstun/cmd/internal/config"
	"vstun/routing"
	"vstun/testdata/testkit"
)

// TestReloadOfFaultyFile: every fault is returned and nothing changes, also when several requests come at once.
func TestReloadOfFaultyFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.toml")
	if err := os.WriteFile(file, []byte("[director]\nqueues = -1\ncolour = 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := operate(t, running(), func(o *operated) { o.file = file })
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
	if cfg := d.controller.state().Config; cfg.TUN != "vs0" || len(cfg.Services) != 2 {
		t.Error("another configuration is in force")
	}
	if c := d.reloader.Configuration(); !c.Read.Equal(d.plane.start) || strings.Count(c.Error, "\n") != 2 {
		t.Errorf("status has %+v", c)
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
		err := sameProgram("x.toml", running(), is)
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
		if err := sameProgram("x.toml", running(), is); err != nil {
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
	former.Services = slices.Clone(cfg.Services)
	former.Services[0].VIPs = []netip.Addr{vip2}
	var lines testkit.Log
	d := operate(t, &former, func(o *operated) {
		o.file, o.log = file, slog.New(slog.NewTextHandler(&lines, nil))
		o.controller.log = o.log
	})
	d.network.answerBy(func(routing.State) error { return routing.ErrClosed })
	reload := func() {
		t.Helper()
		if _, err := d.reload(); err == nil || !strings.Contains(err.Error(), "the director is ending") ||
			strings.Contains(err.Error(), "\n") {
			t.Errorf("the reload: %v", err)
		}
		if l, err := net.Listen("tcp", free.Addr().String()); err != nil {
			t.Errorf("after the reload the address of metrics is taken: %v", err)
		} else {
			l.Close()
		}
	}
	reload()
	if err := d.controller.do(func() { // a VIP whose route would be removed
		st := *d.controller.state()
		st.inputs.RetiredVIPs = []netip.Addr{vip2}
		d.controller.current.Store(&st)
		d.controller.refresh()
	}); err != nil {
		t.Fatal(err)
	}
	d.end()
	reload()
	if got := lines.String(); strings.Contains(got, "level=ERROR") || !strings.Contains(got,
		`level=INFO msg="reload given up: the director is ending"`) {
		t.Errorf("the log:\n%s", got)
	}
}
