package connsync

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"hash"
)

// A datagram of the mode VSTUN is an envelope:
//
//	0 reserved, 0                       8 session of the sender
//	1 syncid                           16 sequence number, from 1 on
//	2 0xffff, a size that no kernel    24 body
//	  accepts                             …
//	4 kind                           -32 HMAC-SHA-256 of all before
//	5 version, 2
//	6 key id
//	7 number of records
//
// A session is a random number of each start of a director. All numbers are in network byte order.
const (
	envelopeHead    = 24
	macSize         = sha256.Size
	envelopeSize    = envelopeHead + macSize
	envelopeVersion = 2
	noSize          = 0xffff
)

// MinKey is the least length of a key, in bytes.
const MinKey = 32

// kind is what the body of an envelope holds.
type kind uint8

const (
	records kind = iota // records of connections
	hello               // a challenge to all peers; also shows that the sender lives
	answer              // to the challenge of one of them
	resend              // asks one of them for lost datagrams
	bulkEnd             // to one of them: it has got the whole table; session, first sequence number of the transfer
	numKinds
)

// envelope is the fields of an envelope.
type envelope struct {
	id           uint8
	kind         kind
	count        int // of records
	session, seq uint64
	body         []byte
}

// sealer makes and checks the HMACs of one key. One goroutine uses it.
type sealer struct {
	id  uint8
	mac hash.Hash
	sum [macSize]byte
}

// newSealer returns the sealer of a key. The key is for other protocols, too: the HMAC's own key is derived from it.
func newSealer(key []byte) *sealer {
	derive := func(label string) []byte {
		m := hmac.New(sha256.New, key)
		m.Write([]byte(label))
		return m.Sum(nil)
	}
	return &sealer{id: derive("vstun connsync key id")[0], mac: hmac.New(sha256.New, derive("vstun connsync mac"))}
}

// head appends the head of an envelope. seal completes it.
func (s *sealer) head(b []byte, id uint8, k kind, count int, session, seq uint64) []byte {
	b = append(b, 0, id, noSize>>8, noSize&0xff, byte(k), envelopeVersion, s.id, byte(count))
	b = binary.BigEndian.AppendUint64(b, session)
	return binary.BigEndian.AppendUint64(b, seq)
}

// seal appends the HMAC of b.
func (s *sealer) seal(b []byte) []byte {
	s.mac.Reset()
	s.mac.Write(b)
	return s.mac.Sum(b)
}

// open returns the envelope in b. Its body is a part of b.
func (s *sealer) open(b []byte) (e envelope, fault Fault) {
	if len(b) < envelopeSize || b[0] != 0 || binary.BigEndian.Uint16(b[2:]) != noSize || b[5] != envelopeVersion {
		return e, BadHeader
	}
	text, mac := b[:len(b)-macSize], b[len(b)-macSize:]
	s.mac.Reset()
	s.mac.Write(text)
	if s.mac.Sum(s.sum[:0]); b[6] != s.id || subtle.ConstantTimeCompare(s.sum[:], mac) != 1 {
		return e, Forged
	}
	return parseEnvelope(b), Accepted
}

// parseEnvelope returns the fields of an envelope that open has accepted.
func parseEnvelope(b []byte) envelope {
	return envelope{id: b[1], kind: kind(b[4]), count: int(b[7]), session: binary.BigEndian.Uint64(b[8:]),
		seq: binary.BigEndian.Uint64(b[16:]), body: b[envelopeHead : len(b)-macSize]}
}

// random returns a number that others cannot guess.
func random() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.BigEndian.Uint64(b[:])
}
