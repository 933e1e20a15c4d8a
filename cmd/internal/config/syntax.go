package config

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/BurntSushi/toml"
)

// syntaxFault returns the line and column of the text that the TOML parser refuses, and a message about it in the form
// of the other faults.
func syntaxFault(text []byte, err toml.ParseError) (line, column int, message string) {
	at := min(max(err.Position.Start, 0), len(text))
	begin := bytes.LastIndexByte(text[:at], '\n') + 1
	line = bytes.Count(text[:at], []byte("\n")) + 1
	column = utf8.RuneCount(text[begin:at]) + 1
	if secretValue.Match(text[begin:at]) { // the parser's message may quote the value
		return line, column, secretKey + ": its value is not a string: want it in quotes, \"…\""
	}
	return line, column, syntaxMessage(err, bareWord(text, at))
}

// reDefined is the parser's message about a key or table that is defined twice.
var reDefined = regexp.MustCompile(`^Key '(.*)' (?:has already|was already)`)

// secretValue matches the beginning of a value that stands in no message.
var secretValue = regexp.MustCompile(`\b` + secretKey + `\s*=`)

// syntaxMessage rewords the parser's message; word is the unquoted word at its position.
func syntaxMessage(err toml.ParseError, word string) string {
	raw := err.Message
	has := func(texts ...string) bool {
		for _, s := range texts {
			if strings.Contains(raw, s) {
				return true
			}
		}
		return false
	}
	key := ""
	if err.LastKey != "" {
		key = err.LastKey + ": "
	}
	switch defined := reDefined.FindStringSubmatch(raw); {
	case defined != nil:
		return fmt.Sprintf("%s: is there twice: want it once", defined[1])
	case word == "True" || word == "False" || word == "TRUE" || word == "FALSE":
		return fmt.Sprintf("%s%s is not a value: want %s", key, word, strings.ToLower(word))
	case word != "" && has("expected value", "end with a newline", "array terminator", "inline table terminator",
		"Invalid float", "invalid datetime") &&
		strings.ContainsFunc(word, func(r rune) bool { return unicode.IsLetter(r) || strings.ContainsRune(".:/-", r) }):
		return fmt.Sprintf("%s%s is not a value: strings need quotes: want %q", key, word, word)
	case has(`expected value but found '\n'`, `expected value but found '\r'`, "expected value but found '#'",
		"expected a digit") ||
		has("unexpected EOF; expected value") && !has("array"):
		return key + "the value is missing: want one behind ="
	case has("unexpected EOF", "end of file"):
		return key + "the file ends in the middle of a value: close its quotes or brackets"
	case has("strings cannot contain newlines"):
		return key + "the string has no end on its line: close its quotes"
	case has("'.' or '='", "expected key separator"):
		return "neither a key nor a table: want KEY = VALUE or [TABLE]"
	case has("key name appears blank", "cannot start with a '.'"):
		return "the key is missing: want KEY = VALUE"
	case has("table name"):
		return "the table's name has no end, or is empty: want [TABLE] or [[TABLE]]"
	case has("end with a newline"):
		return "more stands behind the value: want one value a line, several in an array: [1, 2]"
	case has("terminator"):
		return key + "no comma stands between two values: want [1, 2] or { a = 1, b = 2 }"
	}
	return fmt.Sprintf("%s%s: want TOML (https://toml.io)", key, strings.TrimSuffix(lowerFirst(raw), "."))
}

// lowerFirst returns s with a small first letter, unless it begins with an abbreviation.
func lowerFirst(s string) string {
	r, n := utf8.DecodeRuneInString(s)
	if next, _ := utf8.DecodeRuneInString(s[n:]); unicode.IsUpper(next) {
		return s
	}
	return string(unicode.ToLower(r)) + s[n:]
}

// bareWord returns the word around a position: letters, digits and the signs in addresses, ranges and paths.
func bareWord(text []byte, at int) string {
	bare := func(c byte) bool {
		return c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' ||
			strings.IndexByte("._:/-", c) >= 0
	}
	if at >= len(text) || !bare(text[at]) {
		return ""
	}
	from, to := at, at
	for from > 0 && bare(text[from-1]) {
		from--
	}
	for to < len(text) && bare(text[to]) {
		to++
	}
	return string(text[from:min(to, from+maxShown)])
}
