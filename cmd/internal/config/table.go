package config

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/BurntSushi/toml"

	"vstun/cmd/internal/words"
)

// table reads one TOML table. Its methods take a key and its legal values, and note a fault for any other value. finish
// then reports the keys that no method has read.
//
// A reading method returns false when the value is missing or has been reported. Its caller continues with the next
// key: a configuration with a fault is discarded.
type table struct {
	file   *file
	label  string // its name in a line about another table
	path   string // of this table in the file, such as `service "web": `
	values map[string]any
	at     *place
	known  []string // keys that a method has read
	key    string   // of the array that is being read; "": none
	item   *place   // of its current element
}

// file is the file that is read, with its faults.
type file struct {
	name     string
	faults   Errors
	warnings []string
	places   Places
}

// maxNesting is more than a configuration needs. Far deeper nesting overflows the stack of the TOML parser, which ends
// the program beyond recovery.
const maxNesting = 1000

// nesting returns the largest number of open brackets in a text, those in strings and comments included.
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
func parse(name string, text []byte) (*table, bool) {
	t := &table{file: &file{name: name, places: Places{}}, values: map[string]any{}, at: &place{line: 1}}
	values, at, err := decode(text)
	if err == nil {
		t.values, t.at = values, at
		return t, true
	}
	if syntax, ok := errors.AsType[toml.ParseError](err); ok {
		line, column, message := syntaxFault(text, syntax)
		t.file.faults = append(t.file.faults, t.file.line(fmt.Sprintf("%d:%d", line, column), message))
	} else {
		t.at = cmp.Or(at, t.at)
		t.fault("%v", err)
	}
	return t, false
}

// decode returns the values of a document and their places. It refuses what would overflow the parser's stack or keep
// the parser busy for seconds; the place is then that of the excess, nil if it has none.
func decode(text []byte) (values map[string]any, at *place, err error) {
	if nesting(text) > maxNesting {
		return nil, nil, fmt.Errorf("more than %d brackets are open at once: close them", maxNesting)
	}
	root, excess := locate(text)
	if excess != nil {
		return nil, excess, fmt.Errorf("a value is in more than %d tables and arrays: want fewer dots and brackets",
			maxLevels)
	}
	values = map[string]any{}
	err = toml.Unmarshal(text, &values)
	return values, root, err
}

// child returns the table below t with a label and a place; a nil place means t's.
func (t *table) child(label string, values map[string]any, at *place) *table {
	if at == nil {
		at = t.at
	}
	return &table{file: t.file, label: label, path: t.path + label + ": ", values: values, at: at}
}

// line returns a printable line about a position in the file.
func (f *file) line(position, message string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, f.name+":"+position+": "+message)
}

// fault notes one line about t as a whole.
func (t *table) fault(format string, args ...any) {
	t.file.faults = append(t.file.faults, t.file.line(strconv.Itoa(t.at.line), t.path+fmt.Sprintf(format, args...)))
}

// faultAt notes one line about a key of t, or about the element of its array that is being read.
func (t *table) faultAt(key, format string, args ...any) {
	t.file.faults = append(t.file.faults, t.about(key, format, args...))
}

// warnAt notes one line about a legal key of t without its apparent effect.
func (t *table) warnAt(key, format string, args ...any) {
	t.file.warnings = append(t.file.warnings, t.about(key, format, args...))
}

func (t *table) about(key, format string, args ...any) string {
	at := t.at
	if p := t.at.key(key); p != nil {
		at = p
	}
	if t.item != nil && t.key == key {
		at = t.item
	}
	return t.file.line(strconv.Itoa(at.line), t.path+quoteKey(key)+": "+fmt.Sprintf(format, args...))
}

// elements yields the elements of a key's array. Faults name the line of the current element.
func (t *table) elements(key string, list []any) iter.Seq2[int, any] {
	return func(yield func(int, any) bool) {
		t.key = key
		defer func() { t.key, t.item = "", nil }()
		for i, v := range list {
			if t.item = t.at.key(key).item(i); !yield(i, v) {
				return
			}
		}
	}
}

// wrongType notes that a key has a value of another type than the wanted one.
func (t *table) wrongType(key string, value any, want string) {
	shown := show(value)
	if key == secretKey {
		shown = "the value"
	}
	t.faultAt(key, "%s is of the wrong type: want %s", shown, want)
}

// secretKey is the key whose value stands in no message: those are logged and mailed.
const secretKey = "password"

// value returns the value of a key and marks the key as known.
func (t *table) value(key string) (any, bool) {
	if !slices.Contains(t.known, key) {
		t.known = append(t.known, key)
	}
	v, ok := t.values[key]
	return v, ok
}

// required is value for a required key.
func (t *table) required(key, want string) (any, bool) {
	v, ok := t.value(key)
	if !ok {
		t.faultAt(key, "missing: want %s", want)
	}
	return v, ok
}

// text reads an optional string. It returns absent for a missing key.
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
		t.faultAt(key, "%s is not a duration: write %s; want %s", show(v), duration(v), want)
		return absent
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		t.faultAt(key, "%s is not a duration: write %s; want %s", show(v), duration(v), want)
		return absent
	}
	if d < low || d > high {
		t.faultAt(key, "%s is out of range: want %s", show(v), want)
		return absent
	}
	return d
}

// duration returns a duration to propose: a number without a unit gets seconds; other values get an example.
func duration(v any) string {
	number := strings.TrimSpace(fmt.Sprint(v))
	if d, err := time.ParseDuration(number + "s"); err == nil && d > 0 {
		return strconv.Quote(number + "s")
	}
	return `"15m"`
}

// choice checks that a value is one of the offered names.
func (t *table) choice(key string, value any, offered []string) (string, bool) {
	want := words.OneOf(offered)
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

// array reads an array with at least one element. For a missing key it returns false and notes no fault.
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

// table reads an optional table below t. For a missing or wrong one it returns an empty table.
func (t *table) table(key, want string) *table {
	v, ok := t.value(key)
	if !ok {
		return t.child(key, nil, nil)
	}
	values, ok := v.(map[string]any)
	if !ok {
		t.wrongType(key, v, want)
	}
	return t.child(key, values, t.at.key(key))
}

// optional is table, but the values of a missing table are nil, and those of an empty one are not.
func (t *table) optional(key, want string) *table {
	_, there := t.values[key]
	c := t.table(key, want)
	if there && c.values == nil {
		c.values = map[string]any{} // of the wrong type, which has been reported
	}
	return c
}

// row is an element of an array of tables, and its place.
type row struct {
	values map[string]any
	at     *place
}

// tables reads an optional array of tables, in either of TOML's spellings.
func (t *table) tables(key, want string) (rows []row) {
	v, ok := t.value(key)
	if !ok {
		return nil
	}
	at := t.at.key(key)
	if list, ok := v.([]map[string]any); ok {
		for i, values := range list {
			rows = append(rows, row{values, at.item(i)})
		}
		return rows
	}
	list, ok := v.([]any)
	if !ok {
		t.wrongType(key, v, want)
		return nil
	}
	for i, v := range t.elements(key, list) {
		values, ok := v.(map[string]any)
		if !ok {
			t.wrongType(key, v, want)
			continue
		}
		rows = append(rows, row{values, at.item(i)})
	}
	return rows
}

// finish reports the keys that do not exist.
func (t *table) finish() {
	for _, key := range slices.Sorted(maps.Keys(t.values)) {
		if slices.Contains(t.known, key) {
			continue
		}
		t.faultAt(key, "unknown key: %s", words.Instead(key, t.known))
	}
}
