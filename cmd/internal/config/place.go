package config

import (
	"bytes"
	"strconv"
	"strings"
)

// place is the position of a value in a TOML document.
type place struct {
	line  int               // counted from 1; of a table its header
	keys  map[string]*place // of a table
	items []*place          // of an array

	// Bytes of the document, behind a byte order mark. A table that only dotted keys name has none.
	from   int  // of the key, of an element, or of a header's bracket
	at, to int  // of the value; of a header at its end
	header bool // a table with a header: its pairs follow on lines of their own
}

// key returns the place of a key, or nil where p has no such key.
func (p *place) key(name string) *place {
	if p == nil {
		return nil
	}
	return p.keys[name]
}

// item returns the place of the i-th element, or nil where p has none.
func (p *place) item(i int) *place {
	if p == nil || i >= len(p.items) {
		return nil
	}
	return p.items[i]
}

// table returns the table below p that a part of a dotted key or of a header names. For an array of tables it returns
// the last one. A new table is added on this line.
func (p *place) table(name string, line int) *place {
	if p.keys[name] == nil {
		p.put(name, &place{line: line})
	}
	if t := p.keys[name]; len(t.items) > 0 {
		return t.items[len(t.items)-1]
	}
	return p.keys[name]
}

func (p *place) put(name string, value *place) {
	if p.keys == nil {
		p.keys = map[string]*place{}
	}
	p.keys[name] = value
}

// maxLevels is far more than a configuration needs: tables and arrays that are in each other. The TOML parser's time
// for a value grows with the square of its levels.
const maxLevels = 16

// locate returns the places of the keys and values of a document. The TOML parser does not export them. They are right
// up to the first error that the parser finds. If a value has more levels than maxLevels, locate ends there and returns
// the place as excess.
func locate(text []byte) (root, excess *place) {
	l := &locator{text: text[len(byteOrderMark(text)):], line: 1}
	root = &place{line: 1}
	table := root
	for l.blank(); !l.end(); l.blank() {
		if l.peek() != '[' {
			l.pair(table)
			continue
		}
		line, from := l.line, l.at
		l.at, l.level = l.at+1, 0
		array := l.peek() == '['
		if array {
			l.at++
		}
		names := l.names()
		for l.peek() == ']' {
			l.at++
		}
		table = root
		for _, name := range names[:len(names)-1] {
			table = table.table(name, line)
		}
		last := names[len(names)-1]
		if array {
			list := table.key(last)
			if list == nil {
				list = &place{line: line}
				table.put(last, list)
			}
			list.items = append(list.items, &place{line: line})
		}
		table = table.table(last, line)
		table.line, table.header = line, true
		table.from, table.at, table.to = from, l.at, l.at
	}
	return root, l.excess
}

// byteOrderMark returns the mark at the beginning of a text that the parser skips; "" is none.
func byteOrderMark(text []byte) string {
	for _, bom := range []string{"\xef\xbb\xbf", "\xff\xfe", "\xfe\xff"} {
		if bytes.HasPrefix(text, []byte(bom)) {
			return bom
		}
	}
	return ""
}

// locator is a cursor at a byte of a document and on its line. Each of its methods advances by at least one byte, or is
// at the end.
type locator struct {
	text   []byte
	at     int
	line   int
	level  int    // tables and arrays around the cursor
	excess *place // where there were too many
}

// enter notes that the cursor is below level tables and arrays. It reports whether that is allowed; else the cursor is
// at the end.
func (l *locator) enter(level int) bool {
	if l.level = level; level <= maxLevels {
		return true
	}
	l.excess, l.at = &place{line: l.line}, len(l.text)
	return false
}

func (l *locator) end() bool { return l.at >= len(l.text) }

// peek returns the next byte; 0 at the end.
func (l *locator) peek() byte {
	if l.end() {
		return 0
	}
	return l.text[l.at]
}

