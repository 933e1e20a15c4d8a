package packet

import "encoding/binary"

// Types of SCTP chunks (RFC 9260, section 3.2).
const (
	ChunkData             = 0
	ChunkInit             = 1
	ChunkInitAck          = 2
	ChunkAbort            = 6
	ChunkShutdown         = 7
	ChunkShutdownAck      = 8
	ChunkError            = 9
	ChunkCookieEcho       = 10
	ChunkCookieAck        = 11
	ChunkShutdownComplete = 14
)

// Lengths of SCTP's common header and of a chunk's, in bytes.
const (
	sctpHeaderLen  = 12
	chunkHeaderLen = 4
)

// sctpChunk is the type of the chunk that determines the connection's state: the first one, or an ABORT behind a cookie
// chunk (Linux ip_vs_proto_sctp.c, set_sctp_state). b is the packet from its SCTP header on, with at least one chunk's
// header.
func sctpChunk(b []byte) uint8 {
	first := b[sctpHeaderLen:]
	if first[0] != ChunkCookieEcho && first[0] != ChunkCookieAck {
		return first[0]
	}
	n := int(binary.BigEndian.Uint16(first[2:]))
	next := (n + 3) &^ 3
	if n >= chunkHeaderLen && next+chunkHeaderLen <= len(first) && first[next] == ChunkAbort {
		return ChunkAbort
	}
	return first[0]
}
