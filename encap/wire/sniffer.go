package wire

import (
	"fmt"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"vstun/encap/packet"
	"vstun/encap/wire/pollfd"
)

// Sniffer receives copies of the packets of one family that come in by any device, before rp_filter and the firewall
// (packet(7)). The host gets the packets, too. One goroutine reads from it.
type Sniffer struct{ fd *pollfd.FD }

// SnifferFilter selects packets of one IP protocol: all, or, if Last is not 0, those to the ports from First to Last.
type SnifferFilter struct {
	Protocol    uint8
	First, Last uint16
}

// sniffLen is the number of bytes that a Sniffer reads of a packet.
const sniffLen = 512

// NewSniffer opens a sniffer for the packets of all filters. It needs CAP_NET_RAW.
func NewSniffer(over6 bool, filters ...SnifferFilter) (*Sniffer, error) {
	protocol := uint16(unix.ETH_P_IP)
	if over6 {
		protocol = unix.ETH_P_IPV6
	}
	// The filter is set before the protocol, so the socket never receives an unfiltered packet.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", advise(err))
	}
	setBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, recvBuffer)
	if err = filter(fd, sniffProgram(over6, filters)); err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol<<8 | protocol>>8})
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	f, err := pollfd.New(fd)
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", advise(err))
	}
	return &Sniffer{f}, nil
}

// sniffProgram is the socket filter for packets that begin with an IP header.
func sniffProgram(over6 bool, filters []SnifferFilter) (program []bpf.Instruction) {
	protocolAt := uint32(9)
	var ports bpf.Instruction = bpf.LoadMemShift{Off: 0} // X = length of the IP header
	if over6 {
		protocolAt, ports = 6, bpf.LoadConstant{Dst: bpf.RegX, Val: packet.IPv6HeaderLen}
	}
	for _, f := range filters {
		take := []bpf.Instruction{bpf.RetConstant{Val: sniffLen}}
		if f.Last > 0 {
			take = []bpf.Instruction{
				ports,
				bpf.LoadIndirect{Off: 2, Size: 2},
				bpf.JumpIf{Cond: bpf.JumpLessThan, Val: uint32(f.First), SkipTrue: 2},
				bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: uint32(f.Last), SkipTrue: 1},
				take[0],
			}
		}
		program = append(program, bpf.LoadAbsolute{Off: protocolAt, Size: 1},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(f.Protocol), SkipTrue: uint8(len(take))})
		program = append(program, take...)
	}
	return append(program, bpf.RetConstant{Val: 0})
}

// Read waits for a packet and puts its front into b. It returns how many bytes that is, or os.ErrClosed after Close.
func (t *Sniffer) Read(b []byte) (int, error) {
	fd, err := t.fd.Acquire()
	if err != nil {
		return 0, err
	}
	defer t.fd.Release()
	for {
		n, _, err := unix.Recvfrom(int(fd), b, unix.MSG_DONTWAIT)
		switch err {
		case nil:
			return n, nil
		case unix.EINTR, unix.ENETDOWN: // a device went down; other devices may still be up
		case unix.EAGAIN:
			if err := t.fd.Wait(unix.POLLIN); err != nil {
				return 0, err
			}
		default:
			return 0, fmt.Errorf("packet socket: %w", err)
		}
	}
}

// Close closes the socket; a Read that waits returns.
func (t *Sniffer) Close() error { return t.fd.Close() }
