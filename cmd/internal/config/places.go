package config

import "strings"

// Places are the places of values that may not fit the host. Each is the beginning of a line of Errors: "file:line:
// path of the key: ".
type Places map[Place]string

// Place names a value.
type Place struct {
	Table   string // its path in messages, such as `vrrp "VI_1"` or `vrrp "VI_1": track[1]`
	Key     string
	Element string // of the key's array; "": the value is none, or all of it
}

// At returns the beginning of a line about a value. It has no file if the value is in none.
func (p Places) At(table, key, element string) string {
	if at, ok := p[Place{table, key, element}]; ok {
		return at
	}
	return table + ": " + key + ": "
}

// mark notes the place of a key of t, or of the element of its array that is being read.
func (t *table) mark(key, element string) {
	t.file.places[Place{strings.TrimSuffix(t.path, ": "), key, element}] = t.about(key, "")
}
