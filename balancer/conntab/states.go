package conntab

import (
	"time"

	"vstun/encap/packet"
)

// State is a connection's state (Linux include/net/ip_vs.h, enum ip_vs_tcp_states). It is derived from the packets that
// pass the director.
type State uint8

const (
	stateEmpty State = iota
	None
	Established
	SynSent
	SynRecv
	FinWait
	TimeWait
	Close
	CloseWait
	LastAck
	Listen
	SynAck
	UDP
	SCTPNone
	SCTPInit1
	SCTPInit
	SCTPCookieSent
	SCTPCookieReplied
	SCTPCookieWait
	SCTPCookie
	SCTPCookieEchoed
	SCTPEstablished
	SCTPShutdownSent
	SCTPShutdownReceived
	SCTPShutdownAckSent
	SCTPRejected
	SCTPClosed
	TemplateState // of a persistence template
	Pinned        // see Table.Pin
	numStates
)

var stateNames = [numStates]string{"", "NONE", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT", "TIME_WAIT", "CLOSE",
	"CLOSE_WAIT", "LAST_ACK", "LISTEN", "SYNACK", "UDP", "NONE", "INIT1", "INIT", "C-SENT", "C-REPLIED", "C-WAIT",
	"COOKIE", "C-ECHOED",
	"ESTABLISHED", "S-SENT", "S-RECEIVED", "S-ACK-SENT", "REJECTED", "CLOSED", "TEMPLATE", "PROBE"}

// String returns ipvsadm's name of the state.
func (s State) String() string {
	if s < numStates {
		return stateNames[s]
	}
	return "unknown"
}

// Active reports whether schedulers count the connection as active (Linux ip_vs_proto_tcp.c, tcp_state_active_table,
// and ip_vs_proto_sctp.c).
func (s State) Active() bool {
	return s == Established || s == SynSent || s == SynRecv || s == SynAck || s == SCTPEstablished
}

// halfOpen reports whether the client has not answered the realserver's SYN-ACK yet.
func (s State) halfOpen() bool { return s == SynRecv || s == SynAck }

// tcpTable is a state table of Linux net/netfilter/ipvs/ip_vs_proto_tcp.c: by kind of packet and state.
type tcpTable [4][SynAck + 1]State

// perDirection has a state table for each view of a connection. The kernel's names are in brackets.
type perDirection[T any] struct {
	clientOnly T // packets from the client, of a connection whose replies do not pass the director (INPUT-ONLY)
	client     T // packets from the client, of one whose replies pass (INPUT)
	server     T // replies (OUTPUT)
}

// of returns the table for a packet.
func (p *perDirection[T]) of(dir Direction, twoWay bool) *T {
	switch {
	case dir == FromServer:
		return &p.server
	case twoWay:
		return &p.client
	}
	return &p.clientOnly
}

