package config

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/BurntSushi/toml"
)

// table reads one TOML table. Its methods take a key and what is allowed there, note a fault for a value that is not,
// and remember which keys they were asked for; finish then reports the keys that nobody asked for.
//
// A reading method returns false when the value is missing or has been reported, and its caller goes on with the
// next key: the configuration is thrown away when there is any fault.
type table struct {
	faults *Errors
	label  string // what it is called in a line about another table
	path   string // of the file and of this table in it
	values map[string]any
	known  []string // keys that were asked for
}

// maxNesting is more than a configuration needs, and less than what overflows the stack of the TOML parser, which ends
// the program beyond recovery.
const maxNesting = 1000

// nesting is how many brackets are open at once in a text, roughly: those in strings and comments count too.
func nesting(text []byte) int {
	depth, deepest := 0, 0
	for _, c := range text {
		switch c {
		case '[', '{':
			depth++
			deepest = max(deepest, depth)
		case ']', '}':
			depth = max(0, depth-1)
		}
	}
	return deepest
}

// parse decodes a file into its top-level table. A fault in the syntax makes it an empty table.
func parse(name string, text []byte, faults *Errors) (*table, bool) {
	t := &table{faults: faults, path: name, values: map[string]any{}}
	if nesting(text) > maxNesting {
		t.fault("more than %d brackets are open at once: close them", maxNesting)
		return t, false
	}
	if err := toml.Unmarshal(text, &t.values); err != nil {
		if syntax, ok := errors.AsType[toml.ParseError](err); ok {
			t.fault("line %d, column %d: %s", syntax.Position.Line, syntax.Position.Col, syntax.Message)
		} else {
			t.fault("%v", err)
		}
		return t, false
	}
	return t, true
}

// child is the table that stands in t under a label.
func (t *table) child(label string, values map[string]any) *table {
	return &table{faults: t.faults, label: label, path: t.path + ": " + label, values: values}
}

// fault notes one line about t as a whole.
func (t *table) fault(format string, args ...any) {
	line := t.path + ": " + fmt.Sprintf(format, args...)
	*t.faults = append(*t.faults, strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, line))
}

// faultAt notes one line about a key of t.
func (t *table) faultAt(key, format string, args ...any) {
	t.fault("%s: %s", quoteKey(key), fmt.Sprintf(format, args...))
}

// wrongType notes that a key has a value of another type than the wanted one.
func (t *table) wrongType(key string, value any, want string) {
	t.faultAt(key, "%s is of the wrong type: want %s", show(value), want)
}

// value looks a key up and marks it as known.
func (t *table) value(key string) (any, bool) {
	if !slices.Contains(t.known, key) {
		t.known = append(t.known, key)
	}
	v, ok := t.values[key]
	return v, ok
}

// required is value for a key that must be there.
func (t *table) required(key, want string) (any, bool) {
	v, ok := t.value(key)
	if !ok {
		t.faultAt(key, "missing: want %s", want)
	}
	return v, ok
}

// text reads an optional string; absent is what it returns when the key is not there.
func (t *table) text(key, absent, want string) (string, bool) {
	v, ok := t.value(key)
	if !ok {
		return absent, true
	}
	s, ok := v.(string)
	if !ok {
		t.wrongType(key, v, want)
	}
	return s, ok
}

// integer reads an optional integer from low to high.
func (t *table) integer(key string, absent, low, high int, want string) int {
	v, ok := t.value(key)
	if !ok {
		return absent
	}
	n, ok := v.(int64)
	if !ok {
		t.wrongType(key, v, want)
		return absent
	}
	if n < int64(low) || n > int64(high) {
		t.faultAt(key, "%d is out of range: want %s", n, want)
		return absent
	}
	return int(n)
}

// boolean reads an optional boolean.
func (t *table) boolean(key string, absent bool) bool {
	v, ok := t.value(key)
	if !ok {
		return absent
	}
	b, ok := v.(bool)
	if !ok {
		t.wrongType(key, v, "true or false")
	}
	return b
}

// duration reads an optional duration from low to high.
func (t *table) duration(key string, absent, low, high time.Duration, want string) time.Duration {
	v, ok := t.value(key)
	if !ok {
		return absent
	}
	s, ok := v.(string)
	if !ok {
		t.faultAt(key, `%s is not a duration: write "15m"; want %s`, show(v), want)
		return absent
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		t.faultAt(key, `%s is not a duration: write "15m"; want %s`, show(v), want)
		return absent
	}
	if d < low || d > high {
		t.faultAt(key, "%s is out of range: want %s", show(v), want)
		return absent
	}
	return d
}

// choice checks that a value is one of the offered names, and tells names that are yet to come from unknown ones.
func (t *table) choice(key string, value any, offered []string) (string, bool) {
	want := oneOf(offered)
	s, ok := value.(string)
	switch {
	case !ok:
		t.wrongType(key, value, want)
		return "", false
	case slices.Contains(offered, s):
		return s, true
	default:
		t.faultAt(key, "%s is unknown: want %s", show(s), want)
	}
	return "", false
}

// array reads an array with at least one element. A missing key gives false and no fault.
func (t *table) array(key, want string) ([]any, bool) {
	v, ok := t.value(key)
	if !ok {
		return nil, false
	}
	list, ok := v.([]any)
	if !ok {
		t.wrongType(key, v, want)
		return nil, false
	}
	if len(list) == 0 {
		t.faultAt(key, "is empty: want %s", want)
		return nil, false
	}
	return list, true
}

// oneOrMore reads a required key whose value is an array or its only element.
func (t *table) oneOrMore(key, want string) []any {
	v, ok := t.required(key, want)
	if !ok {
		return nil
	}
	list, isArray := v.([]any)
	if !isArray {
		return []any{v}
	}
	if len(list) == 0 {
		t.faultAt(key, "is empty: want %s", want)
	}
	return list
}

// table reads an optional table below t; a missing or wrong one is empty.
func (t *table) table(key, want string) *table {
	v, ok := t.value(key)
	if !ok {
		return t.child(key, nil)
	}
	values, ok := v.(map[string]any)
	if !ok {
		t.wrongType(key, v, want)
	}
	return t.child(key, values)
}

// tables reads an optional array of tables, in either of TOML's spellings.
func (t *table) tables(key, want string) []map[string]any {
	v, ok := t.value(key)
	if !ok {
		return nil
	}
	if rows, ok := v.([]map[string]any); ok {
		return rows
	}
	list, ok := v.([]any)
	if !ok {
		t.wrongType(key, v, want)
		return nil
	}
	var rows []map[string]any
	for _, v := range list {
		row, ok := v.(map[string]any)
		if !ok {
			t.wrongType(key, v, want)
			continue
		}
		rows = append(rows, row)
	}
	return rows
}

// finish reports the keys that do not exist.
func (t *table) finish() {
	for _, key := range slices.Sorted(maps.Keys(t.values)) {
		if slices.Contains(t.known, key) {
			continue
		}
		if near, ok := nearest(key, t.known); ok {
			t.faultAt(key, "unknown key: did you mean %s?", near)
		} else {
			t.faultAt(key, "unknown key: want %s", oneOf(t.known))
		}
	}
}
