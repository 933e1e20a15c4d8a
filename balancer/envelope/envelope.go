// Package envelope protects the datagrams that directors exchange, and send to agents: each has a session, a sequence
// number and a HMAC. It keeps no state: the caller refuses sequence numbers that came before, and unknown sessions.
package envelope

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"hash"
)

// An envelope:
//
//	0 reserved, 0                       8 session of the sender
//	1 syncid                           16 sequence number, from 1 on
//	2 0xffff, a size that no kernel    24 body
//	  director accepts                    …
//	4 kind                           -32 HMAC-SHA-256 of all before
//	5 version, 2
//	6 key id
//	7 number of records
//
// A session is a random number of each start of a program. All numbers are in network byte order.
const (
	HeadSize = 24
	MACSize  = sha256.Size
	Size     = HeadSize + MACSize // of an envelope with an empty body
	version  = 2
	noSize   = 0xffff
)

// MinKey is the least length of a key, in bytes.
const MinKey = 32

// Errors of Open.
var (
	ErrHeader = errors.New("no envelope")
	ErrForged = errors.New("wrong HMAC or key")
)

// Envelope is the fields of an envelope.
type Envelope struct {
	ID           uint8
	Kind         uint8 // what the body holds, by the protocol
	Count        int   // of records in the body
	Session, Seq uint64
	Body         []byte
}

// Sealer makes and checks the HMACs of one key. One goroutine uses it.
type Sealer struct {
	id  uint8
	mac hash.Hash
	sum [MACSize]byte
}

// New returns the sealer of a key for a protocol. The HMAC's own key is derived from both: a datagram of one protocol
// is a forged one of every other.
func New(key []byte, protocol string) *Sealer {
	derive := func(label string) []byte {
		m := hmac.New(sha256.New, key)
		m.Write([]byte(label))
		return m.Sum(nil)
	}
	return &Sealer{id: derive("vstun " + protocol + " key id")[0],
		mac: hmac.New(sha256.New, derive("vstun "+protocol+" mac"))}
}

// Head appends the head of an envelope. Seal completes it.
func (s *Sealer) Head(b []byte, id, kind uint8, count int, session, seq uint64) []byte {
	b = append(b, 0, id, noSize>>8, noSize&0xff, kind, version, s.id, byte(count))
	b = binary.BigEndian.AppendUint64(b, session)
	return binary.BigEndian.AppendUint64(b, seq)
}

// Seal appends the HMAC of b.
func (s *Sealer) Seal(b []byte) []byte {
	s.mac.Reset()
	s.mac.Write(b)
	return s.mac.Sum(b)
}

// Open returns the envelope in b. Its body is a part of b.
func (s *Sealer) Open(b []byte) (Envelope, error) {
	if len(b) < Size || b[0] != 0 || binary.BigEndian.Uint16(b[2:]) != noSize || b[5] != version {
		return Envelope{}, ErrHeader
	}
	text, mac := b[:len(b)-MACSize], b[len(b)-MACSize:]
	s.mac.Reset()
	s.mac.Write(text)
	if s.mac.Sum(s.sum[:0]); b[6] != s.id || subtle.ConstantTimeCompare(s.sum[:], mac) != 1 {
		return Envelope{}, ErrForged
	}
	return Parse(b), nil
}

// Parse returns the fields of an envelope that Open has accepted.
func Parse(b []byte) Envelope {
	return Envelope{ID: b[1], Kind: b[4], Count: int(b[7]), Session: binary.BigEndian.Uint64(b[8:]),
		Seq: binary.BigEndian.Uint64(b[16:]), Body: b[HeadSize : len(b)-MACSize]}
}

// Random returns a number that others cannot guess.
func Random() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.BigEndian.Uint64(b[:])
}
