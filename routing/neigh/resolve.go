package neigh

import (
	"bytes"
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
	if _, err := c.WriteTo(arpRequest(MAC(dev.HardwareAddr), from, a), broadcast); err != nil {
		return nil, fmt.Errorf("ask on %s for %s: %w", link, a, err)
	}
	if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return nil, err
	}
	buf := make([]byte, 128)
	for seen := map[MAC]bool{}; ; {
		n, _, err := c.ReadFrom(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return answers, nil
		}
		if err != nil {
			return answers, fmt.Errorf("answers on %s for %s: %w", link, a, err)
		}
		p, ok := parseARP(buf[:n])
		if ok && p.op == arpReply && p.sender == a && !seen[p.senderMAC] && p.senderMAC != MAC(dev.HardwareAddr) {
			seen[p.senderMAC] = true
			answers = append(answers, p.senderMAC[:])
		}
	}
}
