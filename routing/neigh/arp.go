// Package neigh resolves addresses of this host's neighbours by ARP.
package neigh

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"
)

// Resolve sends an ARP request for the IPv4 address a on a link. from, an address of this host, is the sender's
// address. Resolve returns the MAC addresses that answer before wait is over, each one once. A link without MAC
// addresses or broadcast has no neighbours to ask. Resolve needs CAP_NET_RAW.
func Resolve(link string, a, from netip.Addr, wait time.Duration) (answers []net.HardwareAddr, err error) {
	dev, err := net.InterfaceByName(link)
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", link, err)
	}
	if len(dev.HardwareAddr) != macLen || dev.Flags&net.FlagBroadcast == 0 {
		return nil, nil
	}
	c, err := packet.Listen(dev, packet.Datagram, unix.ETH_P_ARP, nil)
	if err != nil {
		return nil, fmt.Errorf("packet socket on %s: %w: run as root, or with CAP_NET_RAW", link, err)
	}
	defer c.Close()
	broadcast := &packet.Addr{HardwareAddr: bytes.Repeat([]byte{0xff}, macLen)}
	if _, err := c.WriteTo(arpRequest(dev.HardwareAddr, from, a), broadcast); err != nil {
		return nil, fmt.Errorf("ask on %s for %s: %w", link, a, err)
	}
	if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return nil, err
	}
	buf := make([]byte, 128)
	for seen := map[string]bool{}; ; {
		n, _, err := c.ReadFrom(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return answers, nil
		}
		if err != nil {
			return answers, fmt.Errorf("answers on %s for %s: %w", link, a, err)
		}
		if mac, ok := arpAnswer(buf[:n], a); ok && !seen[mac.String()] && !bytes.Equal(mac, dev.HardwareAddr) {
			seen[mac.String()] = true
			answers = append(answers, mac)
		}
	}
}

// Fields of an ARP packet for IPv4 over Ethernet (RFC 826). It is built and parsed by hand: mdlayher/arp has no release
// and no commit since 2022.
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
	macLen       = 6
	arpLen       = 28
	opcodeAsk    = 1
	opcodeAnswer = 2
)

func arpRequest(mac net.HardwareAddr, from, a netip.Addr) []byte {
	b := []byte{0, 1, 0x08, 0x00, macLen, 4, 0, opcodeAsk}
	b = append(b, mac...)
	b = append(b, from.AsSlice()...)
	b = append(b, make([]byte, macLen)...)
	return append(b, a.AsSlice()...)
}

// arpAnswer returns the sender's MAC address if b is a reply from the owner of a.
func arpAnswer(b []byte, a netip.Addr) (net.HardwareAddr, bool) {
	if len(b) < arpLen || binary.BigEndian.Uint16(b[2:]) != 0x0800 || b[4] != macLen || b[5] != 4 ||
		b[7] != opcodeAnswer || netip.AddrFrom4([4]byte(b[14:18])) != a {
		return nil, false
	}
	return bytes.Clone(b[8:14]), true
}
