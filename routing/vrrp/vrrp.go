// Package vrrp elects the master among routers that share addresses: the Virtual Router Redundancy Protocol, version 2
// (RFC 3768) and version 3 (RFC 9568), as keepalived and FRR speak it.
//
//	advertisements ─► Parse ─► Auth ─► Election ─► roles
//	                                      │
//	devices, tracks, time ────────────────┴──────► advertisements
//
// An [Election] is the state of all instances. It is pure: each call has the time as an argument, and returns what to
// send. A [Router] has the sockets and the clock, and drives an Election. Neither changes addresses, nor answers for
// them: the caller follows the roles.
//
// The package is written by hand: no kept Go library has both versions.
package vrrp

import "net/netip"

// Protocol is the number of the IP protocol.
const Protocol = 112

var (
	group4 = netip.MustParseAddr("224.0.0.18")
	group6 = netip.MustParseAddr("ff02::12")
)

// group returns the multicast group of a family.
func group(ipv6 bool) netip.Addr {
	if ipv6 {
		return group6
	}
	return group4
}
