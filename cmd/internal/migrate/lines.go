package migrate

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Bounds of a source with its included files and its definitions.
const (
	maxFile   = 16 << 20  // bytes of one file
	maxSteps  = 1 << 23   // lines in all
	maxBytes  = 256 << 20 // of all lines
	maxLine   = 64 << 10  // bytes of a line after substitution
	maxDepth  = 32        // files that include each other, sequences in sequences
	maxBlocks = 100_000   // repetitions by ~SEQ and ~LST
	maxUses   = 400_000   // uses of definitions of several lines
	maxCopied = 4 << 30   // bytes read from files and copied by substitution
)

// TooLargeError is the error of a file larger than 16 MiB.
type TooLargeError struct{ Name string }

func (e TooLargeError) Error() string {
	return fmt.Sprintf("%s: is larger than %d MiB", e.Name, maxFile>>20)
}

// ReadFile reads a file for an import.
func ReadFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return ReadAll(path, f)
}

// ReadAll is ReadFile for an open file. name is its name in errors.
func ReadAll(name string, r io.Reader) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err == nil && len(text) > maxFile {
		err = TooLargeError{name}
	}
	return text, err
}

// line is one line without comments, after substitution.
type line struct {
	Place
	text string
}

// lineReader reads keepalived's lines: comments, conditions, definitions, sequences and included files (read_line in
// its lib/parser.c).
type lineReader struct {
	id      string // keepalived's -i
	include bool   // files may be read
	plan    *plan
	defs    map[string]string // names are case sensitive; the lines of a definition of several are joined by newlines
	lines   []line
	steps   int
	bytes   int
	blocks  int // made by ~SEQ and ~LST
	uses    int // of definitions of several lines
	copied  int // bytes
	saidID  bool
}

var errTooMuch = errors.New("grows beyond all measure: look for a file that includes itself, or a definition that " +
	"holds itself")

