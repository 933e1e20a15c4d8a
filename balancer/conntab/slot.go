package conntab

import (
	"sync/atomic"
	"unsafe"
)

// The slots may lie in memory that outlives the process, and the process may end between any two stores. Therefore an
// entry is never half valid: its state is cleared first and set last, by atomic stores. The other fields of a valid
// entry change one by one, and the entry is valid with each of them. An entry that moves to another slot is valid in
// both slots before it leaves the first.

// head returns the word of e that has protocol, state and flags.
func (e *entry[A]) head() *uint32 { return (*uint32)(unsafe.Pointer(&e.proto)) }

// clear empties the slot e.
func (e *entry[A]) clear() { atomic.StoreUint32(e.head(), 0) }

// set copies the entry from, which has a state, to the slot e.
func (e *entry[A]) set(from *entry[A]) {
	e.clear()
	e.src, e.dst, e.sport, e.dport = from.src, from.dst, from.sport, from.dport
	e.dest, e.expires, e.value, e.ref = from.dest, from.expires, from.value, from.ref
	atomic.StoreUint32(e.head(), *from.head())
}

// setState gives the entry e another state.
func (e *entry[A]) setState(next State) {
	h := entry[A]{proto: e.proto, state: next, flags: e.flags}
	atomic.StoreUint32(e.head(), *h.head())
}