// tcpStates is tcp_states.
var tcpStates = perDirection[tcpTable]{
	clientOnly: tcpTable{
		{None: SynRecv, Established: Established, SynSent: Established, SynRecv: SynRecv, FinWait: SynRecv,
			TimeWait: SynRecv,
			Close:    SynRecv, CloseWait: SynRecv, LastAck: SynRecv, Listen: SynRecv, SynAck: SynRecv}, // SYN
		{None: Close, Established: FinWait, SynSent: SynSent, SynRecv: TimeWait, FinWait: FinWait, TimeWait: TimeWait,
			Close: Close, CloseWait: CloseWait, LastAck: LastAck, Listen: Listen, SynAck: TimeWait}, // FIN
		{None: Established, Established: Established, SynSent: SynSent, SynRecv: Established, FinWait: FinWait,
			TimeWait: TimeWait,
			Close:    Close, CloseWait: CloseWait, LastAck: Close, Listen: Listen, SynAck: Established}, // ACK
		{None: Close, Established: Close, SynSent: Close, SynRecv: SynRecv, FinWait: Close, TimeWait: Close,
			Close: Close, CloseWait: Close, LastAck: LastAck, Listen: Listen, SynAck: Close}, // RST
	},
	client: tcpTable{
		{None: SynRecv, Established: Established, SynSent: Established, SynRecv: SynRecv, FinWait: SynRecv,
			// SYN
			TimeWait: SynRecv, Close: SynRecv, CloseWait: SynRecv, LastAck: SynRecv, Listen: SynRecv, SynAck: SynRecv},
		{None: Close, Established: CloseWait, SynSent: SynSent, SynRecv: TimeWait, FinWait: TimeWait,
			// FIN
			TimeWait: TimeWait, Close: Close, CloseWait: CloseWait, LastAck: LastAck, Listen: Listen, SynAck: TimeWait},
		{None: Established, Established: Established, SynSent: SynSent, SynRecv: Established, FinWait: FinWait,
			// ACK
			TimeWait: TimeWait, Close: Close, CloseWait: CloseWait, LastAck: Close, Listen: Listen,
			SynAck: Established},
		{None: Close, Established: Close, SynSent: Close, SynRecv: SynRecv, FinWait: Close,
			TimeWait: Close, Close: Close, CloseWait: Close, LastAck: LastAck, Listen: Listen, SynAck: SynRecv}, // RST
	},
	server: tcpTable{
		{None: SynSent, Established: Established, SynSent: SynSent, SynRecv: SynRecv, FinWait: SynSent,
			// SYN
			TimeWait: SynSent, Close: SynSent, CloseWait: SynSent, LastAck: SynSent, Listen: Listen, SynAck: SynRecv},
		{None: TimeWait, Established: FinWait, SynSent: SynSent, SynRecv: TimeWait, FinWait: FinWait,
			// FIN
			TimeWait: TimeWait, Close: Close, CloseWait: TimeWait, LastAck: LastAck, Listen: Listen, SynAck: TimeWait},
		{None: Established, Established: Established, SynSent: SynSent, SynRecv: Established, FinWait: FinWait,
			// ACK
			TimeWait: TimeWait, Close: Close, CloseWait: CloseWait, LastAck: LastAck, Listen: Established,
			SynAck: Established},
		{None: Close, Established: Close, SynSent: SynSent, SynRecv: Close, FinWait: Close,
			TimeWait: TimeWait, Close: Close, CloseWait: Close, LastAck: Close, Listen: Close, SynAck: Close}, // RST
	},
}

// tcpStatesSecure is tcp_states_dos, for secure_tcp: a SYN leads to SYNACK.
var tcpStatesSecure = perDirection[tcpTable]{
	clientOnly: tcpTable{
		{None: SynAck, Established: Established, SynSent: Established, SynRecv: SynRecv, FinWait: SynAck,
			TimeWait: SynAck,
			Close:    SynAck, CloseWait: SynAck, LastAck: SynAck, Listen: SynAck, SynAck: SynAck}, // SYN
		tcpStates.clientOnly[1], // FIN
		tcpStates.clientOnly[2], // ACK
		tcpStates.clientOnly[3], // RST
	},
	client: tcpTable{
		{None: SynRecv, Established: Established, SynSent: Established, SynRecv: SynRecv, FinWait: SynRecv,
			// SYN
			TimeWait: SynRecv, Close: SynRecv, CloseWait: SynRecv, LastAck: SynRecv, Listen: SynRecv, SynAck: SynAck},
		{None: Close, Established: CloseWait, SynSent: SynSent, SynRecv: TimeWait, FinWait: TimeWait,
			// FIN
			TimeWait: TimeWait, Close: Close, CloseWait: CloseWait, LastAck: LastAck, Listen: Listen, SynAck: SynAck},
		{None: Established, Established: Established, SynSent: SynSent, SynRecv: SynRecv, FinWait: FinWait,
			// ACK
			TimeWait: TimeWait, Close: Close, CloseWait: CloseWait, LastAck: Close, Listen: Listen, SynAck: SynAck},
		{None: Close, Established: Close, SynSent: Close, SynRecv: SynRecv, FinWait: Close,
			TimeWait: Close, Close: Close, CloseWait: Close, LastAck: LastAck, Listen: Listen, SynAck: Close}, // RST
	},
	server: tcpTable{
		{None: SynSent, Established: Established, SynSent: SynSent, SynRecv: SynAck, FinWait: SynSent,
			// SYN
			TimeWait: SynSent, Close: SynSent, CloseWait: SynSent, LastAck: SynSent, Listen: Listen, SynAck: SynAck},
		{None: TimeWait, Established: FinWait, SynSent: SynSent, SynRecv: TimeWait, FinWait: FinWait,
			// FIN
			TimeWait: TimeWait, Close: Close, CloseWait: TimeWait, LastAck: LastAck, Listen: Listen, SynAck: TimeWait},
		{None: Established, Established: Established, SynSent: SynSent, SynRecv: Established, FinWait: FinWait,
			// ACK
			TimeWait: TimeWait, Close: Close, CloseWait: CloseWait, LastAck: LastAck, Listen: Established,
			SynAck: Established},
		{None: Close, Established: Close, SynSent: SynSent, SynRecv: Close, FinWait: Close,
			TimeWait: TimeWait, Close: Close, CloseWait: Close, LastAck: Close, Listen: Close, SynAck: Close}, // RST
	},
}

