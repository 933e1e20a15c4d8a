package packet

import "encoding/binary"

// ClampMSS lowers the MSS option of the TCP segment in b, a SYN whose TCP header is at offset, to most bytes. It
// returns the MSS that the segment advertises then, 0 if it has no such option. With most = 0 it changes nothing. It is
// for a router before a tunnel, as Linux's TCPMSS (net/netfilter/xt_TCPMSS.c; RFC 9293, section 3.7.1).
func ClampMSS(b *Buf, offset, most int) int {
	const end, nop, mss, mssLen = 0, 1, 2, 4
	t := TCP(b.Bytes()[offset:])
	if len(t) < TCPHeaderLen || t.HeaderLen() < TCPHeaderLen || len(t) < t.HeaderLen() {
		return 0
	}
	options := t.Options()
	for i := 0; i < len(options); {
		switch kind := options[i]; {
		case kind == end:
			return 0
		case kind == nop:
			i++
			continue
		case i+1 >= len(options) || options[i+1] < 2 || i+int(options[i+1]) > len(options):
			return 0
		case kind == mss && options[i+1] == mssLen:
			n := int(binary.BigEndian.Uint16(options[i+2:]))
			if most == 0 || n <= most {
				return n
			}
			was := Fold(Sum(options, 0)) // the option may have an odd offset
			binary.BigEndian.PutUint16(options[i+2:], uint16(most))
			if !b.Offload.Partial {
				update(t[TCPChecksumAt:], uint64(^was)+uint64(Fold(Sum(options, 0))))
			}
			return most
		default:
			i += int(options[i+1])
		}
	}
	return 0
}
