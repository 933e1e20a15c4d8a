package wireguard

import (
	"golang.org/x/sys/unix"

	"vstun/encap/packet"
)

// Options of an IPv6 header of destination options (RFC 8200, section 4.2; RFC 2473, section 4.1.1).
const (
	optionPad1  = 0
	optionPadN  = 1
	optionLimit = 4
)

// withoutLimit returns the IP packet p without a header that has nothing but a tunnel encapsulation limit. The kernel's
// IPv6 tunnels add one unless they have encaplimit none, and take it off before they look for a tunnel. It is behind
// the IPv6 header, which moves in p's memory. All other packets stay as they are.
func withoutLimit(p []byte) []byte {
	const at = packet.IPv6HeaderLen
	h := packet.IPv6(p)
	if h.Version() != 6 || len(h) < at+8 || h.NextHeader() != unix.IPPROTO_DSTOPTS {
		return p
	}
	n := 8 * (1 + int(p[at+1]))
	if at+n > len(p) || p[at] == unix.IPPROTO_DSTOPTS || !isLimit(p[at+2:at+n]) {
		return p
	}
	next := p[at]
	copy(p[n:], p[:at])
	h = packet.IPv6(p[n:])
	h.SetNextHeader(next)
	h.SetPayloadLen(h.PayloadLen() - n)
	return h
}

// isLimit reports whether options are a tunnel encapsulation limit and padding.
func isLimit(options []byte) (limit bool) {
	for len(options) > 0 {
		if options[0] == optionPad1 {
			options = options[1:]
			continue
		}
		if len(options) < 2 || len(options) < 2+int(options[1]) {
			return false
		}
		switch {
		case options[0] == optionPadN:
		case options[0] == optionLimit && options[1] == 1 && !limit:
			limit = true
		default:
			return false
		}
		options = options[2+int(options[1]):]
	}
	return limit
}
