package e2e

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"vstun/testdata/testkit"
)

// TestNATSCTP: an association is translated both ways, to another port. The checksum is right, also of chunks of an odd
// length, and of requests and replies in fragments (RFC 9260, section 6.8: CRC32c of the whole packet). The test makes
// all packets: few kernels have SCTP.
func TestNATSCTP(t *testing.T) {
	t.Parallel()
	testkit.Families(t, func(t *testing.T, ipv6 bool) {
		const port = 2905
		s := newStage(t, nat, ipv6)
		vip, client := netip.AddrPortFrom(s.VIP, port), netip.AddrPortFrom(s.client, 40000)
		server := netip.AddrPortFrom(s.realserver, s.realPort(port))
		s.startDirectorWith(fmt.Sprintf("[[service]]\nname = \"sctp\"\nvip = %q\nprotocol = \"sctp\"\nport = %d\n"+
			"forward = \"nat\"\nrealserver = [ { address = %q, port = %d } ]\n", vip.Addr(), port, server.Addr(),
			server.Port()))
		data := sctpChunk(layers.SCTPChunkTypeData, payload(77))
		large := sctpChunk(layers.SCTPChunkTypeData, payload(700))
		init := sctpChunk(layers.SCTPChunkTypeInit, make([]byte, 16))
		steps := []struct {
			name   string
			server bool
			chunk  []byte
		}{
			{"an INIT", false, init},
			{"its INIT ACK", true, sctpChunk(layers.SCTPChunkTypeInitAck, make([]byte, 16))},
			{"a COOKIE ECHO", false, sctpChunk(layers.SCTPChunkTypeCookieEcho, payload(33))},
			{"its COOKIE ACK", true, sctpChunk(layers.SCTPChunkTypeCookieAck, nil)},
			{"a request", false, data},
			{"a reply", true, data},
			{"a request in fragments", false, large},
			{"a reply in fragments", true, large},
		}
		for i, c := range steps {
			from, to := s.clientEnd, s.webEnd
			sent, wanted := s.sctp(client, vip, c.chunk), s.sctp(client, server, c.chunk)
			if c.server {
				from, to = to, from
				sent, wanted = s.sctp(server, client, c.chunk), s.sctp(vip, client, c.chunk)
			}
			parts := [][]byte{sent}
			if len(c.chunk) == len(large) {
				parts = fragments(sent, 200)
			}
			for _, f := range parts {
				from.send(f)
			}
			mustArrive(t, to, c.name, wanted)
			if i == 3 {
				mustBeInState(t, s, "ESTABLISHED")
			}
		}
		// An error quotes the packet that the realserver has received. Its checksum is quoted as it is.
		received, asked := s.sctp(client, server, data), s.sctp(client, vip, data)
		at := parseIP(asked).header + 8
		copy(asked[at:at+4], received[at:])
		s.webEnd.send(s.unreachable(s.realserver, s.client, received))
		mustArrive(t, s.clientEnd, "an ICMP error about a request", s.unreachable(s.VIP, s.client, asked))
		s.clientEnd.send(s.sctp(netip.AddrPortFrom(s.client, 40001), vip, data))
		testkit.Within(t, "a packet of no association is dropped", soon,
			func() bool { return s.director.balance().Drops["no_connection"] == 1 })
		if st := s.director.balance(); sum(st.Drops) != 1 || st.SendError != "" {
			t.Errorf("the director dropped %v, %s", st.Drops, st.SendError)
		}
	})
}

// mustBeInState fails the test unless the director's only connection gets into that state.
func mustBeInState(t *testing.T, s *stage, state string) {
	t.Helper()
	testkit.Within(t, "the association is "+state, soon, func() bool {
		all := s.connections()
		return len(all) == 1 && all[0].State == state && all[0].Protocol == "sctp"
	})
}

// sctp returns a packet with one chunk, and its checksum.
func (s *stage) sctp(src, dst netip.AddrPort, chunk []byte) []byte {
	s.t.Helper()
	return build(s.t, s.ip(src.Addr(), dst.Addr(), layers.IPProtocolSCTP), &layers.SCTP{
		SrcPort: layers.SCTPPort(src.Port()), DstPort: layers.SCTPPort(dst.Port()), VerificationTag: 0x12345678},
		gopacket.Payload(chunk))
}

// sctpChunk returns a chunk with a value, padded (RFC 9260, section 3.2).
func sctpChunk(kind layers.SCTPChunkType, value []byte) []byte {
	chunk := binary.BigEndian.AppendUint16([]byte{byte(kind), 3}, uint16(4+len(value)))
	return append(append(chunk, value...), make([]byte, -len(value)&3)...)
}
