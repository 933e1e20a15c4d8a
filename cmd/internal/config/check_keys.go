package config

import (
	"fmt"
	"slices"
	"strings"
)

// CheckKey is a key of a check with its value.
type CheckKey struct {
	Name  string
	Value any // nil: none
	// Changed describes new content of the file that Value names, such as "other certificates".
	Changed string
	content string
}

// SameContent reports whether the files that two keys name have the same content.
func (k CheckKey) SameContent(o CheckKey) bool { return k.content == o.content }

// Keys returns all keys of checks, in the same order for every check, with c's values.
func (c *Check) Keys() []CheckKey {
	all := []CheckKey{{Name: "type", Value: c.Type}, {Name: "via", Value: c.Via()}, {Name: "port"},
		{Name: "interval", Value: c.Interval}, {Name: "timeout", Value: c.Timeout}, {Name: "rise", Value: c.Rise},
		{Name: "fall", Value: c.Fall}, {Name: "initial", Value: pick(c.Up, "up", "down")}}
	if c.Port != 0 {
		all[2].Value = c.Port
	}
	row := c.Row()
	for _, g := range keyGroups {
		if g.values == nil {
			continue
		}
		own := slices.Contains(row.keys, g)
		for _, k := range g.values(c) {
			if !own {
				k = CheckKey{Name: k.Name}
			}
			i := slices.IndexFunc(all, func(have CheckKey) bool { return have.Name == k.Name })
			switch {
			case i < 0:
				all = append(all, k)
			case own: // another group has the key under this name
				all[i] = k
			}
		}
	}
	return all
}

// Via returns the value of the key via.
func (c *Check) Via() string { return pick(c.Direct, "direct", "tunnel") }

// some returns s, or nil if it is empty.
func some(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// quoted returns s in quotes, or nil if it is empty.
func quoted(s string) any {
	if s == "" {
		return nil
	}
	return fmt.Sprintf("%q", s)
}

func statusNames(list []StatusRange) string {
	var names []string
	for _, r := range list {
		names = append(names, r.String())
	}
	return strings.Join(names, ",")
}

// CommandLine joins a program and its arguments. A word with white space or quotes is quoted.
func CommandLine(command []string) string {
	var words []string
	for _, w := range command {
		if w == "" || strings.ContainsAny(w, " \t\n\"'") {
			w = fmt.Sprintf("%q", w)
		}
		words = append(words, w)
	}
	return strings.Join(words, " ")
}
