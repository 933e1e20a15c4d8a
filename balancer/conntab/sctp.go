package conntab

import "vstun/encap/packet"

// sctpTable is a state table of Linux net/netfilter/ipvs/ip_vs_proto_sctp.c: by chunk and state.
type sctpTable [packet.ChunkShutdownComplete + 1][SCTPClosed + 1]State

// sctpStates is sctp_states.
var sctpStates = perDirection[sctpTable]{
	clientOnly: newSCTPTable(sctpClientOnly),
	client:     newSCTPTable(sctpClient),
	server:     newSCTPTable(sctpServer),
}

// sctpClientOnly is the INPUT-ONLY part of sctp_states. It has the states that each chunk changes.
var sctpClientOnly = map[uint8]map[State]State{
	packet.ChunkData: {SCTPNone: SCTPEstablished, SCTPCookieWait: SCTPEstablished},
	packet.ChunkInit: {SCTPNone: SCTPInit1, SCTPInit1: SCTPInit, SCTPCookieSent: SCTPInit, SCTPCookieReplied: SCTPInit,
		SCTPCookieWait: SCTPInit,
		SCTPRejected:   SCTPInit, SCTPClosed: SCTPInit},
	packet.ChunkInitAck: {SCTPNone: SCTPCookieEchoed, SCTPInit1: SCTPCookieEchoed, SCTPInit: SCTPCookieEchoed,
		SCTPCookieSent:    SCTPCookieEchoed,
		SCTPCookieReplied: SCTPCookieEchoed, SCTPCookieWait: SCTPCookieEchoed},
	packet.ChunkCookieEcho: {SCTPNone: SCTPEstablished, SCTPInit1: SCTPEstablished, SCTPInit: SCTPEstablished,
		SCTPCookieSent:    SCTPEstablished,
		SCTPCookieReplied: SCTPEstablished, SCTPCookieWait: SCTPEstablished},
	packet.ChunkCookieAck: {SCTPNone: SCTPEstablished, SCTPCookieSent: SCTPEstablished,
		SCTPCookieReplied: SCTPEstablished, SCTPCookie: SCTPEstablished,
		SCTPCookieEchoed: SCTPEstablished},
	packet.ChunkShutdown: {SCTPNone: SCTPShutdownReceived, SCTPEstablished: SCTPShutdownReceived},
	packet.ChunkShutdownAck: {SCTPNone: SCTPClosed, SCTPInit1: SCTPInit, SCTPEstablished: SCTPClosed,
		SCTPShutdownSent:    SCTPClosed,
		SCTPShutdownAckSent: SCTPClosed},
	packet.ChunkShutdownComplete: {SCTPNone: SCTPClosed, SCTPInit1: SCTPClosed, SCTPInit: SCTPClosed,
		SCTPCookieSent:    SCTPClosed,
		SCTPCookieReplied: SCTPClosed, SCTPShutdownReceived: SCTPClosed, SCTPShutdownAckSent: SCTPClosed},
	packet.ChunkError: {SCTPNone: SCTPClosed},
	packet.ChunkAbort: {SCTPNone: SCTPClosed, SCTPInit1: SCTPClosed, SCTPInit: SCTPClosed, SCTPCookieSent: SCTPClosed,
		SCTPCookieReplied: SCTPClosed,
		SCTPCookieWait:    SCTPRejected, SCTPCookie: SCTPClosed, SCTPCookieEchoed: SCTPClosed,
		SCTPEstablished:      SCTPClosed,
		SCTPShutdownSent:     SCTPClosed,
		SCTPShutdownReceived: SCTPClosed, SCTPShutdownAckSent: SCTPClosed, SCTPRejected: SCTPClosed},
}

// sctpClient is the INPUT part.
var sctpClient = map[uint8]map[State]State{
	packet.ChunkData: {SCTPNone: SCTPEstablished},
	packet.ChunkInit: {SCTPNone: SCTPInit1, SCTPInit1: SCTPInit, SCTPRejected: SCTPInit,
		SCTPClosed: SCTPInit},
	packet.ChunkInitAck: {SCTPNone: SCTPCookieWait, SCTPInit1: SCTPCookieWait, SCTPInit: SCTPCookieWait,
		SCTPCookieWait: SCTPCookie},
	packet.ChunkCookieEcho: {SCTPNone: SCTPCookieReplied, SCTPInit1: SCTPInit, SCTPCookieSent: SCTPCookieReplied},
	packet.ChunkCookieAck:  {SCTPNone: SCTPEstablished, SCTPCookieEchoed: SCTPEstablished},
	packet.ChunkShutdown:   {SCTPNone: SCTPShutdownReceived, SCTPEstablished: SCTPShutdownReceived},
	packet.ChunkShutdownAck: {SCTPNone: SCTPClosed, SCTPInit1: SCTPInit, SCTPShutdownSent: SCTPClosed,
		SCTPShutdownAckSent: SCTPClosed},
	packet.ChunkShutdownComplete: {SCTPNone: SCTPClosed, SCTPInit1: SCTPClosed, SCTPInit: SCTPClosed,
		SCTPShutdownAckSent: SCTPClosed},
	packet.ChunkError: {SCTPNone: SCTPClosed, SCTPCookieEchoed: SCTPClosed},
	packet.ChunkAbort: {SCTPNone: SCTPClosed, SCTPInit1: SCTPClosed, SCTPInit: SCTPClosed, SCTPCookieSent: SCTPClosed,
		SCTPCookieReplied: SCTPClosed, SCTPCookieWait: SCTPRejected, SCTPCookie: SCTPClosed,
		SCTPCookieEchoed: SCTPClosed, SCTPEstablished: SCTPClosed, SCTPShutdownSent: SCTPClosed,
		SCTPShutdownReceived: SCTPClosed, SCTPShutdownAckSent: SCTPClosed, SCTPRejected: SCTPClosed},
}

