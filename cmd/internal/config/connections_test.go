package config_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"vstun/cmd/internal/config"
)

// TestConnectionsFaults: each of these faults gives exactly these lines.
func TestConnectionsFaults(t *testing.T) {
	const (
		wantReuse = `want 0 (never), 1 (a SYN in TIME_WAIT or CLOSE opens a new connection) or 2 (in FIN_WAIT too)`
		wantHalf  = `want 0 (a quarter of max) to max`
		wantKeep  = `want an absolute path on tmpfs, such as "/run/vstun/director.table", or "" for none`
	)
	for _, c := range []struct{ name, line, want string }{
		{"expire_nodest", `expire_nodest = "yes"`, `expire_nodest: "yes" is of the wrong type: want true or false`},
		{"expire_quiescent_template", `expire_quiescent_template = 1`, `expire_quiescent_template: 1 is of the ` +
			`wrong type: want true or false`},
		{"conn_reuse low", `conn_reuse = -1`, `conn_reuse: -1 is out of range: ` + wantReuse},
		{"conn_reuse high", `conn_reuse = 3`, `conn_reuse: 3 is out of range: ` + wantReuse},
		{"conn_reuse type", `conn_reuse = true`, `conn_reuse: true is of the wrong type: ` + wantReuse},
		{"on_removal", `on_removal = "keep"`, `on_removal: "keep" is unknown: want drain or drop`},
		{"on_removal type", `on_removal = true`, `on_removal: true is of the wrong type: want drain or drop`},
		{"secure_tcp", `secure_tcp = "on"`, `secure_tcp: "on" is unknown: want auto, always or off`},
		{"secure_tcp type", `secure_tcp = 3`, `secure_tcp: 3 is of the wrong type: want auto, always or off`},
		{"half_open_max low", `half_open_max = -1`, `half_open_max: -1 is out of range: ` + wantHalf},
		{"half_open_max high", `half_open_max = 1_000_001`, `half_open_max: 1000001 is more than max, 1000000: ` +
			wantHalf},
		{"sctp", `timeouts = { sctp = "0s" }`, `timeouts: sctp: "0s" is out of range: want 1s to 744h (31 days)`},
		{"keep relative", `keep = "director.table"`, `keep: "director.table" is no path for the table: ` + wantKeep},
		{"keep a folder", `keep = "/run/vstun/"`, `keep: "/run/vstun/" is no path for the table: ` + wantKeep},
		{"keep the socket", `keep = "/run/vstun/director.sock"`, `keep: "/run/vstun/director.sock" is no path for ` +
			`the table: ` + wantKeep},
		{"keep type", `keep = false`, `keep: false is of the wrong type: ` + wantKeep},
		{"misspelt", `expire_nodes = true`, `expire_nodes: unknown key: did you mean expire_nodest?`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := config.ParseDirector("x.toml", []byte("[connections]\n"+c.line+"\n"+goodService))
			wantFaults(t, err, "connections: "+c.want)
		})
	}
}

func TestHalfOpenMax(t *testing.T) {
	for lines, want := range map[string]int{
		"max = 1024":                       256,
		"max = 4096\nhalf_open_max = 0":    1024,
		"max = 4096\nhalf_open_max = 1":    1,
		"max = 4096\nhalf_open_max = 4096": 4096,
	} {
		d, err := config.ParseDirector("x.toml", []byte("[connections]\n"+lines+"\n"+goodService))
		if err != nil {
			t.Fatal(err)
		}
		if got := d.Connections.HalfOpenMax; got != want {
			t.Errorf("%q: got %d, want %d", lines, got, want)
		}
	}
}

// TestKeep: the table is beside the control socket by default, and "" is for none.
func TestKeep(t *testing.T) {
	for text, want := range map[string]config.Connections{
		"":                                       {Keep: "/run/vstun/director.table", KeepBeside: true},
		"[director]\ncontrol = \"/tmp/a.sock\"":  {Keep: "/tmp/a.table", KeepBeside: true},
		"[director]\ncontrol = \"/tmp/control\"": {Keep: "/tmp/control.table", KeepBeside: true},
		"[connections]\nkeep = \"\"":             {},
		"[connections]\nkeep = \"/run/t\"":       {Keep: "/run/t"},
	} {
		d, err := config.ParseDirector("x.toml", []byte(text+"\n"+goodService))
		if err != nil {
			t.Fatal(err)
		}
		if got := d.Connections; got.Keep != want.Keep || got.KeepBeside != want.KeepBeside {
			t.Errorf("%q: %q, beside %v", text, got.Keep, got.KeepBeside)
		}
		path := filepath.Join(t.TempDir(), "x.toml")
		if err := os.WriteFile(path, []byte(text+"\nfaulty = true\n"+goodService), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := config.KeptTable(path, d.Control); err != nil || got != want {
			t.Errorf("KeptTable of %q: %+v, %v", text, got, err)
		}
	}
	if _, err := config.KeptTable(filepath.Join(t.TempDir(), "x.toml"), ""); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a file: %v", err)
	}
}
