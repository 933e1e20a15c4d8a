// Package drop lists the reasons for dropping a packet.
package drop

// Reason is why a packet was dropped.
type Reason uint8

// Accept is the zero value: the packet is forwarded. Each other reason has a counter with its name.
const (
	Accept Reason = iota

	// Faults of the packet itself; at a realserver, of the packet in the tunnel.
	Truncated   // shorter than its headers say
	NotIPv4     // another IP version
	BadHeader   // lengths, options or extension headers that contradict each other; an IPv4-mapped IPv6 address
	BadChecksum // IP header checksum; ICMP checksum of an echo request or an error
	SourceRoute // a source route among the IP options, or an IPv6 routing header
	Fragment    // a fragment with a wrong length, an overlap or an end beyond 65,535 bytes, or one of such a packet
	Reassembly  // a fragment of a packet that was not complete in time, or was evicted for a later one

	// Packets that the director cannot forward. The agent also drops packets as Offload and TooBig, and a tunnel drops
	// them as Unreachable if the route to its peer leads back into it.
	Frame        // an Ethernet frame for another host or a group, with a VLAN tag, or without valid IP, ARP, ND or MLD
	Protocol     // neither TCP, UDP, SCTP nor ICMP
	ICMP         // an ICMP message that is neither an echo request nor an error of the kinds that servers need
	Neighbour    // neighbour discovery for a VIP: it concerns the link only, where it is answered
	NoService    // no service has this address, protocol and port
	NoConnection // TCP or SCTP without a known connection, and no SYN or INIT; an ICMP error about such a connection
	Removed      // the realserver of its connection is no longer configured
	NoRealserver // no realserver can get a new connection
	Unreachable  // no route to the realserver of VS/NAT, or a client on this host: the sender gets an ICMP error
	TableFull    // a new connection beyond connections.max, and no entry can be evicted for it
	Offload      // a GSO packet, or an unfinished checksum, that contradicts its own headers
	TooBig       // with DF, larger than the path takes; the sender gets an ICMP error with the MTU
	Unresolved   // the MAC address of its realserver is not known (VS/DR), and enough packets wait for it already
	TTL          // its TTL or hop limit is used up; the sender gets an ICMP time exceeded

	// Packets that the realserver's agent refuses. The director refuses some of WireGuard, too, and so does the end of
	// a point-to-point tunnel.
	NotDirector      // outer source is not in directors
	Outer            // the outer header does not belong to a configured tunnel
	TunnelHeader     // a GRE or GUE header that is cut short or has flags or fields that the agent does not know
	TunnelKey        // another GRE key than the configured one, none, or one where none is configured
	TunnelChecksum   // a wrong GRE checksum
	Trailing         // bytes behind the packet in the tunnel
	InnerDestination // inner destination is not in vips
	InnerSource      // inner source is this host, loopback, multicast, broadcast, 0.0.0.0/8, ::/96 or link-local
	InnerProtocol    // a tunnel in the tunnel, by its protocol or the agent's own UDP port
	Gathered         // several datagrams that the kernel has merged, of unknown sizes
	Unauthenticated  // a WireGuard message with a packet that belongs to no session, or was there before
	Handshake        // a WireGuard handshake message with another key, older than the last one, or one of a flood
	TunnelSource     // from WireGuard: the outer source is not the peer's address
	Unexpected       // from WireGuard: a realserver has sent it to the director, which takes none
	Question         // a question of a director's doctor, faster than the agent takes them
	Congestion       // outer ECN says CE, but the inner packet is not ECN-capable (RFC 6040)
	NotPeer          // for a point-to-point tunnel's UDP port, and not from its peer
	NotAnswer        // read from the TUN device: its source is no VIP, or its destination cannot be a client
	AnswerLoop       // an answer that the kernel has routed back to the agent, or one whose TTL is used up
	Unsettled        // of a connection that the host does not have, while tables for its second chance may still come

	// Packets that the kernel refuses.
	SendError // no route, or no memory for it: the log has the last error
	TUNError  // the TUN device refused it

	NumReasons
)

// side is what drops packets for a reason, one bit each.
type side uint8

const (
	director side = 1 << iota
	realserver
	tunnel // an end of a point-to-point tunnel, in either program
	both   = director | realserver
	ends   = realserver | tunnel
	all    = director | realserver | tunnel
)

// reasons is each reason's name, and the programs that count it.
var reasons = [NumReasons]struct {
	name string
	side side
}{
	Accept:           {"accept", 0},
	Truncated:        {"truncated", all},
	NotIPv4:          {"not_ipv4", all},
	BadHeader:        {"bad_header", all},
	BadChecksum:      {"bad_checksum", all},
	SourceRoute:      {"source_route", all},
	Fragment:         {"fragment", director},
	Reassembly:       {"reassembly", director},
	Frame:            {"frame", director},
	Protocol:         {"protocol", director},
	ICMP:             {"icmp", director},
	Neighbour:        {"neighbour", director},
	NoService:        {"no_service", director},
	NoConnection:     {"no_connection", director},
	Removed:          {"realserver_removed", director},
	NoRealserver:     {"no_realserver", director},
	Unreachable:      {"unreachable", director | tunnel},
	TableFull:        {"table_full", director},
	Offload:          {"offload", all},
	TooBig:           {"too_big", all},
	Unresolved:       {"unresolved", director},
	TTL:              {"ttl", director},
	NotDirector:      {"not_director", realserver},
	Outer:            {"outer_header", ends},
	TunnelHeader:     {"tunnel_header", ends},
	TunnelKey:        {"tunnel_key", ends},
	TunnelChecksum:   {"tunnel_checksum", ends},
	Trailing:         {"trailing_bytes", ends},
	InnerDestination: {"inner_destination", realserver},
	InnerSource:      {"inner_source", realserver},
	InnerProtocol:    {"inner_protocol", realserver},
	Gathered:         {"gathered", ends},
	Unauthenticated:  {"unauthenticated", both},
	Handshake:        {"handshake", both},
	TunnelSource:     {"tunnel_source", both},
	Unexpected:       {"unexpected", director},
	Question:         {"question", realserver},
	Congestion:       {"congestion", ends},
	NotPeer:          {"not_peer", both},
	NotAnswer:        {"not_answer", realserver},
	AnswerLoop:       {"answer_loop", realserver},
	Unsettled:        {"unsettled", realserver},
	SendError:        {"send_error", all},
	TUNError:         {"tun_error", ends},
}

// String is the name under which the reason is counted.
func (r Reason) String() string {
	if r < NumReasons {
		return reasons[r].name
	}
	return "unknown"
}

// Director reports whether a director can drop a packet for this reason.
func (r Reason) Director() bool { return r < NumReasons && reasons[r].side&director != 0 }

// Realserver reports whether a realserver's agent can drop a packet for this reason.
func (r Reason) Realserver() bool { return r < NumReasons && reasons[r].side&realserver != 0 }

// Tunnel reports whether an end of a point-to-point tunnel can drop a packet for this reason.
func (r Reason) Tunnel() bool { return r < NumReasons && reasons[r].side&tunnel != 0 }
