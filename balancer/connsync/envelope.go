package connsync

import "vstun/balancer/envelope"

// MinKey is the least length of a key, in bytes.
const MinKey = envelope.MinKey

// protocol names the envelopes of the mode VSTUN.
const protocol = "connsync"

// kind is what the body of an envelope holds.
type kind = uint8

const (
	records kind = iota // records of connections
	hello               // a challenge to all peers; also shows that the sender lives
	answer              // to the challenge of one of them
	resend              // asks one of them for lost datagrams
	bulkEnd             // to one of them: it has got the whole table; session, first sequence number of the transfer
	numKinds
)

// opened returns the envelope in b.
func opened(s *envelope.Sealer, b []byte) (envelope.Envelope, Fault) {
	switch e, err := s.Open(b); err {
	case nil:
		return e, Accepted
	case envelope.ErrForged:
		return e, Forged
	default:
		return e, BadHeader
	}
}
