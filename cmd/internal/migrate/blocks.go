package migrate

import (
	"iter"
	"strings"
)

// statement is one keyword of a keepalived.conf, with its arguments and its block.
type statement struct {
	Place
	text     string // the whole line
	words    []string
	hasBlock bool
	block    []*statement
}

// name returns the keyword.
func (s *statement) name() string { return s.words[0] }

// arg returns the n-th argument, counted from 1, or "".
func (s *statement) arg(n int) string {
	if n < len(s.words) {
		return s.words[n]
	}
	return ""
}

// rest returns the first argument and the others. They may be quoted and escaped as in a shell.
func (s *statement) rest() (first string, others []string) {
	list := shellWords(s.text)
	if len(list) < 2 {
		return "", nil
	}
	return list[1], list[2:]
}

// find returns the last statement of this name in the block, or nil.
func (s *statement) find(name string) (found *statement) {
	for _, in := range s.block {
		if in.name() == name {
			found = in
		}
	}
	return found
}

// size returns the length of the statement and its block, in bytes of the source. A statement counts as at least 16.
func (s *statement) size() int {
	n := max(len(s.text), 16)
	for _, in := range s.block {
		n += in.size()
	}
	return n
}

// blockLevels are the depths of those blocks of keepalived that a missing brace can move elsewhere. 0 is the top level.
var blockLevels = map[string]int{
	"virtual_server": 0, "virtual_server_group": 0, "global_defs": 0, "SSL": 0,
	"static_ipaddress": 0, "static_routes": 0, "static_rules": 0,
	"vrrp_instance": 0, "vrrp_sync_group": 0, "vrrp_script": 0,
	"real_server": 1,
	"HTTP_GET":    2, "SSL_GET": 2, "TCP_CHECK": 2, "SMTP_CHECK": 2, "DNS_CHECK": 2, "MISC_CHECK": 2,
	"UDP_CHECK": 2, "PING_CHECK": 2, "BFD_CHECK": 2, "FILE_CHECK": 2,
	"url": 3,
}

// blockReader makes a tree of lines. After a wrong brace it continues as keepalived does (process_stream in its
// lib/parser.c), and notes the brace.
type blockReader struct {
	*plan
	open []*statement // the root, and the blocks around the next statement
}

const asKeepalived = "keepalived goes on, and so does the import"

// parseBlocks makes a tree of lines. A brace may be anywhere in a line, and belongs to the keyword before it.
func (p *plan) parseBlocks(lines []line) (*statement, error) {
	root := &statement{hasBlock: true}
	r := blockReader{p, []*statement{root}}
	for _, l := range lines {
		for part := range splitBraces(l.text) {
			if err := r.take(l.Place, part); err != nil {
				return nil, err
			}
		}
	}
	for _, last := range r.open[1:] {
		r.note(last.Place, "the block of %q is not closed: %s: it ends with the file: write the } that is missing",
			last.name(), asKeepalived)
	}
	return root, nil
}

// take adds a brace or a statement.
func (r *blockReader) take(at Place, part string) error {
	in := r.open[len(r.open)-1]
	switch part {
	case "{":
		return r.begin(at, in)
	case "}":
		if len(r.open) == 1 {
			r.note(at, "a } too many: %s: take it out, or look for the { that is missing above", asKeepalived)
			return nil
		}
		r.open = r.open[:len(r.open)-1]
		return nil
	}
	if last := in.last(); last != nil && !last.hasBlock && r.fits(last) && len(r.open) <= maxDepth {
		r.note(last.Place, "%s has no {: keepalived goes on as if it were there, and so does the import: write it",
			last.name())
		last.hasBlock = true
		r.open = append(r.open, last)
		in = last
	}
	if w := words(part); len(w) > 0 {
		in.block = append(in.block, &statement{Place: at, text: part, words: w})
	}
	return nil
}

// begin opens the block of a brace.
func (r *blockReader) begin(at Place, in *statement) error {
	last := in.last()
	level, isBlock := blockLevels[name(last)]
	switch {
	case last == nil || last.hasBlock || last.Place != at && !isBlock && isSetting(last.name()):
		r.note(at, "a { that no keyword of a block stands before: %s without it: take it out, or write the keyword",
			asKeepalived)
		return nil
	case isBlock && level < len(r.open)-1 && r.open[1].name() == "virtual_server":
		r.note(last.Place, "%s stands in the block of %s of line %d, where a } is missing: keepalived takes what "+
			"follows for that block's, and so does the import: write the }",
			strings.Join(last.words, " "), in.name(), in.Line)
		in.block = in.block[:len(in.block)-1]
		return nil
	case len(r.open) > maxDepth:
		return at.fault("more than %d blocks in each other: look for a } that is missing", maxDepth)
	}
	last.hasBlock = true
	r.open = append(r.open, last)
	return nil
}

// fits reports whether s is the keyword of a block that belongs at this depth.
func (r *blockReader) fits(s *statement) bool {
	level, isBlock := blockLevels[s.name()]
	return isBlock && level == len(r.open)-1
}

// last returns the last statement of the block, or nil.
func (s *statement) last() *statement {
	if len(s.block) == 0 {
		return nil
	}
	return s.block[len(s.block)-1]
}

func name(s *statement) string {
	if s == nil {
		return ""
	}
	return s.name()
}

// splitBraces splits a line before and after each brace. It does not split at quoted braces and at the braces of an
// undefined "${NAME}".
func splitBraces(text string) iter.Seq[string] {
	return func(yield func(string) bool) {
		begin, quoted := 0, false
		part := func(end int) bool { // ends at end
			text := strings.Trim(text[begin:end], blank)
			begin = end
			return text == "" || yield(text)
		}
		for i := 0; i < len(text); i++ {
			switch c := text[i]; {
			case c == '"':
				quoted = !quoted
			case quoted:
			case c == '$':
				_, length := reference(text[i+1:])
				i += length
			case c == '{' || c == '}':
				if !part(i) || !part(i+1) {
					return
				}
			}
		}
		part(len(text))
	}
}
