package director

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
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
