package migrate

import "strings"

// statement is one keyword of a keepalived.conf, with its arguments and its block.
type statement struct {
	Place
	text     string // as it stands there
	words    []string
	hasBlock bool
	block    []*statement
}

// name is the keyword.
func (s *statement) name() string { return s.words[0] }

// arg is the n-th argument, counted from 1, or "".
func (s *statement) arg(n int) string {
	if n < len(s.words) {
		return s.words[n]
	}
	return ""
}

// rest is the first argument of those that may be quoted and escaped as in a shell, and the others.
func (s *statement) rest() (first string, others []string) {
	list := shellWords(s.text)
	if len(list) < 2 {
		return "", nil
	}
	return list[1], list[2:]
}

// find is the last statement of this name in the block, or nil.
func (s *statement) find(name string) (found *statement) {
	for _, in := range s.block {
		if in.name() == name {
			found = in
		}
	}
	return found
}

// parseBlocks makes a tree of lines. Braces stand anywhere in a line, and belong to the keyword before them.
func parseBlocks(lines []line) (*statement, error) {
	root := &statement{hasBlock: true}
	open := []*statement{root}
	for _, l := range lines {
		for _, part := range splitBraces(l.text) {
			in := open[len(open)-1]
			switch part {
			case "{":
				if len(in.block) == 0 || in.block[len(in.block)-1].hasBlock {
					return nil, l.fault("a { that no keyword stands before: take it out, or write the keyword")
				}
				if len(open) > maxDepth {
					return nil, l.fault("more than %d blocks in each other: look for a } that is missing", maxDepth)
				}
				last := in.block[len(in.block)-1]
				last.hasBlock = true
				open = append(open, last)
			case "}":
				if len(open) == 1 {
					return nil, l.fault("a } too many: take it out, or look for the { that is missing above")
				}
				open = open[:len(open)-1]
			default:
				if w := words(part); len(w) > 0 {
					in.block = append(in.block, &statement{Place: l.Place, text: part, words: w})
				}
			}
		}
	}
	if len(open) > 1 {
		last := open[len(open)-1]
		return nil, last.fault("the block of %q is not closed: write the } that is missing", printable(last.name()))
	}
	return root, nil
}

// splitBraces splits a line before and after each brace that is neither quoted nor part of "${NAME}", which nothing defines.
func splitBraces(text string) (parts []string) {
	begin, quoted := 0, false
	add := func(end int) {
		if part := strings.Trim(text[begin:end], blank); part != "" {
			parts = append(parts, part)
		}
		begin = end
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
			add(i)
			parts = append(parts, string(c))
			begin = i + 1
		}
	}
	add(len(text))
	return parts
}
