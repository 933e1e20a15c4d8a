package config

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// maxShown is the maximum number of a string's characters in a message.
const maxShown = 64

// show returns a TOML value for one short line.
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

// quoteKey returns a key as TOML writes it: bare if possible.
func quoteKey(key string) string {
	bare := key != "" && strings.IndexFunc(key, func(r rune) bool {
		return r != '_' && r != '-' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	}) < 0
	if bare {
		return key
	}
	return show(key)
}
