package packet

import (
	"encoding/binary"
	"hash/crc32"
)

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
	sctpChecksumAt = 8 // offset of the checksum
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

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	noChecksum [4]byte
)

// sctpChecksum is the checksum of the SCTP packet t, from its SCTP header on (RFC 9260, appendix A): the CRC32c of the
// packet with a checksum of 0. It covers the ports and no addresses.
func sctpChecksum(t []byte) uint32 {
	c := crc32.Update(0, castagnoli, t[:sctpChecksumAt])
	c = crc32.Update(c, castagnoli, noChecksum[:])
	return crc32.Update(c, castagnoli, t[sctpHeaderLen:])
}

// replaceSCTP writes a port to offset at of the SCTP packet t, and changes its checksum. The CRC is linear: a wrong
// checksum stays wrong by the same bits.
func replaceSCTP(t []byte, at int, port uint16) {
	if binary.BigEndian.Uint16(t[at:]) == port {
		return
	}
	change := sctpChecksum(t)
	binary.BigEndian.PutUint16(t[at:], port)
	change ^= sctpChecksum(t)
	checksum := t[sctpChecksumAt:]
	binary.LittleEndian.PutUint32(checksum, binary.LittleEndian.Uint32(checksum)^change)
}
