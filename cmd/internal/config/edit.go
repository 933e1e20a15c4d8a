package config

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"vstun/cmd/internal/words"
)

// MissingError is that a configuration has no such service or realserver.
type MissingError struct{ text string }

func (e *MissingError) Error() string { return e.text }

// errLayout is that an edit would change more than it should.
var errLayout = errors.New("its tables are written in a way that cannot be edited in place: send the whole " +
	"configuration")

// SetRealserver returns a text of director.toml in which a realserver of a service has these keys of
// [[service.realserver]] and no others. A realserver that is not there is added behind the last one. id is its address,
// and its own port, where it has one; keys need not have them. Comments, order and layout of the rest stay. The text
// has no faults of syntax; the result may have others. The error is a *MissingError if there is no such service.
func SetRealserver(text []byte, service string, id netip.AddrPort, keys map[string]any) ([]byte, error) {
	keys = maps.Clone(keys)
	keys["address"] = id.Addr().String()
	if id.Port() != 0 {
		keys["port"] = int64(id.Port())
	}
	return editRealserver(text, service, id, keys)
}

// RemoveRealserver returns a text of director.toml without a realserver of a service. Comments before it stay. The
// error is a *MissingError if there is none.
func RemoveRealserver(text []byte, service string, id netip.AddrPort) ([]byte, error) {
	return editRealserver(text, service, id, nil)
}

// RealserverKeys returns the keys of a realserver of a service in a text of director.toml. The error is a *MissingError
// if there is none.
func RealserverKeys(text []byte, service string, id netip.AddrPort) (map[string]any, error) {
	d, err := readDocument(text)
	if err != nil {
		return nil, err
	}
	s, err := d.service(service)
	if err != nil {
		return nil, err
	}
	all := rowsOf(s.values["realserver"])
	if i := findRealserver(all, id); i >= 0 {
		return all[i], nil
	}
	return nil, noRealserver(service, id, all)
}

// editRealserver gives a realserver these keys; nil removes it.
func editRealserver(text []byte, service string, id netip.AddrPort, keys map[string]any) ([]byte, error) {
	d, err := readDocument(text)
	if err != nil {
		return nil, err
	}
	s, err := d.service(service)
	if err != nil {
		return nil, err
	}
	all := rowsOf(s.values["realserver"])
	i := findRealserver(all, id)
	e := &editor{text: d.text}
	list := s.at.key("realserver")
	switch {
	case keys == nil && i < 0:
		return nil, noRealserver(service, id, all)
	case keys == nil:
		e.removeElement(list, i)
		all = slices.Delete(slices.Clone(all), i, i+1)
	case i >= 0:
		e.change(list.item(i), all[i], keys)
		all = slices.Clone(all)
		all[i] = keys
	default:
		e.add(s.at, list, keys)
		all = append(slices.Clone(all), keys)
	}
	result := e.apply()
	s.values["realserver"] = all
	// The places are of one's own reading: what the parser makes of the result decides.
	if got, _, err := decode(result); err != nil || !reflect.DeepEqual(plainValue(got), plainValue(d.values)) {
		return nil, fmt.Errorf("service %q: %w", service, errLayout)
	}
	return append([]byte(byteOrderMark(text)), result...), nil
}

// document is a parsed text of director.toml.
type document struct {
	text   []byte // without a byte order mark
	values map[string]any
	at     *place
}

func readDocument(text []byte) (*document, error) {
	values, at, err := decode(text)
	return &document{text[len(byteOrderMark(text)):], values, at}, err
}

// service returns a service by its name.
func (d *document) service(name string) (row, error) {
	var names []string
	for i, values := range rowsOf(d.values["service"]) {
		n, _ := values["name"].(string)
		if at := d.at.key("service").item(i); n == name && values != nil && at != nil {
			return row{values, at}, nil
		}
		names = append(names, n)
	}
	return row{}, &MissingError{fmt.Sprintf("there is no service %q: %s", name, words.Instead(name, names))}
}

// rowsOf returns the elements of an array of tables, in either of TOML's spellings.
func rowsOf(v any) (rows []map[string]any) {
	switch list := v.(type) {
	case []map[string]any:
		return list
	case []any:
		for _, v := range list {
			values, _ := v.(map[string]any)
			rows = append(rows, values)
		}
	}
	return rows
}

// findRealserver returns the index of a realserver, or -1.
func findRealserver(all []map[string]any, id netip.AddrPort) int {
	return slices.IndexFunc(all, func(values map[string]any) bool {
		is, ok := writtenRealserver(values)
		return ok && is == id
	})
}

