package routing

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// WhoHas asks the neighbours by a link who has the IPv4 address a, in the name of this host's address from, and returns
// the MAC addresses from which answers come until wait is over, each once. The link is one with MAC addresses; another
// has no neighbours to ask. It needs CAP_NET_RAW.
func WhoHas(link string, a, from netip.Addr, wait time.Duration) (answers []net.HardwareAddr, err error) {
	dev, err := net.InterfaceByName(link)
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", link, err)
	}
	if len(dev.HardwareAddr) != macLen || dev.Flags&net.FlagBroadcast == 0 {
		return nil, nil
	}
	const arp = unix.ETH_P_ARP>>8 | unix.ETH_P_ARP&0xff<<8 // in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w: run as root, or with CAP_NET_RAW", err)
	}
	f := os.NewFile(uintptr(fd), "arp")
	defer f.Close()
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: arp, Ifindex: dev.Index}); err != nil {
		return nil, fmt.Errorf("packet socket on %s: %w", link, err)
	}
	to := &unix.SockaddrLinklayer{Protocol: arp, Ifindex: dev.Index, Halen: macLen}
	copy(to.Addr[:], bytes.Repeat([]byte{0xff}, macLen))
	if err := unix.Sendto(fd, arpRequest(dev.HardwareAddr, from, a), 0, to); err != nil {
		return nil, fmt.Errorf("ask by %s who has %s: %w", link, a, err)
	}
	if err := f.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return nil, err
	}
	buf := make([]byte, 128)
	for seen := map[string]bool{}; ; {
		n, err := f.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return answers, nil
		}
		if err != nil {
			return answers, fmt.Errorf("answers by %s to who has %s: %w", link, a, err)
		}
		if mac, ok := arpAnswer(buf[:n], a); ok && !seen[mac.String()] && !bytes.Equal(mac, dev.HardwareAddr) {
			seen[mac.String()] = true
			answers = append(answers, mac)
		}
	}
}

// An ARP packet for IPv4 over Ethernet (RFC 826):
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-------------------------------+-------------------------------+
//	|       hardware space: 1       |     protocol space: 0x0800    |  0
//	+---------------+---------------+-------------------------------+
//	|  MAC length 6 | IP length 4   | opcode: 1 request, 2 reply    |  4
//	+---------------+---------------+-------------------------------+
//	|      sender's MAC (6), sender's IP (4), target's MAC (6), target's IP (4)      8
const (
	macLen  = 6
	arpLen  = 28
	arpAsk  = 1
	arpTell = 2
)

func arpRequest(mac net.HardwareAddr, from, a netip.Addr) []byte {
	b := []byte{0, 1, 0x08, 0x00, macLen, 4, 0, arpAsk}
	b = append(b, mac...)
	b = append(b, from.AsSlice()...)
	b = append(b, make([]byte, macLen)...)
	return append(b, a.AsSlice()...)
}

// arpAnswer is who says in b that he has a.
func arpAnswer(b []byte, a netip.Addr) (net.HardwareAddr, bool) {
	if len(b) < arpLen || binary.BigEndian.Uint16(b[2:]) != 0x0800 || b[4] != macLen || b[5] != 4 || b[7] != arpTell ||
		netip.AddrFrom4([4]byte(b[14:18])) != a {
		return nil, false
	}
	return bytes.Clone(b[8:14]), true
}
