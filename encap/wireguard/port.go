package wireguard

import (
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"vstun/encap/egress"
	"vstun/encap/packet"
)

// Port sends packets to peers. It is an egress.Port, for packets whose IP header is the tunnel's. One goroutine uses
// it.
type Port struct {
	device *Device
	to     netip.Addr // of the last packet
	errno  unix.Errno // why it cannot be sent
	routes *map[netip.Addr]*route
}

// Sender returns a port for one goroutine.
func (d *Device) Sender() *Port { return &Port{device: d} }

// Send takes the first packets of out for encryption, and returns how many it took. Their IPv4 headers get a checksum.
// It waits while too many packets wait. If the first packet cannot be sent, it returns 0 and an unwrapped unix.Errno,
// as the kernel's WireGuard does: ENOKEY if no peer has its destination, EDESTADDRREQ if the peer's endpoint is not
// known, EMSGSIZE for a packet that no datagram can hold. It returns os.ErrClosed after Close.
func (p *Port) Send(out []egress.Outgoing) (int, error) {
	p.routes, p.to = p.device.routes.Load(), netip.Addr{}
	q := p.device.memory.out
	q.lock()
	defer q.unlock()
	for i := range out {
		o := &out[i]
		if errno := p.check(o); errno != 0 {
			if i > 0 {
				return i, nil // the next call returns it
			}
			return 0, errno
		}
		room := q.add(o.Len())
		if room == nil {
			return i, os.ErrClosed
		}
		copy(room[copy(room, o.Head):], o.Body)
		if ip := packet.IPv4(room); ip.Version() == 4 {
			ip.SetChecksum()
		}
	}
	return len(out), nil
}

// check returns why o cannot be sent, or 0.
func (p *Port) check(o *egress.Outgoing) unix.Errno {
	if o.Len() > maxPacket {
		return unix.EMSGSIZE
	}
	if o.To.Dst != p.to {
		p.to, p.errno = o.To.Dst, 0
		if r := (*p.routes)[p.to]; r == nil {
			p.errno = unix.ENOKEY
		} else if !r.known.Load() {
			p.errno = unix.EDESTADDRREQ
		}
	}
	return p.errno
}