// skip advances by n bytes.
func (l *locator) skip(n int) {
	for ; n > 0 && !l.end(); n-- {
		if l.text[l.at] == '\n' {
			l.line++
		}
		l.at++
	}
}

// blank skips white space and comments.
func (l *locator) blank() {
	for !l.end() {
		switch l.peek() {
		case ' ', '\t', '\r', '\n':
			l.skip(1)
		case '#':
			if n := bytes.IndexByte(l.text[l.at:], '\n'); n >= 0 {
				l.at += n
			} else {
				l.at = len(l.text)
			}
		default:
			return
		}
	}
}

// pair reads a key, "=" and a value into a table.
func (l *locator) pair(table *place) {
	line, from, level := l.line, l.at, l.level
	names := l.names()
	defer func() { l.level = level }()
	for _, name := range names[:len(names)-1] {
		table = table.table(name, line)
	}
	last := names[len(names)-1]
	value := table.key(last) // the parser lets "a.b = 1" and then "a = 2" pass
	if value == nil {
		value = &place{}
		table.put(last, value)
	}
	value.line = line
	if l.peek() == '=' {
		l.at++
	}
	l.value(value)
	value.from = from
}

// names reads a dotted key, up to the text behind it. The result has at least one name.
func (l *locator) names() (names []string) {
	for {
		l.blank()
		names = append(names, l.name())
		l.blank()
		if !l.enter(l.level+1) || l.peek() != '.' {
			return names
		}
		l.at++
	}
}

func (l *locator) name() string {
	from := l.at
	switch c := l.peek(); c {
	case '"', '\'':
		l.text1(c)
		quoted := string(l.text[from:l.at])
		if name, err := strconv.Unquote(quoted); c == '"' && err == nil {
			return name
		}
		return strings.Trim(quoted, string(c))
	}
	l.until(" \t\r\n.=]")
	return string(l.text[from:l.at])
}

// until skips one byte, and then all bytes before one of the stops.
func (l *locator) until(stops string) {
	l.skip(1)
	for !l.end() && strings.IndexByte(stops, l.peek()) < 0 {
		l.skip(1)
	}
}

// value reads a value and adds its parts to p.
func (l *locator) value(p *place) {
	l.blank()
	p.from, p.at = l.at, l.at
	defer func() { p.to = p.at + len(bytes.TrimRight(l.text[p.at:l.at], " \t")) }()
	switch c := l.peek(); c {
	case '"', '\'':
		if three := strings.Repeat(string(c), 3); bytes.HasPrefix(l.text[l.at:], []byte(three)) {
			l.text3(c, three)
		} else {
			l.text1(c)
		}
	case '[':
		for l.open(); l.enter(l.level+1) && l.more(']'); l.level-- {
			item := &place{line: l.line}
			l.value(item)
			p.items = append(p.items, item)
		}
		l.level--
	case '{':
		for l.open(); l.more('}'); {
			l.pair(p)
		}
	default:
		l.until(",]}#\r\n")
	}
}

func (l *locator) open() { l.skip(1) }

// more reports whether another part of an array or inline table follows. It skips the text before that part, or the
// closing bracket.
func (l *locator) more(closing byte) bool {
	l.blank()
	for l.peek() == ',' {
		l.at++
		l.blank()
	}
	if l.peek() == closing {
		l.at++
		return false
	}
	return !l.end()
}

// text1 skips a string of one line.
func (l *locator) text1(quote byte) {
	for l.skip(1); !l.end() && l.peek() != quote; l.skip(1) {
		if l.peek() == '\\' && quote == '"' {
			l.skip(1)
		}
	}
	l.skip(1)
}

// text3 skips a string between triple quotes. The string itself may end with up to two quotes.
func (l *locator) text3(quote byte, three string) {
	for l.skip(3); !l.end() && !bytes.HasPrefix(l.text[l.at:], []byte(three)); l.skip(1) {
		if l.peek() == '\\' && quote == '"' {
			l.skip(1)
		}
	}
	for l.skip(3); l.peek() == quote; {
		l.skip(1)
	}
}
