// Package ping sends ICMP echo requests, by sockets that are opened before the program gives up CAP_NET_RAW.
package ping

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"vstun/encap/packet"
)

// Pinger sends ICMP echo requests of both families and matches their answers.
type Pinger struct {
	four, six *icmp.PacketConn // six is nil where the kernel has no IPv6
	id        atomic.Uint32
	readers   sync.WaitGroup

	mu      sync.Mutex
	waiting map[token]waiter
}

// token is the data of a request and of its answer. It identifies the request: identifiers have only 16 bits and are
// reused.
type token [16]byte

type waiter struct {
	from     netip.Addr
	answered chan struct{}
}

// NewPinger opens the sockets, which needs CAP_NET_RAW.
func NewPinger() (*Pinger, error) {
	p := &Pinger{waiting: map[token]waiter{}}
	var err error
	if p.four, err = icmp.ListenPacket("ip4:icmp", "0.0.0.0"); err != nil {
		return nil, fmt.Errorf("socket for pings: %w", err)
	}
	var only4 ipv4.ICMPFilter
	only4.SetAll(true)
	only4.Accept(ipv4.ICMPTypeEchoReply)
	err = p.four.IPv4PacketConn().SetICMPFilter(&only4)
	if err == nil {
		p.six, err = icmp.ListenPacket("ip6:ipv6-icmp", "::")
		if errors.Is(err, unix.EAFNOSUPPORT) {
			p.six, err = nil, nil
		}
	}
	if err == nil && p.six != nil {
		var only6 ipv6.ICMPFilter
		only6.SetAll(true)
		only6.Accept(ipv6.ICMPTypeEchoReply)
		err = p.six.IPv6PacketConn().SetICMPFilter(&only6)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("socket for pings: %w", err), p.Close())
	}
	p.readers.Go(func() { p.read(p.four, packet.ProtoICMP) })
	if p.six != nil {
		p.readers.Go(func() { p.read(p.six, packet.ProtoICMPv6) })
	}
	return p, nil
}

// Close closes the sockets. Ping must not be called any more.
func (p *Pinger) Close() error {
	err := p.four.Close()
	if p.six != nil {
		err = errors.Join(err, p.six.Close())
	}
	p.readers.Wait()
	return err
}

// From is how an echo request leaves this host.
type From struct {
	Source netip.Addr // the zero Addr: the kernel chooses
	Device int        // interface index of the device to leave by; 0: by the route
	ID     uint16     // the request's identifier; 0: any
}

// Ping sends an echo request to a by the machine's own routes and waits for the answer.
func (p *Pinger) Ping(ctx context.Context, a netip.Addr) error { return p.PingFrom(ctx, a, From{}) }

// NextID returns an identifier for a request, never 0.
func (p *Pinger) NextID() uint16 {
	for {
		if id := uint16(p.id.Add(1)); id != 0 {
			return id
		}
	}
}

// PingFrom sends an echo request to an address and waits for the answer.
func (p *Pinger) PingFrom(ctx context.Context, to netip.Addr, from From) error {
	conn, kind := p.four, icmp.Type(ipv4.ICMPTypeEcho)
	if to.Is6() {
		conn, kind = p.six, ipv6.ICMPTypeEchoRequest
	}
	if conn == nil {
		return errors.New("this kernel has no IPv6")
	}
	if from.ID == 0 {
		from.ID = p.NextID()
	}
	var t token
	_, _ = rand.Read(t[:]) // it never fails
	w := waiter{to, make(chan struct{})}
	p.mu.Lock()
	p.waiting[t] = w
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.waiting, t)
		p.mu.Unlock()
	}()
	// the kernel computes ICMPv6's checksum
	b, err := (&icmp.Message{Type: kind, Body: &icmp.Echo{ID: int(from.ID), Seq: 1, Data: t[:]}}).Marshal(nil)
	if err != nil {
		return err
	}
	dst := &net.IPAddr{IP: to.AsSlice()}
	var source net.IP
	if from.Source.IsValid() {
		source = from.Source.AsSlice()
	}
	switch {
	case source == nil && from.Device == 0:
		_, err = conn.WriteTo(b, dst)
	case to.Is6():
		_, err = conn.IPv6PacketConn().WriteTo(b, &ipv6.ControlMessage{Src: source, IfIndex: from.Device}, dst)
	default:
		_, err = conn.IPv4PacketConn().WriteTo(b, &ipv4.ControlMessage{Src: source, IfIndex: from.Device}, dst)
	}
	if err != nil {
		return err
	}
	select {
	case <-w.answered:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// readAgain is the pause after a failed read.
const readAgain = 100 * time.Millisecond

// read matches the answers on conn to their requests until conn is closed.
func (p *Pinger) read(conn *icmp.PacketConn, proto int) {
	buf := make([]byte, 256) // longer than any answer to a token
	for {
		n, from, err := conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(readAgain) // rare, and callers of ping have a deadline
			continue
		}
		m, err := icmp.ParseMessage(proto, buf[:n])
		if err != nil {
			continue
		}
		echo, ok := m.Body.(*icmp.Echo)
		if !ok || len(echo.Data) != len(token{}) {
			continue
		}
		p.answer(token(echo.Data), from)
	}
}

// answer wakes the caller that waits for t.
func (p *Pinger) answer(t token, from net.Addr) {
	ip, ok := from.(*net.IPAddr)
	if !ok {
		return
	}
	a, _ := netip.AddrFromSlice(ip.IP)
	p.mu.Lock()
	defer p.mu.Unlock()
	if w, ok := p.waiting[t]; ok && w.from == a.Unmap() {
		delete(p.waiting, t)
		close(w.answered)
	}
}
