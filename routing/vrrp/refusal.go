package vrrp

// Refusal is why a received packet is refused. The zero value: it is not.
type Refusal uint8

const (
	Accepted      Refusal = iota
	BadTTL                // its TTL or hop limit is not 255: it may come from another network
	BadLength             // its length does not fit its number of addresses
	BadVersion            // a version that does not exist, or not the instance's
	BadType               // no advertisement
	BadChecksum           //
	NoInstance            // no instance has its router id on its device
	BadSource             // its source is this host, or no peer of the instance
	BadCast               // it is multicast and the instance is unicast, or the reverse
	BadAuthType           // version 2: another type of authentication than the instance's
	BadPassword           // version 2
	BadInterval           // version 2: another interval than the instance's; version 3: an interval of 0
	NoTrailer             // it has no HMAC, and the instance needs one
	BadTrailer            // an HMAC of an unknown type
	BadKey                // an unknown key id
	BadHMAC               // a forgery, or another key
	Stale                 // the sender's clock differs too much
	Replayed              // its sequence number has been there
	refusalsCount         // the number of values
)

var refusalNames = [refusalsCount]string{Accepted: "", BadTTL: "ttl", BadLength: "length", BadVersion: "version",
	BadType: "type", BadChecksum: "checksum", NoInstance: "router_id", BadSource: "source", BadCast: "cast",
	BadAuthType: "auth_type", BadPassword: "password", BadInterval: "interval", NoTrailer: "no_hmac",
	BadTrailer: "hmac_type", BadKey: "key_id", BadHMAC: "hmac", Stale: "clock", Replayed: "replay"}

// String returns the name of r in counters and logs.
func (r Refusal) String() string { return refusalNames[r] }

// Refusals are counts of refused packets, by Refusal.
type Refusals [refusalsCount]uint64

// All calls fn for each Refusal with its count, except for Accepted.
func (c *Refusals) All(fn func(r Refusal, n uint64)) {
	for r := BadTTL; r < refusalsCount; r++ {
		fn(r, c[r])
	}
}

// Sum returns the number of all refused packets.
func (c *Refusals) Sum() (n uint64) {
	c.All(func(_ Refusal, is uint64) { n += is })
	return n
}