// sctpServer is the OUTPUT part.
var sctpServer = map[uint8]map[State]State{
	packet.ChunkData: {SCTPNone: SCTPEstablished},
	packet.ChunkInit: {SCTPNone: SCTPCookieWait, SCTPInit1: SCTPCookieWait, SCTPInit: SCTPCookieWait,
		SCTPCookieSent: SCTPCookieWait, SCTPCookieReplied: SCTPCookieWait, SCTPCookie: SCTPCookieWait,
		SCTPCookieEchoed: SCTPCookieWait, SCTPShutdownSent: SCTPCookieWait, SCTPShutdownReceived: SCTPCookieWait,
		SCTPShutdownAckSent: SCTPCookieWait, SCTPRejected: SCTPCookieWait, SCTPClosed: SCTPCookieWait},
	packet.ChunkInitAck: {SCTPNone: SCTPCookieSent, SCTPInit1: SCTPCookieSent, SCTPInit: SCTPCookieSent},
	packet.ChunkCookieEcho: {SCTPNone: SCTPCookieEchoed, SCTPInit1: SCTPCookieEchoed, SCTPInit: SCTPCookieEchoed,
		SCTPCookieSent: SCTPCookieEchoed, SCTPCookieReplied: SCTPCookieEchoed, SCTPCookieWait: SCTPCookieEchoed,
		SCTPCookie: SCTPCookieEchoed},
	packet.ChunkCookieAck: {SCTPNone: SCTPEstablished, SCTPInit1: SCTPEstablished, SCTPInit: SCTPEstablished,
		SCTPCookieSent: SCTPEstablished, SCTPCookieReplied: SCTPEstablished, SCTPCookieWait: SCTPEstablished,
		SCTPCookie: SCTPEstablished, SCTPCookieEchoed: SCTPEstablished},
	packet.ChunkShutdown: {SCTPNone: SCTPShutdownSent, SCTPInit1: SCTPShutdownSent, SCTPInit: SCTPShutdownSent,
		SCTPCookieSent: SCTPShutdownSent, SCTPCookieReplied: SCTPShutdownSent, SCTPCookieWait: SCTPShutdownSent,
		SCTPCookie: SCTPShutdownSent, SCTPCookieEchoed: SCTPShutdownSent, SCTPEstablished: SCTPShutdownSent},
	packet.ChunkShutdownAck: {SCTPNone: SCTPShutdownAckSent, SCTPInit1: SCTPShutdownAckSent,
		SCTPInit:       SCTPShutdownAckSent,
		SCTPCookieSent: SCTPShutdownAckSent, SCTPCookieReplied: SCTPShutdownAckSent,
		SCTPShutdownSent: SCTPShutdownAckSent, SCTPShutdownReceived: SCTPShutdownAckSent},
	packet.ChunkShutdownComplete: {SCTPNone: SCTPClosed},
	packet.ChunkError: {SCTPNone: SCTPClosed, SCTPInit1: SCTPClosed, SCTPInit: SCTPClosed, SCTPCookieSent: SCTPClosed,
		SCTPCookieReplied: SCTPClosed},
	packet.ChunkAbort: {SCTPNone: SCTPClosed, SCTPInit1: SCTPRejected, SCTPInit: SCTPClosed, SCTPCookieSent: SCTPClosed,
		SCTPCookieReplied: SCTPClosed, SCTPCookieWait: SCTPClosed, SCTPCookie: SCTPClosed, SCTPCookieEchoed: SCTPClosed,
		SCTPEstablished: SCTPClosed, SCTPShutdownSent: SCTPClosed, SCTPShutdownReceived: SCTPClosed,
		SCTPShutdownAckSent: SCTPClosed, SCTPRejected: SCTPClosed},
}

// newSCTPTable makes a table of the states that change.
func newSCTPTable(changes map[uint8]map[State]State) (t sctpTable) {
	for chunk := range t {
		next := changes[uint8(chunk)]
		if next == nil { // chunks that IPVS takes for data: SACK, HEARTBEAT, ECNE and the like
			next = changes[packet.ChunkData]
		}
		for st := SCTPNone; st <= SCTPClosed; st++ {
			t[chunk][st] = st
			if to, ok := next[st]; ok {
				t[chunk][st] = to
			}
		}
	}
	return t
}

// nextSCTP returns the state after an SCTP packet whose first chunk has the type chunk.
func (s State) nextSCTP(t *sctpTable, chunk uint8) State {
	if int(chunk) >= len(t) {
		chunk = packet.ChunkData
	}
	return t[chunk][s]
}
