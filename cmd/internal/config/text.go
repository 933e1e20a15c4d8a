package config

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// maxShown is how many characters of a string a message shows.
const maxShown = 64

// show writes a TOML value as it may stand in one short line.
func show(value any) string {
	switch v := value.(type) {
	case string:
		if r := []rune(v); len(r) > maxShown {
			return strconv.Quote(string(r[:maxShown]) + "…")
		}
		return strconv.Quote(v)
	case []any:
		if len(v) == 0 {
			return "[]"
		}
		return "an array"
	case []map[string]any:
		return "an array of tables"
	case map[string]any:
		return "a table"
	case time.Time:
		return "a date or time"
	default:
		return fmt.Sprint(v)
	}
}

// quoteKey writes a key as TOML would: bare where it can be.
func quoteKey(key string) string {
	bare := key != "" && strings.IndexFunc(key, func(r rune) bool {
		return r != '_' && r != '-' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	}) < 0
	if bare {
		return key
	}
	return show(key)
}

// oneOf writes "a", "a or b", "a, b or c".
func oneOf(names []string) string {
	if len(names) < 2 {
		return strings.Join(names, "")
	}
	last := len(names) - 1
	return strings.Join(names[:last], ", ") + " or " + names[last]
}

// nearest finds the known key that a misspelt one is close to: one slip in three letters.
func nearest(key string, known []string) (string, bool) {
	if len(key) > 64 {
		return "", false
	}
	best, least := "", max(1, len(key)/3)+1
	for _, k := range known {
		if d := distance(strings.ToLower(key), k); d < least {
			best, least = k, d
		}
	}
	return best, best != ""
}

// distance is the Levenshtein distance between two strings, in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			substitute := diagonal
			if a[i] != b[j] {
				substitute++
			}
			diagonal = row[j+1]
			row[j+1] = min(substitute, diagonal+1, row[j]+1)
		}
	}
	return row[len(b)]
}