// next returns the state after a TCP packet with these flags. Of several flags, the first of RST, SYN, FIN and ACK
// decides.
func (t *tcpTable) next(s State, flags uint8) State {
	switch {
	case flags&packet.FlagRST != 0:
		return t[3][s]
	case flags&packet.FlagSYN != 0:
		return t[0][s]
	case flags&packet.FlagFIN != 0:
		return t[1][s]
	case flags&packet.FlagACK != 0:
		return t[2][s]
	}
	return Close
}

// Timeouts are the timeouts that users can set, as with `ipvsadm --set`. Each is at least a second and at most
// MaxTimeout; 0 stands for IPVS's default.
type Timeouts struct {
	TCP    time.Duration // ESTABLISHED
	TCPFin time.Duration // FIN_WAIT
	TCPSyn time.Duration // SYN_RECV
	UDP    time.Duration
	SCTP   time.Duration // ESTABLISHED
}

// MaxTimeout is the longest timeout.
const MaxTimeout = 31 * 24 * time.Hour

const maxTicks = int32(MaxTimeout / (time.Second / PerSecond))

type timeouts [numStates]Ticks

// ticks returns each state's timeout: Linux ip_vs_proto_tcp.c, tcp_timeouts, ip_vs_proto_udp.c, and ip_vs_proto_sctp.c,
// sctp_timeouts.
func (c Timeouts) ticks() timeouts {
	seconds := [numStates]int{None: 2, Established: 900, SynSent: 120, SynRecv: 60, FinWait: 120, TimeWait: 120,
		Close:     10,
		CloseWait: 60, LastAck: 30, Listen: 120, SynAck: 120, UDP: 300, SCTPNone: 2, SCTPInit1: 4, SCTPInit: 61,
		SCTPCookieSent:    61,
		SCTPCookieReplied: 61, SCTPCookieWait: 61, SCTPCookie: 61, SCTPCookieEchoed: 61, SCTPEstablished: 900,
		SCTPShutdownSent:     61,
		SCTPShutdownReceived: 61, SCTPShutdownAckSent: 61, SCTPRejected: 4, SCTPClosed: 61}
	var t timeouts
	for s, n := range seconds {
		t[s] = Ticks(n * PerSecond)
	}
	set := func(s State, d time.Duration) {
		if d > 0 {
			t[s] = Ticks(min(d, MaxTimeout) * PerSecond / time.Second)
		}
	}
	set(Established, c.TCP)
	set(FinWait, c.TCPFin)
	set(SynRecv, c.TCPSyn)
	set(SynAck, c.TCPSyn) // SynAck takes the place of SynRecv with Config.SecureTCP
	set(UDP, c.UDP)
	set(SCTPEstablished, c.SCTP)
	return t
}
