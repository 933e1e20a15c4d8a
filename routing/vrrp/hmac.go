package vrrp

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"time"
)

// The trailer of keepalived 2.4, keepalived/include/vrrp_auth_hmac.h:
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+---------------+---------------+-------------------------------+
//	|    type 1     |    key id     |          reserved: 0          |  0
//	+---------------+---------------+-------------------------------+
//	|                 seconds since 1970, in UTC                    |  4
//	+-------------------------------+-------------------------------+
//	|      fraction, 1/65536 s      |            counter            |  8
//	+-------------------------------+-------------------------------+
//	|       HMAC-SHA-256, the first 16 bytes                        | 12
//
// The HMAC is over a pseudo header of 20 bytes (4 or 6, version, router id, 0, source address and zeros up to 16), the
// advertisement with a checksum of 0, the trailer up to the HMAC, and 16 zeros in its place. A checksum over IPv6
// includes the trailer, one over IPv4 does not.
const (
	trailerLen   = 28
	trailerType  = 1
	trailerMAC   = 12 // offset of the HMAC
	macLen       = 16
	leastWindow  = 5 * time.Second
	windowAdvert = 3 // intervals
)

// Key is the key of an HMAC: 32 to 64 bytes.
type Key struct {
	ID    uint8 // 1 to 255
	Bytes string
	// Permissive accepts packets without a trailer, too, while peers are changed one after the other.
	Permissive bool
}

// MinKey and MaxKey are the bounds of Key.Bytes.
const (
	MinKey = 32
	MaxKey = 64
)

// sequence is the time and the counter of a trailer: 64 bits that grow with each packet.
type sequence uint64

// sequenceAt returns the first sequence of a time.
func sequenceAt(now time.Time) sequence {
	fraction := uint64(now.Nanosecond()) << 16 / uint64(time.Second)
	return sequence(uint64(uint32(now.Unix()))<<32 | fraction<<16)
}

// after reports whether s comes behind o: RFC 1982.
func (s sequence) after(o sequence) bool { return int64(s-o) > 0 }

// next returns the sequence of the packet behind the one with s.
func (s sequence) next(now time.Time, window time.Duration) sequence {
	clock := sequenceAt(now)
	if clock.after(s) || s.off(now) > window { // or the clock has been set back
		return clock
	}
	return s + 1
}

// off returns how far s is from a time.
func (s sequence) off(now time.Time) time.Duration {
	d := time.Duration(int32(uint32(s>>32)-uint32(now.Unix()))) * time.Second
	return max(d, -d)
}

// window returns how old a packet may be.
func window(interval time.Duration) time.Duration { return max(windowAdvert*interval, leastWindow) }

// sign appends to p, an advertisement from src to dst, its trailer.
func (k *Key) sign(p []byte, src, dst netip.Addr, s sequence) []byte {
	pdu := len(p)
	p = append(p, trailerType, k.ID, 0, 0)
	p = binary.BigEndian.AppendUint64(p, uint64(s))
	p = append(p, make([]byte, macLen)...)
	mac := k.mac(p[:pdu], p[pdu:], src)
	copy(p[pdu+trailerMAC:], mac[:])
	if src.Is6() {
		setChecksum(p, src, dst, p[0]>>4, RFC5798)
	}
	return p
}

// mac returns the HMAC of an advertisement from src and its trailer.
func (k *Key) mac(pdu, trailer []byte, src netip.Addr) (mac [macLen]byte) {
	h := hmac.New(sha256.New, []byte(k.Bytes))
	pseudo := make([]byte, 20)
	pseudo[0], pseudo[1], pseudo[2] = 4, pdu[0]>>4, pdu[1]
	if src.Is6() {
		pseudo[0] = 6
	}
	copy(pseudo[4:], src.AsSlice())
	h.Write(pseudo)
	h.Write(pdu[:checksumOff])
	h.Write([]byte{0, 0})
	h.Write(pdu[headerLen:])
	h.Write(trailer[:trailerMAC])
	h.Write(mac[:])
	return [macLen]byte(h.Sum(nil))
}

// replays is the highest sequence of each sender.
type replays map[netip.Addr]sequence

// maxSenders bounds replays. Only senders that have the key count.
const maxSenders = 64

// verify examines the trailer of a, which came from src at a time. It takes note of the sequence number of a genuine
// packet.
func (k *Key) verify(a *Advert, src netip.Addr, now time.Time, window time.Duration, seen replays) Refusal {
	t := a.trailer
	switch {
	case t == nil && k.Permissive:
		return Accepted
	case t == nil:
		return NoTrailer
	case t[0] != trailerType || t[2] != 0 || t[3] != 0:
		return BadTrailer
	case t[1] != k.ID:
		return BadKey
	}
	s := sequence(binary.BigEndian.Uint64(t[4:]))
	if s.off(now) > window {
		return Stale
	}
	if mac := k.mac(a.pdu, t, src); !hmac.Equal(mac[:], t[trailerMAC:]) {
		return BadHMAC
	}
	// A sequence outside of the window is of no use any more: the sender's clock has been set back.
	if last, known := seen[src]; known && last.off(now) <= window && !s.after(last) {
		return Replayed
	}
	if len(seen) >= maxSenders {
		for addr, last := range seen {
			if last.off(now) > window {
				delete(seen, addr)
			}
		}
	}
	seen[src] = s
	return Accepted
}
