package config

import (
	"fmt"

	"vstun/balancer/health"
)

// readSend reads the payload of a check, as text or as bytes. Either replaces both keys of the service's check.
func readSend(t *table, c *Check) {
	const want = `bytes of two hexadecimal digits, such as "00 1f ff"`
	if t.exclusive("send", "send_hex") {
		c.Send, c.SendHex = "", ""
	}
	c.Send, _ = t.text("send", c.Send, "a string")
	text, ok := t.text("send_hex", c.SendHex, want)
	b, err := health.ParseBytes(text)
	if err != nil && ok {
		t.faultAt("send_hex", "%v: want %s", err, want)
	}
	c.SendHex = fmt.Sprintf("% x", b)
	if c.Type == "udp" {
		t.datagram("send", len(c.Send))
		t.datagram("send_hex", len(b))
	}
}

// datagram notes a fault if n bytes, the value of key in the file, do not fit a UDP datagram.
func (t *table) datagram(key string, n int) {
	if _, written := t.values[key]; written && n > health.MaxDatagram {
		t.faultAt(key, "%d bytes are too long for a UDP datagram: want at most %d bytes", n, health.MaxDatagram)
	}
}

// readExpect reads the answer that a check expects, as a regular expression or as bytes.
func readExpect(t *table, c *Check) {
	const want = `bytes of two hexadecimal digits, of which ? is any, such as "00 1? ??"`
	if t.exclusive("expect", "expect_hex") {
		c.Expect, c.ExpectHex = "", ""
	}
	c.Expect = t.pattern("expect", c.Expect)
	text, ok := t.text("expect_hex", c.ExpectHex, want)
	p, err := health.ParseBytePattern(text)
	switch {
	case !ok:
	case err != nil:
		t.faultAt("expect_hex", "%v: want %s", err, want)
	default:
		c.ExpectHex = p.String()
	}
}

// exclusive reports whether the file has at least one of two keys. It notes a fault if it has both.
func (t *table) exclusive(a, b string) bool {
	_, hasA := t.values[a]
	_, hasB := t.values[b]
	if hasA && hasB {
		t.faultAt(b, "stands beside %s: want one of them", a)
	}
	return hasA || hasB
}
