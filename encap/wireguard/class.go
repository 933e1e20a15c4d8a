package wireguard

import (
	"golang.zx2c4.com/wireguard/device"

	"vstun/encap/packet"
)

// A datagram has the ECN of the tunnel's packet in it, and DSCP 0. A packet whose datagram was marked CE on the path
// gets CE, if it is ECN-capable. Handshake messages have DSCP AF41. Linux's WireGuard does the same
// (drivers/net/wireguard/send.c, receive.c; messages.h, HANDSHAKE_DSCP). DSCP stays hidden in the tunnel, whose own
// header has that of the client's packet.
//
// The library carries neither. But a packet stays in one buffer of the library, from memory to bind and back. No
// datagram reaches the last byte of this buffer: it carries the class.
const (
	ecnMask       = 0b11
	ce            = 0b11
	handshakeDSCP = 0x88 // TOS
)

// last returns the last byte of the buffer of the library that b begins in, nil if b is in none.
func last(b []byte) *uint8 {
	if cap(b) != device.MaxMessageSize {
		return nil
	}
	return &b[:cap(b)][cap(b)-1]
}

// classOf returns the TOS or traffic class of the message b.
func classOf(b []byte) uint8 {
	switch b[0] {
	case device.MessageInitiationType, device.MessageResponseType:
		return handshakeDSCP
	case device.MessageTransportType:
		if at := last(b); at != nil && len(b) > device.MessageKeepaliveSize {
			return *at
		}
	}
	return 0
}

// ecn returns the ECN of the IP packet p.
func ecn(p []byte) uint8 {
	if h := packet.IPv6(p); h.Version() == 6 {
		return h.TrafficClass() & ecnMask
	}
	return packet.IPv4(p).TOS() & ecnMask
}

// markCE sets CE in the IP packet p, whose header is whole, if it is ECN-capable.
func markCE(p []byte) {
	switch e := ecn(p); {
	case e == 0 || e == ce:
	case packet.Version(p) == 6:
		h := packet.IPv6(p)
		h.SetTrafficClass(h.TrafficClass() | ce)
	default:
		h := packet.IPv4(p)
		h.SetTOS(h.TOS() | ce)
		h.SetChecksum()
	}
}
