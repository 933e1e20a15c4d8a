package wireguard

import (
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/device"

	"vstun/encap/egress"
	"vstun/encap/packet"
)

// Port sends packets to peers. It is an egress.Port, for packets whose IP header is the tunnel's. One goroutine uses
// it.
type Port struct {
	device *Device
	to     netip.Addr // of the last packet
	errno  unix.Errno // why it cannot be sent
	mtu    int        // of its tunnel; 0: unknown
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
		room := q.add(o.Len() + p.padding(o.Len()))
		if room == nil {
			return i, os.ErrClosed
		}
		n := copy(room, o.Head)
		clear(room[n+copy(room[n:], o.Body):])
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
		r := (*p.routes)[p.to]
		switch {
		case r == nil:
			p.errno = unix.ENOKEY
		case !r.known.Load():
			p.errno = unix.EDESTADDRREQ
		default:
			p.mtu = int(r.mtu.Load())
		}
	}
	return p.errno
}

// padding returns the number of bytes that hide the length of a packet of n bytes, to the peer of the last check: up to
// a multiple of 16, but not beyond the tunnel's MTU (WireGuard's paper, section 5.4.6).
func (p *Port) padding(n int) int {
	padded := (n + device.PaddingMultiple - 1) / device.PaddingMultiple * device.PaddingMultiple
	if p.mtu > 0 {
		padded = min(padded, max(p.mtu, n))
	}
	return padded - n
}
