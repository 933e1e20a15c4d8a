package query

import (
	"errors"
	"fmt"
	"io/fs"
	"net"

	"golang.org/x/sys/unix"

	"vstun/routing/kernel"
)

// TracksStrictly reports whether this host tracks connections, and takes TCP segments outside the window that it has
// seen for invalid (Documentation/networking/nf_conntrack-sysctl.rst, nf_conntrack_tcp_be_liberal). Then a connection
// must not be seen in parts. The kernel tracks in a network namespace only while a rule there needs it. No count of
// tracked connections says nothing, so a datagram to this host's own loopback address tries it.
func TracksStrictly() (bool, error) {
	liberal, err := kernel.ReadSysctl("net/netfilter/nf_conntrack_tcp_be_liberal")
	if errors.Is(err, fs.ErrNotExist) { // no connection tracking
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("ask for connection tracking: %w", err)
	}
	if liberal != "0" {
		return false, nil
	}
	tracks, err := anyTracked()
	for _, own := range []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback} {
		if tracks || err != nil {
			break
		}
		if refused := sendToSelf(own); refused { // by a firewall, which may track
			return true, nil
		}
		tracks, err = anyTracked()
	}
	return tracks, err
}

// anyTracked reports whether the kernel has tracked connections in this network namespace.
func anyTracked() (bool, error) {
	n, err := kernel.ReadSysctl("net/netfilter/nf_conntrack_count")
	if err != nil {
		return false, fmt.Errorf("ask for tracked connections: %w", err)
	}
	return n != "0", nil
}

// sendToSelf sends an empty datagram from a socket at a loopback address to itself. refused reports whether a firewall
// forbids it. A host may have no such address.
func sendToSelf(own net.IP) (refused bool) {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: own})
	if err != nil {
		return false
	}
	defer conn.Close()
	_, err = conn.WriteTo(nil, conn.LocalAddr())
	return errors.Is(err, unix.EPERM)
}
