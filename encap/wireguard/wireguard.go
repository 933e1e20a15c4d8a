// Package wireguard is a tunnel end that encrypts. It speaks WireGuard's protocol, by golang.zx2c4.com/wireguard as a
// library, over UDP sockets of its own and without a device of the kernel. What it carries are IPIP packets between
// tunnel addresses, so that WireGuard's choice of the peer by the packet's destination finds the realserver, and its
// check of the source finds a packet that another peer has made up:
//
//	          ┌──────────┬─────┬───────────┬ ─ ─ encrypted ─ ─ ─ ─ ─ ─ ─┬─────┐
//	          │ outer IP │ UDP │ WireGuard │ IP of the tunnel │ inner IP │ tag │
//	          └──────────┴─────┴───────────┴ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─┴─────┘
//	bytes      20 or 40     8         16          20 or 40                 16
//
// The far end is another Device, or any WireGuard with an IPIP tunnel behind it.
//
//	workers → Port.Send → queue → library: encryption → bind → UDP
//	worker ←─────────── deliver ← library: decryption ← bind ← UDP
//
// Each end begins a handshake with every peer whose endpoint it knows, as soon as it knows the peer. WireGuard itself
// waits for a packet, and for 15 s where a peer that has begun anew gives no answer.
package wireguard

import (
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// InitiationSize is the length of the message that begins a handshake, in bytes (WireGuard's paper, section 5.4.2).
const InitiationSize = device.MessageInitiationSize

// Config is the keys of a Device, and its peers.
type Config struct {
	PrivateKey Key
	Peers      []Peer // no two have a key or an address in common
}

// Peer is the far end of a tunnel.
type Peer struct {
	// PublicKeys are the peer's present and former keys, at least one. The address belongs to the key with the latest
	// handshake.
	PublicKeys   []Key
	PresharedKey Key            // zero: none
	Endpoint     netip.AddrPort // invalid: the peer begins, and brings it
	Keepalive    time.Duration  // between messages to an idle peer, whole seconds up to 65,535; 0: none
	Address      netip.Addr     // in the tunnel
	MTU          int            // the largest packet of the tunnel, in bytes; 0: unknown, or as it was
}

// equal reports whether c and o are the same.
func (c *Config) equal(o *Config) bool {
	return c.PrivateKey == o.PrivateKey && slices.EqualFunc(c.Peers, o.Peers, func(p, q Peer) bool {
		return slices.Equal(p.PublicKeys, q.PublicKeys) && p.PresharedKey == q.PresharedKey &&
			p.Endpoint == q.Endpoint && p.Keepalive == q.Keepalive && p.Address == q.Address && p.MTU == q.MTU
	})
}

// Overhead returns the bytes that WireGuard adds to a packet, to a peer at an endpoint of IPv4 or IPv6.
func Overhead(six bool) int {
	if six {
		return 80
	}
	return 60
}

// Unpadded returns the size in bytes of the largest packet that gets no padding, of those up to n bytes. A peer that
// does not know that n is all that fits pads larger ones to a multiple of 16 bytes (WireGuard's paper, section 5.4.6):
// routers can cut their messages.
func Unpadded(n int) int { return n - n%device.PaddingMultiple }

// Status is the state of a Device.
type Status struct {
	PublicKey Key
	Port      uint16
	Peers     []PeerStatus // in the order of Config.Peers
	LastError error        // of the last datagram that the kernel has refused in the last minute; nil: none
}

// PeerStatus is the state of a peer.
type PeerStatus struct {
	Address   netip.Addr
	PublicKey Key            // the one that has the address
	Endpoint  netip.AddrPort // where its last message came from, or the configured one; invalid: unknown
	Handshake time.Time      // zero: there was none
	In, Out   uint64         // bytes of UDP payload, of all keys
}

// counter counts packets.
type counter = atomic.Uint64
