package method

import (
	"fmt"
	"net/netip"

	"vstun/encap/egress"
	"vstun/encap/packet"
)

// dr is the method DR (Linux ip_vs_xmit.c, ip_vs_dr_xmit). The kernel has lowered the packet's TTL on its way into the
// TUN device.
type dr struct{ realserver egress.Peer }

func newDR(address netip.Addr, c Config) (Method, error) {
	if c.Link.Device == 0 {
		return nil, fmt.Errorf("realserver %v: no device of this host leads to it", address)
	}
	return &dr{egress.Peer{Dst: address, Device: c.Link.Device, MAC: c.Link.MAC, OwnMAC: c.Link.OwnMAC}}, nil
}

func (d *dr) Kind() Kind { return DR }

func (d *dr) Overhead() int { return 0 }

func (d *dr) Out(*packet.Buf, *packet.Info, uint16) egress.Hop {
	return egress.Hop{To: &d.realserver, Kind: egress.Link}
}

func (d *dr) Seal(packet.Segment) {}

func (d *dr) Quoted([]byte, int) ([]byte, bool) { return nil, false }
