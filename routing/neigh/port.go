package neigh

import (
	"encoding/binary"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Port is a port of an Ethernet network that the kernel's ARP and neighbour discovery have no part in, such as a TAP
// device. Its frames come in by Receive of an Answerer and a Resolver.
type Port interface {
	// SendFrame sends a frame from the port's MAC address. One goroutine calls it at a time.
	SendFrame(to [6]byte, etherType uint16, payload []byte) error
}

// SharedPort makes a Port safe for several goroutines.
type SharedPort struct {
	mu   sync.Mutex
	port Port
}

// NewSharedPort returns a SharedPort for port.
func NewSharedPort(port Port) *SharedPort { return &SharedPort{port: port} }

// SendFrame calls the port's SendFrame.
func (p *SharedPort) SendFrame(to [6]byte, etherType uint16, payload []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.port.SendFrame(to, etherType, payload)
}

// OpenOn returns an Answerer for a port of an Ethernet network. Set gets one Device, the port's. Its MAC is the port's,
// and its Addrs include local, the link-local address from which the port reports its multicast groups.
func OpenOn(port *SharedPort, local netip.Addr, log *slog.Logger) *Answerer {
	a := newAnswerer(log)
	a.arp, a.nd = newPortLink(port, unix.ETH_P_ARP), newPortLink(port, unix.ETH_P_IPV6)
	a.groups = &portGroups{port: port, local: local}
	return a
}

// Receive takes the payload of a frame of an Answerer's port. Any number of goroutines may call it. After Close it does
// nothing.
func (a *Answerer) Receive(src, dst [6]byte, etherType uint16, payload []byte) {
	if l, ok := a.arp.(*portLink); ok && l.isClosed() {
		return
	}
	t := a.table.Load()
	for index := range t.devices {
		r := received{index, src, dst[0]&1 == 0}
		if etherType == unix.ETH_P_ARP {
			a.act(a.arp, t, r, t.arp(r, payload))
			continue
		}
		a.act(a.nd, t, r, t.nd(r, payload))
		if g, ok := a.groups.(*portGroups); ok && isQuery(payload) {
			g.report()
		}
	}
}

// portLink is the part of a port for one protocol. Frames come in by Answerer.Receive.
type portLink struct {
	port      *SharedPort
	etherType uint16
	closed    chan struct{}
	end       func()
}

func newPortLink(port *SharedPort, etherType uint16) *portLink {
	l := &portLink{port: port, etherType: etherType, closed: make(chan struct{})}
	l.end = sync.OnceFunc(func() { close(l.closed) })
	return l
}

func (l *portLink) receive() (received, []byte, error) {
	<-l.closed
	return received{}, nil, os.ErrClosed
}

func (l *portLink) isClosed() bool {
	select {
	case <-l.closed:
		return true
	default:
		return false
	}
}

func (l *portLink) send(_ int, to MAC, b []byte) error { return l.port.SendFrame(to, l.etherType, b) }

func (l *portLink) close() error {
	l.end()
	return nil
}

// portGroups reports the port's multicast groups to the network's switches, by version 1 of MLD (RFC 2710), which those
// of version 2 understand. Without a report, a switch that snoops on MLD keeps solicitations from the port.
type portGroups struct {
	port  *SharedPort
	local netip.Addr

	mu sync.Mutex
	in map[place]bool
}

// reports is the number of times that a new group is reported: RFC 2710, section 7.1.
const reports = 2

func (g *portGroups) set(want map[place]bool, anew func(index int) bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	var errs []error
	for p := range want {
		if !g.in[p] || anew(p.index) {
			for range reports {
				errs = append(errs, g.send(p.addr))
			}
		}
	}
	g.in = want
	err := errors.Join(errs...)
	if errors.Is(err, unix.EIO) { // the device is down: its next state brings another call
		return nil
	}
	return err
}

// report reports all groups.
func (g *portGroups) report() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for p := range g.in {
		_ = g.send(p.addr) // the next query asks again
	}
}

func (g *portGroups) send(group netip.Addr) error {
	return g.port.SendFrame(groupMAC(group), unix.ETH_P_IPV6, mldReport(g.local, group))
}

func (g *portGroups) close() error { return nil }

// Messages of MLD have a hop-by-hop header with the option "router alert" (RFC 2711) in front, and a hop limit of 1.
const (
	mldHead   = ipv6Len + 8
	mldLen    = mldHead + 24
	mldQuery  = 130
	mldAnswer = 131
)

// isQuery reports whether b is a query for multicast listeners.
func isQuery(b []byte) bool {
	return len(b) >= mldLen && b[6] == 0 && b[40] == icmpv6 && b[mldHead] == mldQuery
}

// mldReport returns the report that the host with the link-local address from is in a group (RFC 2710, section 3).
func mldReport(from, group netip.Addr) []byte {
	b := make([]byte, mldLen)
	b[0], b[7] = 0x60, 1
	binary.BigEndian.PutUint16(b[4:], mldLen-ipv6Len)
	copy(b[8:], from.AsSlice())
	copy(b[24:], group.AsSlice())
	copy(b[ipv6Len:], []byte{icmpv6, 0, 5, 2, 0, 0, 1, 0}) // router alert, and padding
	b[mldHead] = mldAnswer
	copy(b[mldHead+8:], group.AsSlice())
	message := append(append(make([]byte, 0, mldLen-8), b[:ipv6Len]...), b[mldHead:]...) // for the pseudo-header
	binary.BigEndian.PutUint16(b[mldHead+2:], ndChecksum(message))
	return b
}

// LinkLocal returns the link-local IPv6 address of a MAC address: RFC 4291, appendix A.
func LinkLocal(mac [6]byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe,
		13: mac[3], 14: mac[4], 15: mac[5]})
}
