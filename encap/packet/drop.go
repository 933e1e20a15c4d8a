package packet

// Drop is the reason for which a packet was refused.
type Drop uint8

// Accept is no reason: the packet goes on. The others are counted, each under its name.
const (
	Accept Drop = iota

	// What is wrong with the packet itself; at a realserver, with the packet in the tunnel.
	DropTruncated   // shorter than its headers say
	DropNotIPv4     // another IP version
	DropBadHeader   // lengths, options or extension headers that contradict each other; an IPv4-mapped IPv6 address
	DropBadChecksum // IP header checksum; ICMP checksum of an echo request or an error
	DropSourceRoute // a source route among the IP options, or an IPv6 routing header
	// a fragment that fits no packet: of a wrong length, overlapping another, beyond the end; or its other fragments do
	// so
	DropFragment
	DropReassembly // a fragment whose packet was not complete in time, or gave its place to a later one

	// What the director can't do with it.
	DropProtocol  // neither TCP, UDP, SCTP nor ICMP
	DropICMP      // an ICMP message that is neither an echo request nor an error of the kinds that servers need
	DropNoService // nothing is configured for this address, protocol and port
	// TCP or SCTP of a connection that is not known, and no SYN or INIT; an ICMP error about such a connection
	DropNoConnection
	DropRemoved      // its connection's realserver is configured no more
	DropNoRealserver // no realserver may have a new connection
	DropTableFull    // a new connection beyond connections.max, and none can make room for it
	DropOffload      // a super-packet, or an unfinished checksum, that contradicts its own headers
	DropTooBig       // with DF, larger than the tunnel takes; the sender was told its MTU

	// What the realserver's agent refuses.
	DropNotDirector      // outer source is not in directors
	DropOuter            // outer header is none of the tunnel's
	DropTunnelHeader     // a GRE or GUE header that is cut short, or says what the agent doesn't understand
	DropTunnelKey        // another GRE key than the configured one, none, or one where none is configured
	DropTunnelChecksum   // a wrong GRE checksum
	DropTrailing         // bytes behind the packet in the tunnel
	DropInnerDestination // inner destination is not in vips
	// inner source is no other host's: an address of this one, loopback, multicast, broadcast, 0.0.0.0/8, ::/96 or
	// link-local
	DropInnerSource
	DropInnerProtocol // a tunnel in the tunnel, by its protocol or the agent's own UDP port
	DropGathered      // several datagrams that the kernel has put together, and nobody can take apart
	DropQuestion      // a question of a director's doctor, beyond the bound of answers
	DropCongestion    // outer ECN says CE, but the packet can't carry it on (RFC 6040)
	DropNotAnswer     // from this host by the TUN device: its source is no VIP, or its destination can't be a client
	// an answer that the agent has forwarded and the kernel has routed back, or one whose TTL is used up
	DropAnswerLoop

	// What the kernel refused.
	DropSendError // no route, or no memory for it: see the log for the last error
	DropTUNError  // the TUN device did not take it

	NumDrops
)

var dropNames = [NumDrops]string{
	Accept:               "accept",
	DropTruncated:        "truncated",
	DropNotIPv4:          "not_ipv4",
	DropBadHeader:        "bad_header",
	DropBadChecksum:      "bad_checksum",
	DropSourceRoute:      "source_route",
	DropFragment:         "fragment",
	DropReassembly:       "reassembly",
	DropProtocol:         "protocol",
	DropICMP:             "icmp",
	DropNoService:        "no_service",
	DropNoConnection:     "no_connection",
	DropRemoved:          "realserver_removed",
	DropNoRealserver:     "no_realserver",
	DropTableFull:        "table_full",
	DropOffload:          "offload",
	DropTooBig:           "too_big",
	DropNotDirector:      "not_director",
	DropOuter:            "outer_header",
	DropTunnelHeader:     "tunnel_header",
	DropTunnelKey:        "tunnel_key",
	DropTunnelChecksum:   "tunnel_checksum",
	DropTrailing:         "trailing_bytes",
	DropInnerDestination: "inner_destination",
	DropInnerSource:      "inner_source",
	DropInnerProtocol:    "inner_protocol",
	DropGathered:         "gathered",
	DropQuestion:         "question",
	DropCongestion:       "congestion",
	DropNotAnswer:        "not_answer",
	DropAnswerLoop:       "answer_loop",
	DropSendError:        "send_error",
	DropTUNError:         "tun_error",
}

// String is the name under which the reason is counted.
func (d Drop) String() string {
	if d < NumDrops {
		return dropNames[d]
	}
	return "unknown"
}
