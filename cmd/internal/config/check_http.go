package config

import (
	"math"
	"net/url"
	"strconv"
	"strings"
)

// readRequest reads the request of http and https, and the answer that it expects.
func readRequest(t *table, c *Check, _ bool) {
	if c.Type != "file" { // the path of file names a file
		readPath(t, c)
	}
	c.Host = t.graphic("host", c.Host, `a host's name such as "www.example.com"`)
	c.Status = readStatus(t, c.Status)
	c.Body = t.pattern("body", c.Body)
}

// readPath reads the path of a GET.
func readPath(t *table, c *Check) {
	const want = `a path such as "/health?full=1"`
	c.Path = t.graphic("path", c.Path, want)
	if t.values["path"] == nil || c.Path == "" {
		return
	}
	if !strings.HasPrefix(c.Path, "/") {
		t.faultAt("path", "%s does not begin with /: want %s", show(c.Path), want)
	} else if _, err := url.ParseRequestURI(c.Path); err != nil {
		t.faultAt("path", "%s has a %% that two hexadecimal digits do not follow: want %s", show(c.Path), want)
	}
}

// readStatus reads the codes that count as a success of an HTTP check.
func readStatus(t *table, absent []StatusRange) []StatusRange {
	const want = `an array of codes, 100 to 599, and ranges of them: [200, "300-399"]`
	list, ok := t.array("status", want)
	if !ok {
		return absent
	}
	var all []StatusRange
	for _, v := range t.elements("status", list) {
		r, ok := parseStatus(v)
		if !ok {
			t.faultAt("status", "%s is no code and no range: want %s", show(v), want)
		}
		all = append(all, r)
	}
	return all
}

func parseStatus(value any) (r StatusRange, ok bool) {
	switch v := value.(type) {
	case int64:
		code := int(min(max(v, 0), math.MaxInt32))
		r = StatusRange{First: code, Last: code}
	case string:
		low, high, isRange := strings.Cut(v, "-")
		if !isRange {
			high = low
		}
		var errA, errB error
		r.First, errA = strconv.Atoi(low)
		r.Last, errB = strconv.Atoi(high)
		if errA != nil || errB != nil {
			return r, false
		}
	}
	return r, r.First >= 100 && r.First <= r.Last && r.Last <= 599
}
