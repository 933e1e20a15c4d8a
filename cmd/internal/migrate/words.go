package migrate

import (
	"strings"
)

const blank = " \t\n\v\f\r"

// words splits a line as keepalived does: at white space, and before and after double quotes (alloc_strvec_r in its
// lib/parser.c).
func words(text string) (list []string) {
	for {
		text = strings.TrimLeft(text, blank)
		if text == "" {
			return list
		}
		if quoted, ok := strings.CutPrefix(text, `"`); ok {
			word, rest, _ := strings.Cut(quoted, `"`)
			list, text = append(list, word), rest
			continue
		}
		end := strings.IndexAny(text, blank+`"`)
		if end < 0 {
			end = len(text)
		}
		list, text = append(list, text[:end]), text[end:]
	}
}

// shellWords splits a line with a shell's quotes and backslashes, as keepalived does with scripts, paths and regular
// expressions (alloc_strvec_quoted_escaped in its lib/parser.c).
func shellWords(text string) (list []string) {
	var word strings.Builder
	started, quote := false, byte(0)
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case c == '\\' && i+1 < len(text):
			var n int
			c, n = escape(text[i+1:])
			word.WriteByte(c)
			i += n
			started = true
		case c == quote && quote != 0:
			quote = 0
		case quote == 0 && (c == '"' || c == '\''):
			quote, started = c, true
		case quote == 0 && strings.IndexByte(blank, c) >= 0:
			if started {
				list = append(list, word.String())
			}
			word.Reset()
			started = false
		default:
			word.WriteByte(c)
			started = true
		}
	}
	if started {
		list = append(list, word.String())
	}
	return list
}

// escape reads the escape after a backslash, and returns its length in bytes.
func escape(text string) (c byte, n int) {
	digits := func(of string, base byte, most int) (value byte, n int) {
		for n < most && n < len(text) {
			d := strings.IndexByte(of, lower(text[n]))
			if d < 0 {
				break
			}
			value, n = value*base+byte(d), n+1
		}
		return value, n
	}
	if value, n := digits("01234567", 8, 3); n > 0 {
		return value, n
	}
	if i := strings.IndexByte("abEfnrtv", text[0]); i >= 0 {
		return "\a\b\x1b\f\n\r\t\v"[i], 1
	}
	switch {
	case text[0] == 'x' && len(text) > 1:
		text = text[1:]
		if value, n := digits("0123456789abcdef", 16, len(text)); n > 0 {
			return value, n + 1
		}
		return 'x', 1
	case text[0] == 'c' && len(text) > 1:
		return text[1] & 0x1f, 2
	}
	return text[0], 1
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}
