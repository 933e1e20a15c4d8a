package forward

import (
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
	"net/netip"

	"vstun/balancer/conntab"
)

// limiter bounds the ICMP errors of one kind that one worker sends: so many a second in all, as Linux's
// icmp_msgs_per_sec and icmp_msgs_burst, and far fewer to one client, as its icmp_ratelimit. A client is an IPv4
// address or an IPv6 network of 64 bits; it is known by a hash that can't be foreseen, so that some share their bound.
//
// One address, forged or not, uses up no more than its own bound: errors that are refused because of it don't count
// against all.
type limiter struct {
	all     bucket
	clients [clientBuckets]bucket
	gain    int32 // of a client's bucket in a tick
	cap     int32 // and the most that it holds
	seed    seed
}

// seed makes a hash of addresses that can't be foreseen.
type seed [2]uint64

func newSeed() seed { return seed{rand.Uint64(), rand.Uint64() | 1} }

// hash is that of an IPv4 address or an IPv6 network of 64 bits.
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

// bucket is what may be sent still, in hundredths of a message.
type bucket struct {
	tokens int32
	last   conntab.Ticks // when it was so
}

const (
	message       = 100  // tokens
	clientBuckets = 1024 // a power of two

	allGain = 1000 * message / conntab.PerSecond
	allCap  = 50 * message
)

// init makes l give each client so many messages a second, and burst at once.
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

// ready reports whether b, which bounds all messages of a kind, holds one at the time now. The caller takes it.
func (b *bucket) ready(now conntab.Ticks) bool {
	b.fill(now, allGain, allCap)
	return b.tokens >= message
}

func (b *bucket) fill(now conntab.Ticks, gain, most int32) {
	passed := int64(int32(now - b.last))
	if passed < 0 {
		passed = 1 << 31 // so long ago that the clock has wrapped meanwhile
	}
	b.tokens = int32(min(int64(b.tokens)+passed*int64(gain), int64(most)))
	b.last = now
}
