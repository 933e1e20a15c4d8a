package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const wantCommand = `an array of an absolute path and arguments: ["/usr/local/bin/check", "arg"]`

// readCommand reads a program with its arguments. Its absence is a warning: it may be installed later.
func readCommand(t *table, absent []string) []string {
	list, ok := t.array("command", wantCommand)
	if !ok {
		return absent
	}
	var command []string
	for i, v := range t.elements("command", list) {
		s, ok := v.(string)
		switch {
		case !ok:
			t.wrongType("command", v, wantCommand)
		case strings.ContainsRune(s, 0):
			t.faultAt("command", "%s has a NUL: want %s", show(s), wantCommand)
		case i == 0 && !filepath.IsAbs(s):
			t.faultAt("command", "%s is not an absolute path: want %s", show(s), wantCommand)
		case i == 0:
			if why := unfit(s); why != "" {
				t.warnAt("command", "%s %s: install it, or name another program", show(s), why)
			}
		}
		command = append(command, s)
	}
	return command
}

// unfit returns why a file can't be run as a program, or "".
func unfit(program string) string {
	info, err := os.Stat(program)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "is not there"
	case err != nil:
		return "can't be run: " + errors.Unwrap(err).Error()
	case !info.Mode().IsRegular():
		return "is no program"
	case info.Mode()&0o111 == 0:
		return "is not executable"
	}
	return ""
}
