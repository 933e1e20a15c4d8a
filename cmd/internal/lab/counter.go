package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Direction is the direction of a frame at the host with the counter.
type Direction int

// Directions of a Filter.
const (
	Both Direction = iota
	In             // received on the link
	Out            // sent on the link
)

// Filter selects the frames to count: they match all fields that are not zero. The addresses must be of one family,
// which selects the IP version; without an address it is IPv4.
type Filter struct {
	Source      netip.Addr
	Destination netip.Addr
	Protocol    uint8 // IPv4 protocol, or the next header after IPv6's fixed one: 4 IPIP, 6 TCP, 17 UDP, …
	Direction   Direction
}

// Counter counts frames on one link. The kernel counts, so no frame is missed.
type Counter struct {
	mu    sync.Mutex
	fd    int // -1 once closed
	total uint64
}

// Count starts to count the frames on a link of the host ("eth0"). They are counted as packet sockets see them
// (packet(7)): a GSO packet of segmentation offload is one frame, and the filter looks at the outermost IP header.
func (h *Host) Count(link string, filter Filter) (*Counter, error) {
	c := &Counter{}
	err := h.Do(func() error {
		program, err := filter.program()
		if err != nil {
			return err
		}
		dev, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		c.fd, err = openSocket(dev.Index, program)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: count on %s: %w", h.Name, link, err)
	}
	return c, nil
}

// Packets returns the number of frames since Count. It must be called at least once in 2³² frames, the size of the
// kernel's counter. After Close it returns os.ErrClosed, with the number at that time.
func (c *Counter) Packets() (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.packets()
}

func (c *Counter) packets() (uint64, error) {
	if c.fd < 0 {
		return c.total, os.ErrClosed
	}
	// Reading sets the kernel's counters to 0. Packets includes frames that were dropped because the socket was full.
	stats, err := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return c.total, fmt.Errorf("read a counter: %w", err)
	}
	c.total += uint64(stats.Packets)
	return c.total, nil
}

// Close ends the counting. Closing again does nothing.
func (c *Counter) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return nil
	}
	_, err := c.packets()
	err = errors.Join(err, unix.Close(c.fd))
	c.fd = -1
	return err
}

// openSocket opens a packet socket in this thread's namespace. It is never read: it fills at once, and from then on the
// kernel only counts.
func openSocket(index int, program []bpf.RawInstruction) (fd int, err error) {
	// SOCK_DGRAM lets filters see the packet from its IP header on, on links of every type. Protocol 0 receives nothing
	// until bind, when the filter is in place.
	fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("packet socket: %w", err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 0); err != nil {
		return -1, fmt.Errorf("shrink the packet socket: %w", err)
	}
	code := make([]unix.SockFilter, len(program))
	for i, in := range program {
		code[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	prog := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog); err != nil {
		return -1, fmt.Errorf("attach the filter: %w", err)
	}
	// ETH_P_ALL in network byte order: no other protocol shows sent frames, too.
	all := unix.SockaddrLinklayer{Protocol: unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8, Ifindex: index}
	if err := unix.Bind(fd, &all); err != nil {
		return -1, fmt.Errorf("bind the packet socket: %w", err)
	}
	return fd, nil
}

// program translates the filter to classic BPF: a list of comparisons. The first that fails rejects the frame.
func (f Filter) program() ([]bpf.RawInstruction, error) {
	const outgoing = 4 // PACKET_OUTGOING, linux/if_packet.h
	var code []bpf.Instruction
	check := func(load bpf.Instruction, test bpf.JumpTest, value uint32) {
		code = append(code, load, bpf.JumpIf{Cond: test, Val: value, SkipTrue: 1}, bpf.RetConstant{Val: 0})
	}
	six := f.Source.Is6() || f.Destination.Is6()
	if six && (f.Source.Is4() || f.Destination.Is4()) {
		return nil, fmt.Errorf("filter: source %s and destination %s are of different families", f.Source,
			f.Destination)
	}
	// Offsets in the IPv4 header (RFC 791, section 3.1) and the IPv6 header (RFC 8200, section 3).
	ethertype, protocol, source, destination := uint32(unix.ETH_P_IP), uint32(9), uint32(12), uint32(16)
	if six {
		ethertype, protocol, source, destination = unix.ETH_P_IPV6, 6, 8, 24
	}
	address := func(offset uint32, addr netip.Addr) {
		for b := addr.AsSlice(); len(b) > 0; b, offset = b[4:], offset+4 {
			word := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
			check(bpf.LoadAbsolute{Off: offset, Size: 4}, bpf.JumpEqual, word)
		}
	}
	check(bpf.LoadExtension{Num: bpf.ExtProto}, bpf.JumpEqual, ethertype)
	switch f.Direction {
	case Both:
	case In:
		check(bpf.LoadExtension{Num: bpf.ExtType}, bpf.JumpNotEqual, outgoing)
	case Out:
		check(bpf.LoadExtension{Num: bpf.ExtType}, bpf.JumpEqual, outgoing)
	default:
		return nil, fmt.Errorf("filter: no direction %d: use Both, In or Out", f.Direction)
	}
	address(source, f.Source)
	address(destination, f.Destination)
	if f.Protocol != 0 {
		check(bpf.LoadAbsolute{Off: protocol, Size: 1}, bpf.JumpEqual, uint32(f.Protocol))
	}
	return bpf.Assemble(append(code, bpf.RetConstant{Val: 1}))
}
