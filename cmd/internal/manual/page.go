package main

import (
	"fmt"
	"path"
	"regexp"
	"strings"
)

// section returns the text below a heading of a Markdown page, with the headings below it.
func section(page, heading string) (string, error) {
	var text strings.Builder
	level := 0 // of the heading, once it is found
	eachLine(page, func(line string, code bool) {
		if depth := headingLevel(line); !code && depth > 0 {
			switch {
			case level == 0 && strings.TrimSpace(line[depth:]) == heading:
				level = depth
				return
			case depth <= level:
				level = -1 // the section has ended
			}
		}
		if level > 0 {
			text.WriteString(line)
		}
	})
	if level == 0 {
		return "", fmt.Errorf("no section %q", heading)
	}
	return text.String(), nil
}

// plain returns a Markdown text in a form that md2man can show on a terminal: tables become lists, and links become
// text. The text's relative links begin in folder.
func plain(text, folder string) string {
	var out, prose strings.Builder
	var rows []string
	endTable := func() {
		if len(rows) > 0 {
			prose.WriteString(list(rows))
			rows = nil
		}
	}
	endProse := func() {
		endTable()
		out.WriteString(unlink(prose.String(), folder))
		prose.Reset()
	}
	eachLine(text, func(line string, code bool) {
		switch {
		case code:
			endProse()
			out.WriteString(line)
		case strings.HasPrefix(line, "|"):
			rows = append(rows, line)
		default:
			endTable()
			prose.WriteString(line)
		}
	})
	endProse()
	return out.String()
}

// eachLine calls f for each line of a Markdown text. code reports whether it belongs to a fenced block.
func eachLine(text string, f func(line string, code bool)) {
	fenced := false
	for line := range strings.Lines(text) {
		fence := strings.HasPrefix(line, "```")
		f(line, fenced || fence)
		if fence {
			fenced = !fenced
		}
	}
}

// headingLevel returns the number of # before a heading, and 0 for other lines.
func headingLevel(line string) int {
	rest := strings.TrimLeft(line, "#")
	if !strings.HasPrefix(rest, " ") {
		return 0
	}
	return len(line) - len(rest)
}

// link matches a Markdown link, whose text may have a pair of brackets in it and span lines.
var link = regexp.MustCompile(`\[([^\[\]]*(?:\[[^\[\]]*\]+[^\[\]]*)?)\]\(([^()#\s]*)(#[^()\s]*)?\)`)

// unlink replaces each link in text by the link's text. The name of another page, or a Web address, follows it in
// parentheses.
func unlink(text, folder string) string {
	return link.ReplaceAllStringFunc(text, func(s string) string {
		m := link.FindStringSubmatch(s)
		label, to := m[1], m[2]
		switch {
		case to == "":
			return label
		case !strings.Contains(to, "://"):
			to = path.Join(folder, to)
		}
		if strings.HasSuffix(to, label) {
			return to
		}
		return label + " (" + to + ")"
	})
}

// list returns a table as a list of definitions. The terms are in the first column.
func list(rows []string) string {
	var out strings.Builder
	head := cells(rows[0])
	for _, row := range rows[min(2, len(rows)):] { // the second row is a ruler
		c := cells(row)
		term, meaning := c[0], c[len(c)-1]
		switch {
		case len(head) == 4 && head[1] == "Type":
			term = fmt.Sprintf("%s (%s)", term, strings.Join(append([]string{c[1]}, byDefault(c[2])...), ", "))
		case len(head) > 2:
			var parts []string
			for i := 1; i < len(c); i++ {
				if c[i] != "" {
					parts = append(parts, fmt.Sprintf("*%s*: %s", head[i], c[i]))
				}
			}
			meaning = strings.Join(parts, "; ")
		}
		fmt.Fprintf(&out, "%s\n: %s\n\n", term, meaning)
	}
	return out.String()
}

// byDefault returns the list's words for a key's default.
func byDefault(value string) []string {
	switch value {
	case "", "–", "none":
		return nil
	case "required":
		return []string{value}
	}
	return []string{"default: " + value}
}

// cells returns the cells of a table's row.
func cells(row string) []string {
	const pipe = "\x00" // in place of a pipe that is no border
	row = strings.Trim(strings.TrimSpace(strings.ReplaceAll(row, `\|`, pipe)), "|")
	var out []string
	for _, c := range strings.Split(row, "|") {
		out = append(out, strings.ReplaceAll(strings.TrimSpace(c), pipe, "|"))
	}
	return out
}
