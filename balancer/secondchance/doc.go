// Package secondchance gives a packet that came to the wrong realserver a second chance. A director sends its
// realservers the tables by which its scheduler mh chooses. An agent keeps the last ones. For a packet of a connection
// that its host does not have, they name the realserver to which the connection was given earlier.
//
//	director: Director.Set → Datagrams → agents
//	agent:    Agent.Take → history → View.Other
//
// Each datagram is an envelope. An agent answers each table. It takes the tables of a session once that has answered
// its challenge, so that none is a recording of an earlier time. A director that has just started gets the former
// tables from its agents, and sends them on to those that lack them.
package secondchance

import (
	"encoding/binary"
	"net/netip"

	"vstun/balancer/envelope"
)

// MinKey is the least length of a key, in bytes.
const MinKey = envelope.MinKey

// protocol names the envelopes.
const protocol = "second chance"

// Kinds of envelopes, and their bodies. The address of the agent is the one to which the director sends.
const (
	// to an agent: its address, the answered nonce, the age in seconds of a table, and the table; age 0: it is in
	// force. Without a table it is a call: an agent without the session asks for all tables
	kindTable uint8 = iota
	// to a director: its session, the agent's address, the sequence number of a table, a nonce; the nonce is 0 if the
	// table has been taken
	kindAnswer
	// to a director: its session, the agent's address, the age in seconds of a table, and the table
	kindFormer
)

// MaxDatagram is the size of the largest datagram, in bytes.
const MaxDatagram = envelope.Size + tableHead + MaxSize

// tableHead is the length of a body before the table, in bytes.
const tableHead = 16 + 8 + 4

// Fault is why a datagram is refused.
type Fault uint8

// The reasons. The names are those of String.
const (
	Accepted   Fault = iota
	BadHeader        // it is no envelope, or its body is too short
	Forged           // the HMAC or the key is wrong
	OtherHost        // it is for another host
	Replayed         // it came before, or is of a former session
	Unverified       // of a session that has not answered a challenge yet; its tables come again
	BadTable         // the table is malformed, or there are too many services
	numFaults
)

var faultNames = [numFaults]string{"", "bad_header", "forged", "other_host", "replayed", "unverified", "bad_table"}

// String returns the reason's name in status and metrics.
func (f Fault) String() string {
	if f < numFaults {
		return faultNames[f]
	}
	return "unknown"
}

// FaultNames returns the names of all reasons.
func FaultNames() []string { return append([]string(nil), faultNames[1:]...) }

// faults counts refused datagrams by reason.
type faults [numFaults]uint64

// names returns the counts by name, of reasons that have occurred.
func (f *faults) names() map[string]uint64 {
	all := map[string]uint64{}
	for i, n := range f {
		if n > 0 {
			all[Fault(i).String()] = n
		}
	}
	return all
}

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

// appendTable appends what kindTable and kindFormer have: number is the nonce or the session.
func appendTable(b []byte, to netip.Addr, number uint64, age uint32, content string) []byte {
	as16 := to.As16()
	b = binary.BigEndian.AppendUint64(append(b, as16[:]...), number)
	return append(binary.BigEndian.AppendUint32(b, age), content...)
}

// readAddr returns the address in the first 16 bytes of b.
func readAddr(b []byte) netip.Addr { return netip.AddrFrom16([16]byte(b)).Unmap() }
