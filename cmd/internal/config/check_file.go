package config

import (
	"math"
	"os"
	"path/filepath"
	"strings"
)

// readNumberFile reads the path of the file of a check of type file. The file may be missing. A file that exists and is
// not a regular one is a warning.
func readNumberFile(t *table, c *Check) {
	const want = `the absolute path of a file that has a number, such as "/run/web.weight"`
	path, ok := t.text("path", c.File, want)
	switch _, written := t.values["path"]; {
	case !ok:
	case !written && path == "":
		t.faultAt("path", "missing: want %s", want)
	case !filepath.IsAbs(path) || strings.ContainsRune(path, 0):
		t.faultAt("path", "%s is not an absolute path: want %s", show(path), want)
	case written:
		if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
			t.warnAt("path", "%s is not a regular file: want %s", show(path), want)
		}
	}
	c.File = path
}

// readFileKeys reads the keys of a check of type file.
func readFileKeys(t *table, c *Check, own bool) {
	if own { // else the key path is the request's
		readNumberFile(t, c)
	}
	c.Factor = t.integer("factor", c.Factor, -math.MaxInt32, math.MaxInt32,
		"-2147483647 to 2147483647; with 0 a number other than 0 is a failure")
	c.Reverse = t.boolean("reverse", c.Reverse)
}
