package endpoint

import (
	"encoding/binary"
	"hash/maphash"
	"net/netip"
	"sync/atomic"
	"time"
)

// Flows is a table of the TCP connections whose packets have come lately: which are this host's, and which are another
// one's. It has a fixed size: a new connection replaces one that has been idle for longest. Any number of goroutines
// may use it. It takes no lock, so that an entry may be lost: the kernel is asked again.
type Flows struct {
	seed    maphash.Seed
	buckets []bucket
}

// bucket is the connections whose hashes have the same low bits, in a cache line.
type bucket [8]atomic.Uint64

// flowBuckets is the number of buckets, a power of two: of 131,072 connections, in 1 MB.
const flowBuckets = 1 << 14

// flowState is what is known of a connection.
type flowState uint8

const (
	flowUnknown   flowState = iota
	flowAbsent              // the host does not have it, and no other one is known
	flowElsewhere           // another host has it
	flowHeld                // as flowAbsent, but tables may come
	flowBegun               // its SYN came here
	flowLocal               // this host has it
)

// An entry is 37 bits of the hash, 8 of Exit.ID, 3 of the state, and 16 of the time, in flowTicks.
const (
	flowTimeBits  = 16
	flowStateBits = 3
	flowExitShift = flowTimeBits + flowStateBits
	flowMark      = 1<<64 - 1<<(flowExitShift+8)
	flowTimeMask  = 1<<flowTimeBits - 1
)

// flowTick is the unit of an entry's time.
const flowTick = time.Second

// The times after which an entry counts for nothing: since the last packet, and for what is not this host's since the
// kernel was asked.
const (
	localFor  = uint32(time.Hour / flowTick)
	absentFor = uint32(10 * time.Second / flowTick)
)

// NewFlows returns an empty table.
func NewFlows() *Flows { return &Flows{seed: maphash.MakeSeed(), buckets: make([]bucket, flowBuckets)} }

// hash returns the hash of a connection.
func (f *Flows) hash(client, server netip.AddrPort) uint64 {
	var b [36]byte
	from, to := client.Addr().As16(), server.Addr().As16()
	copy(b[:], from[:])
	copy(b[16:], to[:])
	binary.NativeEndian.PutUint16(b[32:], client.Port())
	binary.NativeEndian.PutUint16(b[34:], server.Port())
	return maphash.Bytes(f.seed, b[:])
}

// look returns the state of a connection, its time in ticks, and the exit that it has had, 0 for none. now is in ticks.
func (f *Flows) look(hash uint64, now uint32) (state flowState, since uint32, exit uint8) {
	b := &f.buckets[hash%flowBuckets]
	for i := range b {
		e := b[i].Load()
		if (e^hash)&flowMark != 0 || e == 0 {
			continue
		}
		state, since, exit = flowStateOf(e), uint32(e&flowTimeMask), uint8(e>>flowExitShift)
		age := flowAge(since, now)
		switch {
		case age > localFor:
			return flowUnknown, 0, 0
		case state < flowBegun && age > absentFor:
			return flowUnknown, 0, exit
		case state >= flowBegun && age > absentFor:
			b[i].CompareAndSwap(e, flowEntry(hash, state, 0, now))
		}
		return state, since, exit
	}
	return flowUnknown, 0, 0
}

// put notes the state of a connection, and its exit, 0 for none.
func (f *Flows) put(hash uint64, state flowState, exit uint8, now uint32) {
	b := &f.buckets[hash%flowBuckets]
	victim, least := 0, uint64(1)<<63
	for i := range b {
		e := b[i].Load()
		if e == 0 || (e^hash)&flowMark == 0 {
			victim = i
			break
		}
		// What this host has is worth more than what it has not, and than a SYN, which a flood may have sent.
		worth := uint64(flowTimeMask - flowAge(uint32(e&flowTimeMask), now))
		if flowStateOf(e) == flowLocal {
			worth += 1 << flowTimeBits
		}
		if worth < least {
			victim, least = i, worth
		}
	}
	b[victim].Store(flowEntry(hash, state, exit, now))
}

// flowEntry is never 0: no entry is of flowUnknown.
func flowEntry(hash uint64, state flowState, exit uint8, now uint32) uint64 {
	return hash&flowMark | uint64(exit)<<flowExitShift | uint64(state)<<flowTimeBits | uint64(now)&flowTimeMask
}

func flowStateOf(e uint64) flowState { return flowState(e >> flowTimeBits & (1<<flowStateBits - 1)) }

// flowAhead bounds the ticks by which another worker's time may be ahead: each notes the time once a batch.
const flowAhead = uint32(time.Minute / flowTick)

// flowAge returns the ticks from a time to now, 0 from one a little ahead of now.
func flowAge(since, now uint32) uint32 {
	if (since-now)&flowTimeMask < flowAhead {
		return 0
	}
	return (now - since) & flowTimeMask
}
