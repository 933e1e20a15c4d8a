package forward

import (
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
	"net/netip"

	"vstun/balancer/conntab"
)

// limiter bounds the rate of one worker's ICMP errors of one kind. all bounds it in total, as Linux's icmp_msgs_per_sec
// and icmp_msgs_burst. clients bounds the rate to each client, as Linux's icmp_ratelimit. A client is an IPv4 address
// or an IPv6 /64 network. Its bucket depends on a keyed hash, so some clients share a bucket.
//
// An error that a client's bucket refuses does not count against all. So one address, forged or not, uses up no more
// than its own bound.
type limiter struct {
	all     bucket
	clients [clientBuckets]bucket
	gain    int32 // tokens that a client's bucket gains in a tick
	cap     int32 // the most tokens that it holds
	seed    seed
}

// seed is the random key of a hash of addresses.
type seed [2]uint64

func newSeed() seed { return seed{rand.Uint64(), rand.Uint64() | 1} }

// hash returns the hash of an IPv4 address or of an IPv6 address's /64 network.
func (s *seed) hash(a netip.Addr) uint64 {
	net := a.As16()
	x := binary.BigEndian.Uint64(net[:])
	if a.Is4() {
		x = uint64(binary.BigEndian.Uint32(net[12:]))
	}
	return s.mix(x)
}

func (s *seed) mix(x uint64) uint64 {
	hi, lo := bits.Mul64(x^s[0], s[1])
	return hi ^ lo
}

// bucket is a token bucket. A token is a hundredth of a message.
type bucket struct {
	tokens int32
	last   conntab.Ticks // time of tokens
}

const (
	message       = 100  // tokens
	clientBuckets = 1024 // a power of two

	allGain = 1000 * message / conntab.PerSecond
	allCap  = 50 * message
)

// init sets the bound to perSecond messages a second for each client, and a burst of burst messages.
func (l *limiter) init(perSecond, burst int32) {
	l.gain, l.cap = perSecond*message/conntab.PerSecond, burst*message
	l.seed = newSeed()
	l.all.tokens = allCap
	for i := range l.clients {
		l.clients[i].tokens = l.cap
	}
}

// allow reports whether a message may be sent to a now, and counts it if so.
func (l *limiter) allow(a netip.Addr, now conntab.Ticks) bool {
	b := &l.clients[l.seed.hash(a)%clientBuckets]
	if b.fill(now, l.gain, l.cap); b.tokens < message {
		return false
	}
	if !l.all.ready(now) {
		return false
	}
	b.tokens -= message
	l.all.tokens -= message
	return true
}

// ready reports whether b, which bounds all messages of a kind, has tokens for a message. The caller takes them.
func (b *bucket) ready(now conntab.Ticks) bool {
	b.fill(now, allGain, allCap)
	return b.tokens >= message
}

func (b *bucket) fill(now conntab.Ticks, gain, most int32) {
	passed := int64(int32(now - b.last))
	if passed < 0 {
		passed = 1 << 31 // so long ago that the difference has overflowed
	}
	b.tokens = int32(min(int64(b.tokens)+passed*int64(gain), int64(most)))
	b.last = now
}
