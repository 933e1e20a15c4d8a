// Package connsync keeps the connection tables of several directors alike: what a director knows of a connection, its
// peers know moments later, so that each can go on with the connections of another. The records are those of the
// kernel's IPVS, version 1 (Linux net/netfilter/ipvs/ip_vs_sync.c).
//
// In the mode IPVS the datagrams are the kernel's, too, and directors of both kinds stand in for each other. The kernel
// authenticates nothing, and nothing recovers a lost datagram. In the mode VSTUN each datagram has a sequence number
// and a HMAC; lost ones are sent again, and a director that starts gets the whole table of its peers.
//
//	conntab.Feed    → sender → datagrams of records → group or peers
//	conntab.Walker  ↗ (refresh, bulk)                     ↓
//	balancer.Report ← receiver ← in order, once ← envelope.open
package connsync

import "encoding/binary"

// Fault is why a datagram or a record is refused.
type Fault uint8

// The reasons. The names are those of String.
const (
	Accepted          Fault = iota
	BadHeader               // the datagram is too short, or its length is not the one in its header
	OldVersion              // a datagram of the kernel's version 0, which is not supported
	OtherID                 // another syncid
	Stranger                // the sender is no configured peer
	Forged                  // the HMAC or the key id is wrong
	Replayed                // the datagram came before, or is of a former session
	Unverified              // of a session that has not answered a challenge yet; its records come again
	BadRecord               // a record is malformed; the rest of the datagram is refused, too
	UnknownOption           // a record has an option that a receiver must know
	BadState                // a record's protocol or state does not exist
	UnknownService          // there is no service for a record
	UnknownRealserver       // the service has no such realserver
	TableFull
	numFaults
)

var faultNames = [numFaults]string{"", "bad_header", "old_version", "other_id", "stranger", "forged", "replayed",
	"unverified", "bad_record", "unknown_option", "bad_state", "unknown_service", "unknown_realserver", "table_full"}

// String returns the reason's name in status and metrics.
func (f Fault) String() string {
	if f < numFaults {
		return faultNames[f]
	}
	return "unknown"
}

// FaultNames returns the names of all reasons.
func FaultNames() []string { return append([]string(nil), faultNames[1:]...) }

// A datagram of the kernel begins with (struct ip_vs_sync_mesg):
//
//	0 reserved, 0    4 number of records
//	1 syncid         5 version, 1
//	2 size           6 spare, 0
const (
	headerSize = 8
	version    = 1
	maxRecords = 255
)

// header is the beginning of a datagram of the kernel.
type header struct {
	id    uint8 // syncid
	count int   // of records
}

// putHeader writes the header of the datagram b, which is complete but for it.
func putHeader(b []byte, id uint8, count int) {
	b[0], b[1], b[4], b[5], b[6], b[7] = 0, id, uint8(count), version, 0, 0
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
}

// parseHeader returns the header of b and the bytes behind it.
func parseHeader(b []byte) (h header, records []byte, fault Fault) {
	switch {
	case len(b) < headerSize || int(binary.BigEndian.Uint16(b[2:])) != len(b):
		return h, nil, BadHeader
	case b[0] != 0 || b[5] != version || b[6] != 0 || b[7] != 0:
		return h, nil, OldVersion
	}
	return header{id: b[1], count: int(b[4])}, b[headerSize:], Accepted
}

// eachRecord calls yield for each well-formed record of b, which holds count of them, and bad for each fault. A record
// that is malformed ends it. own is that of parseRecord.
func eachRecord(b []byte, count int, own bool, yield func(*Record), bad func(Fault)) {
	var r Record
	for range count {
		rest, fault := parseRecord(b, &r, own)
		switch fault {
		case Accepted:
			yield(&r)
		default:
			bad(fault)
		}
		if fault == BadRecord {
			return
		}
		b = rest
	}
}
