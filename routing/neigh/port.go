package neigh

import (
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"time"

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
	a.groups = newPortGroups(port, local)
	return a
}

// Receive takes the payload of a frame of an Answerer's port. It reports whether the payload is valid ARP, neighbour
// discovery or a query for multicast listeners, within the bounds of pace. Any number of goroutines may call it. After
// Close it answers nothing.
func (a *Answerer) Receive(src, dst [6]byte, etherType uint16, payload []byte) bool {
	g := a.groups.(*portGroups)
	if etherType == unix.ETH_P_IPV6 && len(payload) > 6 && payload[6] == hopByHop {
		return isQuery(payload) && g.asked()
	}
	t := a.table.Load()
	r := received{from: src, unicast: dst[0]&1 == 0}
	for index := range t.devices { // one or none
		r.index = index
	}
	l, v := a.arp.(*portLink), t.arp
	if etherType == unix.ETH_P_IPV6 {
		l, v = a.nd.(*portLink), t.nd
	}
	is := v(r, payload)
	if !is.valid || is.answer == nil && !is.claimed.IsValid() || l.isClosed() {
		return is.valid
	}
	if !l.takes(time.Now()) {
		return false
	}
	a.act(l, t, r, is)
	return true
}

// portLink is the part of a port for one protocol. Frames come in by Answerer.Receive.
type portLink struct {
	port      *SharedPort
	etherType uint16
	closed    chan struct{}
	end       func()

	mu   sync.Mutex
	pace pace // of frames that concern the addresses
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

// takes reports whether a frame that concerns the addresses is within the bounds of pace.
func (l *portLink) takes(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.pace.within(now)
}

func (l *portLink) send(_ int, to MAC, b []byte) error { return l.port.SendFrame(to, l.etherType, b) }

func (l *portLink) close() error {
	l.end()
	return nil
}

// LinkLocal returns the link-local IPv6 address of a MAC address: RFC 4291, appendix A.
func LinkLocal(mac [6]byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe,
		13: mac[3], 14: mac[4], 15: mac[5]})
}
