package agent

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vstun/cmd/internal/config"
	"vstun/cmd/internal/metrics"
	"vstun/cmd/internal/reload"
	"vstun/encap/wire"
	"vstun/routing"
)

// TestChangesAsJSON: values have the types of the configuration, and an absent key is null.
func TestChangesAsJSON(t *testing.T) {
	was := &config.Realserver{Encaps: []string{"ipip"}, Table: 30323, ForeignVIPs: true}
	is := &config.Realserver{VIPs: []netip.Addr{netip.MustParseAddr("198.51.100.80")}, Encaps: []string{"ipip", "gre"},
		Key: 7, HasKey: true, MSS: 1300, Table: 400, Metrics: netip.MustParseAddrPort("127.0.0.1:9465")}
	got, err := json.MarshalIndent(changes(was, is), "", " ")
	if err != nil {
		t.Fatal(err)
	}
	var list any
	if err := json.Unmarshal(got, &list); err != nil {
		t.Fatal(err)
	}
	change := func(key string, old, now any, text string) any {
		return map[string]any{"key": key, "old": old, "new": now, "text": text}
	}
	if diff := cmp.Diff([]any{
		change("vips", nil, "198.51.100.80", "vip 198.51.100.80: added"),
		change("own_vips", false, true, "own_vips false -> true"),
		change("encap", []any{"ipip"}, []any{"ipip", "gre"}, "encap ipip -> ipip,gre"),
		change("encap_key", nil, 7., "encap_key none -> 7"),
		change("mss", "auto", 1300., "mss auto -> 1300"),
		change("table", 30323., 400., "table 30323 -> 400"),
		change("metrics", nil, "127.0.0.1:9465", "metrics none -> 127.0.0.1:9465"),
	}, list); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestChangedTunnels: an agent for VS/DR has no tunnel.
func TestChangedTunnels(t *testing.T) {
	all := changes(&config.Realserver{}, &config.Realserver{Encaps: []string{"ipip"}})
	if len(all) != 1 || all[0].Text != "encap none -> ipip" {
		t.Errorf("%+v", all)
	}
}

// TestReloadAtEnd: a reload that meets the agent's end is given up, and is no error.
func TestReloadAtEnd(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "realserver.toml")
	if err := os.WriteFile(file, []byte("[realserver]\nvips = [\"192.0.2.1\"]\ndirectors = [\"192.0.2.9\"]\n"),
		0o644); err != nil {
		t.Fatal(err)
	}
	cfg, err := load(file)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	a := &agent{file: file, log: slog.New(slog.NewTextHandler(&log, nil)), http: metrics.NewServer()}
	a.reloader = reload.New("agent", file, time.Now(), a.log)
	a.setup.Store(&setup{cfg: cfg})
	if a.receivers, err = wire.NewReceivers(1, sockets(cfg)...); err != nil {
		t.Fatal(err)
	}
	defer a.receivers.Close()
	if a.network, err = routing.Open(filepath.Join(dir, "journal"), a.log); err != nil {
		t.Fatal(err)
	}
	if err := a.network.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := a.reload(); err == nil {
		t.Error("no error")
	}
	if got := log.String(); strings.Contains(got, "level=ERROR") || !strings.Contains(got, "given up") {
		t.Errorf("log: %s", got)
	}
}
