package conntab

import "vstun/encap/packet"

// sctpNext is the INPUT-ONLY part of sctp_states, Linux net/netfilter/ipvs/ip_vs_proto_sctp.c: for each chunk, the
// states whose next is another one.
var sctpNext = map[uint8]map[State]State{
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

// sctpTable is sctpNext by chunk and state, as packets are looked up.
var sctpTable = func() (t [packet.ChunkShutdownComplete + 1][SCTPClosed + 1]State) {
	for chunk := range t {
		next := sctpNext[uint8(chunk)]
		if next == nil { // chunks that IPVS takes for data: SACK, HEARTBEAT, ECNE and the like
			next = sctpNext[packet.ChunkData]
		}
		for st := SCTPNone; st <= SCTPClosed; st++ {
			t[chunk][st] = st
			if to, ok := next[st]; ok {
				t[chunk][st] = to
			}
		}
	}
	return t
}()

// nextSCTP is the state after an SCTP packet that begins with a chunk of that type.
func (s State) nextSCTP(chunk uint8) State {
	if int(chunk) >= len(sctpTable) {
		chunk = packet.ChunkData
	}
	return sctpTable[chunk][s]
}
