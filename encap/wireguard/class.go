package wireguard

import (
	"sync/atomic"

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
type classes struct {
	// used is set with the first class that is not 0. Until then the last byte of every buffer is 0: it is neither
	// written nor read, since it is on a page of its own.
	used atomic.Bool
}

const (
	ecnMask       = 0b11
	ce            = 0b11
	handshakeDSCP = 0x88 // TOS
)

// set gives the buffer of the library that b begins in this class.
func (c *classes) set(b []byte, class uint8) {
	if !c.used.Load() {
		if class == 0 {
			return
		}
		c.used.Store(true)
	}
	if cap(b) == device.MaxMessageSize {
		b[:cap(b)][cap(b)-1] = class
	}
}

// get returns the class of the buffer of the library that b begins in, 0 if b is in none.
func (c *classes) get(b []byte) uint8 {
	if !c.used.Load() || cap(b) != device.MaxMessageSize {
		return 0
	}
	return b[:cap(b)][cap(b)-1]
}

// of returns the TOS or traffic class of the message b.
func (c *classes) of(b []byte) uint8 {
	switch b[0] {
	case device.MessageInitiationType, device.MessageResponseType:
		return handshakeDSCP
	case device.MessageTransportType:
		if len(b) > device.MessageKeepaliveSize {
			return c.get(b)
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