// writtenRealserver returns the address and port that a realserver's table has, as a name in paths and messages has
// them. The port counts whatever the forwarding method is.
func writtenRealserver(values map[string]any) (netip.AddrPort, bool) {
	text, _ := values["address"].(string)
	a, err := netip.ParseAddr(text)
	port, _ := values["port"].(int64)
	return netip.AddrPortFrom(a, uint16(port)), err == nil && port >= 0 && port <= 65535
}

func noRealserver(service string, id netip.AddrPort, all []map[string]any) error {
	const most = 20
	var names []string
	for _, values := range all[:min(len(all), most)] {
		if is, ok := writtenRealserver(values); ok {
			names = append(names, words.Realserver(is))
		}
	}
	has := "none"
	if len(names) > 0 {
		has = strings.Join(names, ", ")
	}
	if len(all) > most {
		has += fmt.Sprintf(" and %d more", len(all)-most)
	}
	return &MissingError{fmt.Sprintf("service %q has no realserver %s: it has %s", service, words.Realserver(id), has)}
}

// plainValue returns a decoded value in which each array is a []any. An absent array equals an empty one.
func plainValue(v any) any {
	switch v := v.(type) {
	case map[string]any:
		m := map[string]any{}
		for k, e := range v {
			if p := plainValue(e); !reflect.DeepEqual(p, []any{}) {
				m[k] = p
			}
		}
		return m
	case []map[string]any:
		list := []any{}
		for _, e := range v {
			list = append(list, plainValue(e))
		}
		return list
	case []any:
		list := []any{}
		for _, e := range v {
			list = append(list, plainValue(e))
		}
		return list
	}
	return v
}

// splice replaces the bytes from from to to.
type splice struct {
	from, to int
	text     string
}

// editor collects the changes of a text.
type editor struct {
	text    []byte
	splices []splice
}

func (e *editor) replace(from, to int, text string) {
	e.splices = append(e.splices, splice{from, to, text})
}

// apply returns the text with all changes. They do not overlap.
func (e *editor) apply() []byte {
	slices.SortStableFunc(e.splices, func(a, b splice) int { return a.from - b.from })
	var out bytes.Buffer
	at := 0
	for _, s := range e.splices {
		out.Write(e.text[at:max(at, s.from)])
		out.WriteString(s.text)
		at = max(at, s.to)
	}
	out.Write(e.text[at:])
	return out.Bytes()
}

// lineStart returns the offset of the line that has the byte at i.
func (e *editor) lineStart(i int) int { return bytes.LastIndexByte(e.text[:i], '\n') + 1 }

// lineEnd returns the offset behind the line that has the byte at i.
func (e *editor) lineEnd(i int) int {
	if n := bytes.IndexByte(e.text[i:], '\n'); n >= 0 {
		return i + n + 1
	}
	return len(e.text)
}

// indent returns the blanks at the beginning of the line that has the byte at i.
func (e *editor) indent(i int) string {
	line := e.text[e.lineStart(i):i]
	return string(line[:len(line)-len(bytes.TrimLeft(line, " \t"))])
}

// newline returns the end of lines in the text.
func (e *editor) newline() string {
	if bytes.Contains(e.text, []byte("\r\n")) {
		return "\r\n"
	}
	return "\n"
}

// insertLines inserts lines behind the line that has the byte at i.
func (e *editor) insertLines(i int, lines ...string) {
	end, nl := e.lineEnd(i), e.newline()
	text := strings.Join(lines, nl) + nl
	if end == 0 || e.text[end-1] != '\n' { // the last line has no end
		text = nl + strings.TrimSuffix(text, nl)
	}
	e.replace(end, end, text)
}

// removeLines removes the lines from one byte to another.
func (e *editor) removeLines(from, to int) {
	e.replace(e.lineStart(from), e.lineEnd(max(from, to-1)), "")
}

// leaves returns the pairs of a table in the order of the text: those of dotted keys too, and with headers those of
// tables below it that have a header.
func (p *place) leaves(headers bool) (all []*place) {
	for _, k := range p.keys {
		switch {
		case k.header && !headers, len(k.items) > 0 && k.items[0].header && !headers:
		case k.to > k.from && !k.header:
			all = append(all, k)
		default:
			all = append(all, k.leaves(headers)...)
		}
	}
	if headers {
		for _, item := range p.items {
			all = append(append(all, item), item.leaves(true)...)
		}
		if p.header {
			all = append(all, p)
		}
	}
	slices.SortFunc(all, func(a, b *place) int { return a.from - b.from })
	return all
}

// end returns the end of the last part of a table with a header.
func (p *place) end() int {
	end := p.to
	for _, k := range p.leaves(true) {
		end = max(end, k.to)
	}
	return end
}
