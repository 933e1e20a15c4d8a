package config

import (
	"bytes"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
)

// change gives the table at p, which has the values was, the values is.
func (e *editor) change(p *place, was, is map[string]any) {
	var gone, added []string
	for _, key := range keyOrder(was) {
		v, stays := is[key]
		switch k := p.key(key); {
		case stays && reflect.DeepEqual(plainValue(was[key]), plainValue(v)):
		case stays && k.to > k.from && !k.header:
			e.replace(k.at, k.to, tomlValue(v))
		case stays:
			gone, added = append(gone, key), append(added, key)
		default:
			gone = append(gone, key)
		}
	}
	for _, key := range keyOrder(is) {
		if _, there := was[key]; !there {
			added = append(added, key)
		}
	}
	if len(gone)+len(added) == 0 {
		return
	}
	if !p.header {
		e.changeInline(p, gone, added, is)
		return
	}
	for _, key := range gone {
		for _, leaf := range append(p.key(key).leaves(true), p.key(key)) {
			if leaf.to > leaf.from {
				e.removeLines(leaf.from, leaf.to)
			}
		}
	}
	e.addPairs(p, added, is)
}

// addPairs adds keys behind the last pair of a table with a header.
func (e *editor) addPairs(p *place, keys []string, values map[string]any) {
	if len(keys) == 0 {
		return
	}
	end, indent := p.to, e.indent(p.from)
	if own := p.leaves(false); len(own) > 0 {
		last := own[len(own)-1]
		end, indent = last.to, e.indent(last.from)
	}
	var lines []string
	for _, key := range keys {
		lines = append(lines, indent+tomlPair(key, values[key]))
	}
	e.insertLines(end-1, lines...)
}

// changeInline writes the table between braces at p anew, with the text of the pairs that stay.
func (e *editor) changeInline(p *place, gone, added []string, values map[string]any) {
	removed := map[*place]bool{}
	for _, key := range gone {
		removed[p.key(key)] = true
		for _, leaf := range p.key(key).leaves(true) {
			removed[leaf] = true
		}
	}
	var pairs []string
	for _, leaf := range p.leaves(false) {
		if removed[leaf] {
			continue
		}
		text := string(e.text[leaf.from:leaf.to])
		for _, s := range e.splices { // its value changes
			if s.from == leaf.at && s.to == leaf.to {
				text = string(e.text[leaf.from:leaf.at]) + s.text
			}
		}
		pairs = append(pairs, text)
	}
	for _, key := range added {
		pairs = append(pairs, tomlPair(key, values[key]))
	}
	e.splices = nil // only this table's
	inner := e.text[p.at+1 : p.to-1]
	lead := inner[:len(inner)-len(bytes.TrimLeft(inner, " \t"))]
	e.replace(p.at, p.to, "{"+string(lead)+strings.Join(pairs, ", ")+string(lead)+"}")
}

// add adds a realserver to a service; list is the place of those that are there, or nil.
func (e *editor) add(service, list *place, keys map[string]any) {
	table := "{ " + strings.Join(tomlPairs(keys), ", ") + " }"
	switch {
	case list != nil && len(list.items) > 0 && list.items[0].header:
		e.addHeader(list.items, keys)
	case list != nil && len(list.items) > 0:
		e.addElement(list.items[len(list.items)-1], table)
	case list != nil && list.to > list.from: // an empty array
		if inner := e.text[list.at+1 : list.to-1]; len(bytes.TrimSpace(inner)) == 0 {
			e.replace(list.at+1, list.to-1, " "+table+" ")
		} else { // with comments
			e.replace(list.at+1, list.at+1, " "+table+",")
		}
	case service.header:
		indent := e.indent(service.from) + "  "
		lines := []string{"", indent + "[[service.realserver]]"}
		for _, pair := range tomlPairs(keys) {
			lines = append(lines, indent+pair)
		}
		e.insertLines(service.end()-1, lines...)
	default:
		e.changeInline(service, nil, []string{"realserver"}, map[string]any{"realserver": []any{keys}})
	}
}

// addHeader adds a table [[service.realserver]] behind the last one, and writes it as that one.
func (e *editor) addHeader(items []*place, keys map[string]any) {
	last := items[len(items)-1]
	indent := e.indent(last.from)
	inner := indent
	if own := last.leaves(false); len(own) > 0 {
		inner = e.indent(own[0].from)
	}
	lines := []string{indent + string(e.text[last.from:last.to])}
	if start := e.lineStart(last.from); start > 0 && len(bytes.TrimSpace(e.text[e.lineStart(start-1):start])) == 0 {
		lines = append([]string{""}, lines...)
	}
	for _, pair := range tomlPairs(keys) {
		lines = append(lines, inner+pair)
	}
	e.insertLines(last.end()-1, lines...)
}

