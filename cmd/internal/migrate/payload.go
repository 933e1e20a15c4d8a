package migrate

import (
	"strconv"
	"strings"

	"vstun/balancer/health"
)

// maxPattern is the largest length of a pattern, in bytes.
const maxPattern = 1500

// payloadCheck reads UDP_CHECK and TCP_CHECK. Future versions of keepalived have the same keywords for both.
func (k *keepalived) payloadCheck(s *service, c *check, block *statement, _ settings) bool {
	send, expect, required, least := "", "", false, 0
	for _, st := range block.block {
		switch hex := pairs(st.words[1:]); st.name() {
		case "payload":
			b, err := health.ParseBytes(hex)
			if err != nil || hex == "" {
				k.noteOf(s, st.Place, "payload %s: is not hexadecimal: left out: write send_hex in the check",
					strings.Join(st.words[1:], " "))
				break
			}
			if c.kind == "udp" && len(b) > health.MaxDatagram {
				k.noteOf(s, st.Place, "payload: %d bytes are too long for a UDP datagram: left out: write send_hex "+
					"in the check, of at most %d bytes", len(b), health.MaxDatagram)
				break
			}
			send = hex
		case "require_reply":
			required = true
			if _, err := health.ParseBytePattern(hex); err != nil {
				k.noteOf(s, st.Place, "require_reply %s: is not hexadecimal: any answer is taken: write expect_hex "+
					"in the check", strings.Join(st.words[1:], " "))
				break
			}
			expect = hex
		case "min_reply_length":
			n, err := strconv.ParseUint(st.arg(1), 10, 16)
			if err != nil || n > maxPattern {
				k.noteOf(s, st.Place, "min_reply_length %q: left out: want 0 to %d: write expect_hex in the check",
					st.arg(1), maxPattern)
				break
			}
			least = int(n)
		case "max_reply_length":
			k.noteOf(s, st.Place, "max_reply_length %s: no counterpart: left out: an answer may be as long as it is",
				st.arg(1))
		default:
			k.unknown(s, block, st)
		}
	}
	for len(strings.Fields(expect)) < least {
		expect += " ??"
	}
	if send != "" {
		c.add("send_hex", quote(send))
	}
	switch {
	case !required:
	case expect == "":
		c.add("expect", quote("^")) // any answer
	default:
		c.add("expect_hex", quote(strings.TrimSpace(expect)))
	}
	return true
}

// anyDigit writes keepalived's X, any digit, as "?".
var anyDigit = strings.NewReplacer("x", "?", "X", "?")

// pairs splits keepalived's bytes, such as "48 656c6C f", into two digits each. A single digit at the end of a word
// gets a 0 before it. X is any digit.
func pairs(list []string) string {
	var bytes []string
	for _, word := range list {
		for word = anyDigit.Replace(word); len(word) > 1; word = word[2:] {
			bytes = append(bytes, word[:2])
		}
		if word != "" {
			bytes = append(bytes, "0"+word)
		}
	}
	return strings.ToLower(strings.Join(bytes, " "))
}
