package director

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vstun/routing"
	"vstun/testdata/testkit"
)

// TestRemoveTable: undo removes a connection table, and nothing else that connections.keep may name.
func TestRemoveTable(t *testing.T) {
	for name, c := range map[string]struct {
		put   func(path string) error
		says  string
		stays bool
	}{
		"file":      {func(path string) error { return os.WriteFile(path, nil, 0o600) }, "removed the", false},
		"nothing":   {func(string) error { return nil }, "", false},
		"fifo":      {func(path string) error { return unix.Mkfifo(path, 0o600) }, "stays", true},
		"directory": {func(path string) error { return os.Mkdir(path, 0o700) }, "stays", true},
	} {
		path := filepath.Join(t.TempDir(), "d.table")
		if err := c.put(path); err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		if err := removeTable(&out, path); err != nil || !strings.Contains(out.String(), c.says) {
			t.Errorf("%s: %q, %v", name, out.String(), err)
		}
		if _, missing := os.Lstat(path); c.stays != (missing == nil) {
			t.Errorf("%s: %v", name, missing)
		}
	}
}

// TestUndoWithoutJournal: files that a kill has left beside the journal are removed, if no director has them.
func TestUndoWithoutJournal(t *testing.T) {
	testkit.NewNamespace(t)
	dir := t.TempDir()
	t.Chdir(dir)
	journal := filepath.Join(dir, "d.journal")
	for _, name := range []string{journal + ".new", journal + ".lock"} {
		if err := os.WriteFile(name, []byte("7\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // the second time there is nothing
		var out strings.Builder
		want := "nothing to undo: there is no " + journal + "\n"
		if err := undo(&out, filepath.Join(dir, "d.sock"), "", false); err != nil || out.String() != want {
			t.Errorf("%q, %v", out.String(), err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	}
	m, err := routing.Open(journal, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := undo(&strings.Builder{}, filepath.Join(dir, "d.sock"), "", false); err == nil ||
		!strings.Contains(err.Error(), "a director runs") {
		t.Errorf("while a director runs: %v", err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

// TestUndoForeignTable: root removes a table anywhere if the configuration file is its own, else only one beside the
// control socket.
func TestUndoForeignTable(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: not root")
	}
	testkit.NewNamespace(t)
	for _, isForeign := range []bool{false, true} {
		dir, other := t.TempDir(), t.TempDir()
		t.Chdir(dir)
		file := filepath.Join(dir, "d.toml")
		tables := []string{filepath.Join(dir, "d.table"), filepath.Join(other, "victim")}
		for _, path := range append(tables, file) {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if isForeign {
			if err := os.Chown(file, 61234, 61234); err != nil {
				t.Fatal(err)
			}
		}
		for i, table := range tables {
			var out strings.Builder
			if err := undo(&out, filepath.Join(dir, "d.sock"), table, foreign(file)); err != nil {
				t.Error(err)
			}
			_, missing := os.Lstat(table)
			if stays := isForeign && i == 1; stays != (missing == nil) || stays != strings.Contains(out.String(),
				"remove the table by hand") {
				t.Errorf("foreign %v: %s: %v; %q", isForeign, table, missing, out.String())
			}
		}
	}
}
