package query

import (
	"errors"
	"fmt"
	"io/fs"
	"net"

	"vstun/routing/kernel"
)

// TracksConnections reports whether this host tracks connections. The kernel does so in a network namespace only while
// a rule there needs it. A count of 0 proves nothing, so a datagram from this host's loopback address to itself shows
// whether it is tracked.
func TracksConnections() (bool, error) {
	tracks, err := HasTracked()
	for _, own := range []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback} {
		if tracks || err != nil {
			break
		}
		sendToSelf(own)
		tracks, err = HasTracked()
	}
	return tracks, err
}

// HasTracked reports whether the kernel has tracked connections in this network namespace
// (Documentation/networking/nf_conntrack-sysctl.rst, nf_conntrack_count).
func HasTracked() (bool, error) {
	n, err := kernel.ReadSysctl("net/netfilter/nf_conntrack_count")
	if errors.Is(err, fs.ErrNotExist) { // no connection tracking
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("ask for tracked connections: %w", err)
	}
	return n != "0", nil
}

// sendToSelf sends an empty datagram from a socket at a loopback address to itself, if this host has that address.
func sendToSelf(own net.IP) {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: own})
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = conn.WriteTo(nil, conn.LocalAddr())
}