// file reads the text of a file. Relative paths in it begin at dir.
func (r *lineReader) file(name, dir string, text []byte, depth int) error {
	var definition struct {
		name  string // of the open definition of several lines; "": none
		lines []string
	}
	closeDefinition := func() {
		if definition.name != "" {
			r.defs[definition.name] = strings.Join(definition.lines, "\n")
		}
		definition.name, definition.lines = "", nil
	}
	if absolute, err := filepath.Abs(dir); err == nil {
		defer func(before string) { r.defs["_PWD"] = before }(r.defs["_PWD"])
		r.defs["_PWD"] = absolute
	}
	n := 0
	if r.copied += len(text); r.copied > maxCopied {
		return Place{name, 1}.fault("%v", errTooMuch)
	}
	for raw := range strings.Lines(string(text)) {
		n++
		at := Place{name, n}
		text, more, err := uncomment(strings.TrimRight(raw, "\r\n"))
		if err != nil {
			return at.fault("%v", err)
		}
		if definition.name != "" {
			if text != "" {
				definition.lines = append(definition.lines, text)
			}
			if !more {
				closeDefinition()
			}
			continue
		}
		text = r.condition(at, text)
		if key, value, ok := asDefinition(text); ok && more {
			definition.name = key
			if value != "" {
				definition.lines = append(definition.lines, value)
			}
			continue
		}
		if more {
			text += `\`
		}
		if err := r.step(at, dir, text, depth); err != nil {
			return err
		}
	}
	closeDefinition()
	return nil
}

// uncomment removes comments, their escapes, and white space at both ends. more reports whether the line ends with a
// backslash.
func uncomment(text string) (_ string, more bool, _ error) {
	var b strings.Builder
	quoted := false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '"':
			quoted = !quoted
		case c == '\\' && i+1 == len(text):
			more = true
			continue
		case c == '\\' && !quoted && (text[i+1] == '#' || text[i+1] == '!'):
			i++
		case c == '\\':
			b.WriteByte(c)
			i++
		case !quoted && (c == '#' || c == '!'):
			more = strings.HasSuffix(text, `\`)
			return strings.Trim(b.String(), blank), more, nil
		}
		b.WriteByte(text[i])
	}
	if quoted {
		return "", false, errors.New(`a quote (") is not closed: close it`)
	}
	return strings.Trim(b.String(), blank), more, nil
}

// asDefinition splits "$NAME=VALUE".
func asDefinition(text string) (name, value string, ok bool) {
	rest, ok := strings.CutPrefix(text, "$")
	n := nameLength(rest)
	if !ok || n == 0 || n >= len(rest) || rest[n] != '=' {
		return "", "", false
	}
	return rest[:n], strings.TrimLeft(rest[n+1:], blank), true
}

// nameLength returns the length of the name of a definition at the beginning of text.
func nameLength(text string) int {
	for i := range len(text) {
		if c := lower(text[i]); c != '_' && (c < 'a' || c > 'z') && (i == 0 || c < '0' || c > '9') {
			return i
		}
	}
	return len(text)
}

// condition resolves "@ID line" and "@^ID line" to the line or "".
func (r *lineReader) condition(at Place, text string) string {
	rest, ok := strings.CutPrefix(text, "@")
	if !ok {
		return text
	}
	rest, not := strings.CutPrefix(rest, "^")
	end := strings.IndexAny(rest, blank)
	if !r.saidID {
		r.saidID = true
		r.plan.note(at, "lines that begin with @ are for one host each: these are %s's: name another by --config-id",
			r.id)
	}
	if end < 0 || (rest[:end] == r.id) == not {
		return ""
	}
	return strings.TrimLeft(rest[end:], blank)
}

// step processes one line: a definition, a sequence, an included file, or a line that stays.
func (r *lineReader) step(at Place, dir, text string, depth int) error {
	r.steps++
	r.bytes += len(text)
	if r.steps > maxSteps || r.bytes > maxBytes || depth > maxDepth {
		return at.fault("%v", errTooMuch)
	}
	text = r.condition(at, strings.Trim(text, blank))
	if name, value, ok := asDefinition(text); ok {
		r.defs[name] = value
		return nil
	}
	if strings.HasPrefix(text, "~") {
		return r.sequence(at, dir, text, depth)
	}
	text, ok := r.substitute(text)
	r.bytes += len(text)
	if strings.Contains(text, "\n") {
		r.uses++
	}
	if !ok || r.uses > maxUses {
		return at.fault("%v", errTooMuch)
	}
	if strings.HasPrefix(text, "~") || strings.HasPrefix(text, "@") || strings.Contains(text, "\n") {
		for part := range strings.Lines(text) {
			if err := r.step(at, dir, strings.TrimRight(part, "\n"), depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	if w := words(text); len(w) == 2 && slices.Contains([]string{"include", "includer", "includem", "includew",
		"includeb", "includea"}, w[0]) {
		return r.includeFiles(at, dir, w[1], depth)
	}
	if text != "" {
		r.lines = append(r.lines, line{at, text})
	}
	return nil
}

// substitute replaces names by their definitions. A definition of several lines is replaced only at the end of a line;
// its further lines then follow as lines of their own.
func (r *lineReader) substitute(text string) (_ string, ok bool) {
	for i, tries := 0, 0; ; {
		dollar := strings.IndexByte(text[i:], '$')
		if dollar < 0 {
			return text, true
		}
		i += dollar
		name, length := reference(text[i+1:])
		value, known := r.defs[name]
		first, rest, several := strings.Cut(value, "\n")
		if r.copied += len(first); r.copied > maxCopied {
			return "", false
		}
		end := i + 1 + length
		if name == "" || !known || several && end < len(text) {
			i++
			continue
		}
		text = text[:i] + first + text[end:]
		r.copied += len(text)
		if tries++; tries > maxDepth*maxDepth || len(text) > maxLine {
			return "", false
		}
		if several {
			return text + "\n" + rest, true
		}
	}
}

// reference reads the text after a dollar sign: {NAME}, or NAME before white space. length is 0 for anything else.
func reference(text string) (name string, length int) {
	if inner, ok := strings.CutPrefix(text, "{"); ok {
		if n := nameLength(inner); n > 0 && n < len(inner) && inner[n] == '}' {
			return inner[:n], n + 2
		}
		return "", 0
	}
	n := nameLength(text)
	if n == 0 || n < len(text) && text[n] != ' ' && text[n] != '\t' {
		return "", 0
	}
	return text[:n], n
}

// sequence repeats a line: "~SEQ(NAME, FIRST, STEP, LAST) line". FIRST and STEP may be missing. ~SEQx writes
// hexadecimal numbers.
func (r *lineReader) sequence(at Place, dir, text string, depth int) error {
	head, rest, ok := strings.Cut(text, ")")
	head, bounded := r.substitute(head)
	word, list, isList := strings.Cut(head, "(")
	word = strings.TrimSpace(word)
	switch {
	case word == "~LST" && ok && isList:
		return r.list(at, dir, list, rest, depth)
	case !ok || !isList || word != "~SEQ" && word != "~SEQx":
		r.plan.note(at, "%s: only ~SEQ, ~SEQx and ~LST are understood: write the lines out that this one stands for",
			strings.TrimSpace(strings.Split(text, "(")[0]))
		return nil
	case !bounded:
		return at.fault("%v", errTooMuch)
	}
	args := strings.Split(list, ",")
	name := strings.TrimSpace(args[0])
	var numbers []int64
	for _, a := range args[1:] {
		n, err := strconv.ParseInt(strings.TrimSpace(a), 0, 32)
		if err != nil {
			return at.fault("%s): %q is not a number: want ~SEQ(NAME, FIRST, STEP, LAST)", head, a)
		}
		numbers = append(numbers, n)
	}
	var first, step, last int64
	switch len(numbers) {
	case 1:
		first, last = 1, numbers[0]
		if last < 0 {
			first = -1
		}
	case 2:
		first, last = numbers[0], numbers[1]
	case 3:
		first, step, last = numbers[0], numbers[1], numbers[2]
	}
	if step == 0 && len(numbers) < 3 {
		step = 1
		if first > last {
			step = -1
		}
	}
	if len(numbers) == 0 || len(numbers) > 3 || nameLength(name) != len(name) || name == "" || step == 0 ||
		(last-first)*step < 0 {
		return at.fault("%s) does not count: want ~SEQ(NAME, FIRST, STEP, LAST)", head)
	}
	for n := first; step > 0 && n <= last || step < 0 && n >= last; n += step {
		r.defs[name] = strconv.FormatInt(n, 10)
		if word == "~SEQx" {
			r.defs[name] = strconv.FormatInt(n, 16)
		}
		if err := r.repeat(at, dir, rest, depth); err != nil {
			return err
		}
	}
	return nil
}

// repeat reads the text of a sequence or a list once, with the current definitions.
func (r *lineReader) repeat(at Place, dir, text string, depth int) error {
	if r.blocks++; r.blocks > maxBlocks {
		return at.fault("%v: ~SEQ and ~LST make more than %d blocks", errTooMuch, maxBlocks)
	}
	return r.step(at, dir, text, depth+1)
}

// list repeats a line: "~LST(NAME, A, B) line" or "~LST({NAME, NAME}, {A, A}, {B, B}) line". A missing value is empty.
func (r *lineReader) list(at Place, dir, list, text string, depth int) error {
	groups, ok := splitList(list)
	if !ok || len(groups) < 2 {
		r.plan.note(at, "~LST(%s): left out: want ~LST(NAME, VALUE, VALUE) or ~LST({NAME, NAME}, {VALUE, VALUE})", list)
		return nil
	}
	for _, values := range groups[1:] {
		if r.steps += len(groups[0]); r.steps > maxSteps {
			return at.fault("%v", errTooMuch)
		}
		for i, name := range groups[0] {
			r.defs[name] = ""
			if i < len(values) {
				r.defs[name] = values[i]
			}
		}
		if err := r.repeat(at, dir, text, depth); err != nil {
			return err
		}
	}
	return nil
}

// splitList splits "a, {b, c}" into [a] and [b c].
func splitList(list string) (groups [][]string, ok bool) {
	for {
		list = strings.Trim(list, blank)
		var group []string
		inner, isGroup := strings.CutPrefix(list, "{")
		end := strings.IndexByte(list, ',')
		if isGroup {
			if inner, list, ok = strings.Cut(inner, "}"); !ok {
				return nil, false
			}
			group = strings.Split(inner, ",")
			list = strings.Trim(list, blank)
			end = strings.IndexByte(list, ',')
			if end > 0 || end < 0 && list != "" {
				return nil, false
			}
		} else {
			word := list
			if end >= 0 {
				word = list[:end]
			}
			group = []string{word}
		}
		for i := range group {
			group[i] = strings.Trim(group[i], blank)
		}
		groups = append(groups, group)
		if end < 0 {
			return groups, true
		}
		list = list[end+1:]
	}
}

// includeFiles reads the files that match a pattern. As in keepalived, the import continues after an unreadable file.
func (r *lineReader) includeFiles(at Place, dir, pattern string, depth int) error {
	if !filepath.IsAbs(pattern) {
		pattern = filepath.Join(dir, pattern)
	}
	var files []string
	if r.include {
		files, _ = filepath.Glob(pattern)
	}
	if len(files) == 0 {
		r.plan.note(at, "include %s: there is no such file: import on the host where it is, or paste it in", pattern)
	}
	for _, name := range files {
		if info, err := os.Stat(name); err == nil && info.IsDir() {
			continue
		} else if err == nil && !info.Mode().IsRegular() {
			r.plan.note(at, "include %s: is not a regular file: paste it in", name)
			continue
		}
		text, err := ReadFile(name)
		if _, large := err.(TooLargeError); large {
			r.plan.note(at, "include: %v: left out: include a configuration file", err)
			continue
		}
		if err != nil {
			r.plan.note(at, "include: %v: import as a user who may read it, or paste it in", err)
			continue
		}
		if err := r.file(name, filepath.Dir(name), text, depth+1); err != nil {
			return err
		}
	}
	return nil
}