// addElement adds an element behind the last one of an array, on a line of its own if that one's line ends there.
func (e *editor) addElement(last *place, table string) {
	rest := e.text[last.to:e.lineEnd(last.to)]
	after := bytes.TrimLeft(rest, " \t")
	comma := bytes.HasPrefix(after, []byte(","))
	after = bytes.TrimSpace(bytes.TrimPrefix(after, []byte(",")))
	if len(after) > 0 && after[0] != '#' { // more follows on the line
		e.replace(last.to, last.to, ", "+table)
		return
	}
	if comma {
		table += ","
	} else {
		e.replace(last.to, last.to, ",")
	}
	indent := e.indent(last.from)
	if len(bytes.TrimSpace(e.text[e.lineStart(last.from):last.from])) > 0 { // the array begins on this line
		indent += "  "
	}
	e.insertLines(last.to-1, indent+table)
}

// removeElement removes the i-th element of an array of tables.
func (e *editor) removeElement(list *place, i int) {
	item := list.item(i)
	if item.header {
		e.removeHeader(item)
		return
	}
	to := item.to
	rest := e.text[to:]
	comma := bytes.HasPrefix(bytes.TrimLeft(rest, " \t\r\n"), []byte(","))
	if comma {
		to += bytes.IndexByte(rest, ',') + 1
	}
	alone := len(bytes.TrimSpace(e.text[e.lineStart(item.from):item.from])) == 0
	after := bytes.TrimSpace(e.text[to:e.lineEnd(to)])
	if alone && (len(after) == 0 || after[0] == '#') {
		e.removeLines(item.from, to)
	} else {
		for to < len(e.text) && (e.text[to] == ' ' || e.text[to] == '\t') && (comma || i > 0) {
			to++
		}
		e.replace(item.from, to, "")
	}
	if before := item.from; !comma && i > 0 { // the comma before it is the last one, which TOML allows
		at := list.item(i - 1).to
		if n := bytes.IndexByte(e.text[at:before], ','); n >= 0 && len(bytes.TrimSpace(e.text[at+n+1:before])) == 0 {
			e.replace(at+n, at+n+1, "")
		}
	}
}

// removeHeader removes a table with a header, and one of the blank lines around it.
func (e *editor) removeHeader(item *place) {
	from, to := e.lineStart(item.from), e.lineEnd(item.end()-1)
	blank := func(start, end int) bool { return len(bytes.TrimSpace(e.text[start:end])) == 0 }
	if from > 0 && blank(e.lineStart(from-1), from) && (to == len(e.text) || blank(to, e.lineEnd(to))) {
		from = e.lineStart(from - 1)
	}
	e.replace(from, to, "")
}

// keyOrder returns the keys of a realserver in the order in which they are written.
func keyOrder(values map[string]any) []string {
	first := []string{"address", "forward", "port", "weight"}
	order := func(key string) int {
		if i := slices.Index(first, key); i >= 0 {
			return i
		}
		return len(first)
	}
	keys := slices.Sorted(maps.Keys(values))
	slices.SortStableFunc(keys, func(a, b string) int { return order(a) - order(b) })
	return keys
}

func tomlPairs(values map[string]any) (pairs []string) {
	for _, key := range keyOrder(values) {
		pairs = append(pairs, tomlPair(key, values[key]))
	}
	return pairs
}

func tomlPair(key string, v any) string { return tomlKey(key) + " = " + tomlValue(v) }

func tomlKey(key string) string {
	bare := func(r rune) bool {
		return r == '_' || r == '-' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
	}
	if key != "" && strings.IndexFunc(key, func(r rune) bool { return !bare(r) }) < 0 {
		return key
	}
	return tomlValue(key)
}

// tomlValue writes a value on one line.
func tomlValue(v any) string {
	switch v := v.(type) {
	case map[string]any:
		if len(v) == 0 {
			return "{}"
		}
		return "{ " + strings.Join(tomlPairs(v), ", ") + " }"
	case []any:
		var all []string
		for _, e := range v {
			all = append(all, tomlValue(e))
		}
		return "[" + strings.Join(all, ", ") + "]"
	case []map[string]any:
		var all []any
		for _, e := range v {
			all = append(all, e)
		}
		return tomlValue(all)
	}
	text, err := toml.Marshal(map[string]any{"v": v})
	if err != nil {
		return `""` // the comparison with what was asked for finds it
	}
	return strings.TrimSpace(strings.TrimPrefix(string(text), "v = "))
}
