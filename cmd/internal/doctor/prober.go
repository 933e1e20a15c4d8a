package doctor

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vstun/encap"
	"vstun/encap/egress"
	"vstun/encap/packet"
	"vstun/encap/query"
	"vstun/encap/wire"
)

// probe is a packet that is sent up to three times, until it is answered.
type probe struct {
	packet []byte // as it leaves this host
	from   netip.Addr
	number uint32 // of an echo request
	port   uint16 // source port of a SYN; 0: an echo request, or a question
	seq    uint32 // of a SYN
	nonce  uint64 // of a question; 0: none

	via    netip.Addr // neighbour to send it to; the zero Addr: the route's next hop
	device int        // index of the device of via

	answered bool
	back     bool         // an echo request has returned to this host
	flags    uint8        // of the answer to a SYN
	answer   query.Answer // to a question
	err      error
}

// icmpError is an ICMP error about a packet of this host.
type icmpError struct {
	from       netip.Addr
	kind, code uint8
	mtu        int // the MTU in the error
	size       int // of the quoted packet
}

// flowKey identifies the flow of a packet that an ICMP error quotes: its destination, IP protocol and UDP port.
type flowKey struct {
	to       netip.Addr
	protocol uint8
	port     uint16 // of UDP
}

// synKey identifies the answer to a SYN. SYNs to many realservers share a port; the sequence number distinguishes their
// answers.
type synKey struct {
	port uint16
	ack  uint32
}

func (s *probe) key() synKey { return synKey{s.port, s.seq + 1} }

// prober sends probes and receives their answers before this host's own filters can drop them: while a director runs, a
// strict rp_filter drops answers from a VIP.
type prober struct {
	cookie   cookie
	sendMu   sync.Mutex
	sender   *wire.Sender
	sniffers []*wire.Sniffer
	sinks    []*wire.Sink    // keep the kernel from responding to the answers
	askPorts map[bool]uint16 // source port of questions, by whether their answers come over IPv6
	readers  sync.WaitGroup

	mu         sync.Mutex
	next       uint32
	echoes     map[uint32]*probe
	syns       map[synKey]*probe
	questions  map[uint64]*probe
	icmpErrors map[flowKey][]icmpError
	ports      map[portKey]uint16 // source ports of SYNs
	arrived    chan struct{}      // closed and replaced when a packet has come
}

// portKey identifies the source port of SYNs: their source, and a number.
type portKey struct {
	source netip.Addr
	number int
}

// newProber opens the sockets. It needs CAP_NET_RAW.
func newProber() (*prober, error) {
	p := emptyProber()
	var err error
	if p.sender, err = wire.NewSender(); err != nil {
		return nil, err
	}
	for _, over6 := range []bool{false, true} {
		icmp := wire.SnifferFilter{Protocol: packet.ProtoICMP}
		if over6 {
			icmp.Protocol = packet.ProtoICMPv6
		}
		filters := []wire.SnifferFilter{icmp, {Protocol: packet.ProtoTCP, First: firstPort, Last: lastPort}}
		if port, err := p.sink(packet.ProtoUDP, unspecified(over6)); err == nil {
			p.askPorts[over6] = port
			filters = append(filters, wire.SnifferFilter{Protocol: packet.ProtoUDP, First: port, Last: port})
		} else if !over6 {
			return nil, errors.Join(err, p.close())
		}
		t, err := wire.NewSniffer(over6, filters...)
		if err != nil {
			return nil, errors.Join(err, p.close())
		}
		p.sniffers = append(p.sniffers, t)
		p.readers.Go(func() { p.listen(t, over6) })
	}
	return p, nil
}

// emptyProber returns a prober without sockets.
func emptyProber() *prober {
	return &prober{cookie: newCookie(), next: rand.Uint32(), echoes: map[uint32]*probe{}, syns: map[synKey]*probe{},
		questions: map[uint64]*probe{}, icmpErrors: map[flowKey][]icmpError{}, ports: map[portKey]uint16{},
		askPorts: map[bool]uint16{}, arrived: make(chan struct{})}
}

func unspecified(six bool) netip.Addr {
	if six {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

func (p *prober) close() error {
	err := p.sender.Close()
	for _, s := range p.sniffers {
		err = errors.Join(err, s.Close())
	}
	p.readers.Wait()
	for _, s := range p.sinks {
		err = errors.Join(err, s.Close())
	}
	return err
}

// sink binds a port of a in the range that the sniffers show. So this host's kernel sends no RST or ICMP error in
// response to a packet to it. The director's device would receive these, and count them as packets of unknown
// connections.
func (p *prober) sink(protocol uint8, a netip.Addr) (port uint16, err error) {
	const tries = 32 // other programs may have some ports
	for range tries {
		port = firstPort + uint16(rand.IntN(lastPort-firstPort+1))
		var s *wire.Sink
		if s, err = wire.NewSink(protocol, netip.AddrPortFrom(a, port)); err == nil {
			p.mu.Lock()
			p.sinks = append(p.sinks, s)
			p.mu.Unlock()
			return port, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	return 0, err
}

// synPort returns the source port of SYNs from a with this number. No host gets two SYNs with the same number for the
// same VIP and port.
func (p *prober) synPort(a netip.Addr, number int) (uint16, error) {
	key := portKey{a, number}
	p.mu.Lock()
	port := p.ports[key]
	p.mu.Unlock()
	if port != 0 {
		return port, nil
	}
	port, err := p.sink(packet.ProtoTCP, a)
	if err != nil {
		return 0, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ports[key] = port
	return port, nil
}

// echo makes a probe of an echo request. wrapped puts the request into a tunnel.
func (p *prober) echo(src, dst netip.Addr, size int, wrapped func([]byte) ([]byte, error)) (*probe, error) {
	p.mu.Lock()
	p.next++
	s := &probe{from: dst, number: p.next}
	p.mu.Unlock()
	var err error
	s.packet, err = wrapped(echoRequest(src, dst, size, s.number, p.cookie))
	return s, err
}

// syn makes a probe of a TCP SYN. Sequence numbers count up from a random one, so no two SYNs share one.
func (p *prober) syn(src, dst netip.AddrPort, wrapped func([]byte) ([]byte, error)) (*probe, error) {
	p.mu.Lock()
	p.next++
	s := &probe{from: dst.Addr(), port: src.Port(), seq: p.next}
	p.mu.Unlock()
	var err error
	s.packet, err = wrapped(segment(src, dst, s.seq, 0, packet.FlagSYN))
	return s, err
}

// question makes a probe of a question to the agent at the far end of the tunnel c, in a packet of vip's family. It
// asks for the agent's VIPs from number first on.
func (p *prober) question(c encap.Config, vip netip.Addr, first int) *probe {
	s := &probe{nonce: max(rand.Uint64(), 1)}
	port := p.askPorts[c.Destination.Is6()]
	if port == 0 {
		s.err = unix.EAFNOSUPPORT
		return s
	}
	src, dst := query.Inner(c.Source, c.Destination, vip)
	payload := query.AppendQuestion(nil, query.Question{Version: query.Version, First: uint16(first), Nonce: s.nonce})
	s.packet, s.err = wrap(c, datagram(netip.AddrPortFrom(src, port), netip.AddrPortFrom(dst, query.Port), payload))
	return s
}

// untunnelled returns the packet of a probe unchanged, without a tunnel.
func untunnelled(b []byte) ([]byte, error) { return b, nil }

// waits are the pauses of sendAll after each try. An answered probe costs only one round trip.
var waits = []time.Duration{250 * time.Millisecond, 500 * time.Millisecond, 750 * time.Millisecond}

// sendAll sends probes, unanswered ones up to three times. It returns when all are answered, or after the last wait.
// The probes no longer change after that.
func (p *prober) sendAll(ctx context.Context, probes ...*probe) {
	p.register(probes)
	defer p.unregister(probes)
	for _, wait := range waits {
		if p.settled(probes) || ctx.Err() != nil {
			return
		}
		p.sendUnanswered(probes)
		p.await(ctx, probes, wait)
	}
}

// await waits until all probes are answered, at most for the time most.
func (p *prober) await(ctx context.Context, probes []*probe, most time.Duration) {
	late := time.NewTimer(most)
	defer late.Stop()
	for {
		p.mu.Lock()
		arrived := p.arrived
		p.mu.Unlock()
		if p.settled(probes) {
			return
		}
		select {
		case <-arrived:
		case <-late.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// register lets the prober match answers to probes.
func (p *prober) register(probes []*probe) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range probes {
		switch {
		case s.nonce != 0:
			p.questions[s.nonce] = s
		case s.port != 0:
			p.syns[s.key()] = s
		default:
			p.echoes[s.number] = s
		}
	}
}

// unregister undoes register.
func (p *prober) unregister(probes []*probe) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range probes {
		switch {
		case s.nonce != 0:
			delete(p.questions, s.nonce)
		case s.port != 0:
			delete(p.syns, s.key())
		default:
			delete(p.echoes, s.number)
		}
	}
}

// settled reports whether each probe is answered or was refused by this host's kernel.
func (p *prober) settled(probes []*probe) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !slices.ContainsFunc(probes, func(s *probe) bool { return !s.answered && s.err == nil })
}

// sendUnanswered sends the probes that are not answered.
func (p *prober) sendUnanswered(probes []*probe) {
	for _, s := range probes {
		p.mu.Lock()
		done := s.answered || s.err != nil
		p.mu.Unlock()
		if !done {
			if err := p.sendProbe(s); err != nil && !errors.Is(err, unix.ENOBUFS) {
				p.mu.Lock()
				s.err = err
				p.mu.Unlock()
			}
		}
	}
}

// send sends one packet.
func (p *prober) send(b []byte) error { return p.sendProbe(&probe{packet: b}) }

// sendProbe sends the packet of a probe.
func (p *prober) sendProbe(s *probe) error {
	p.sendMu.Lock()
	defer p.sendMu.Unlock()
	if s.via.IsValid() {
		return p.sender.SendVia(s.via, s.device, s.packet)
	}
	_, err := p.sender.Send([]egress.Outgoing{egress.Packet(s.packet)})
	return err
}

// errorsAbout returns the ICMP errors about packets of a flow.
func (p *prober) errorsAbout(k flowKey) []icmpError {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.icmpErrors[k])
}

// listen handles the packets of a sniffer until it is closed.
func (p *prober) listen(t *wire.Sniffer, over6 bool) {
	buf := make([]byte, 2048)
	for {
		n, err := t.Read(buf)
		if errors.Is(err, os.ErrClosed) || err != nil {
			return
		}
		if over6 {
			p.handle6(buf[:n])
		} else {
			p.handle4(buf[:n])
		}
	}
}

func (p *prober) handle4(b []byte) {
	h := packet.IPv4(b)
	if len(b) < packet.IPv4HeaderLen || h.HeaderLen() < packet.IPv4HeaderLen ||
		len(b) < h.HeaderLen()+packet.ICMPHeaderLen {
		return
	}
	t := packet.ICMP(b[h.HeaderLen():])
	switch {
	case h.Protocol() == packet.ProtoTCP:
		p.handleTCP(h.Src(), packet.TCP(t))
	case h.Protocol() == packet.ProtoUDP:
		p.handleAnswer(packet.UDP(t))
	case t.Type() == packet.ICMPEchoReply:
		p.handleEcho(h.Src(), t, false)
	case t.Type() == packet.ICMPEcho:
		p.handleEcho(h.Dst(), t, true)
	case t.Type() == packet.ICMPUnreachable || t.Type() == packet.ICMPTimeExceeded:
		q := packet.IPv4(t.Payload())
		if len(q) < packet.IPv4HeaderLen || len(q) < q.HeaderLen() {
			return
		}
		p.handleError(flowKey{to: q.Dst(), protocol: q.Protocol()}, q[q.HeaderLen():],
			icmpError{from: h.Src(), kind: t.Type(), code: t.Code(), mtu: t.MTU4(), size: q.TotalLen()})
	}
}

func (p *prober) handle6(b []byte) {
	h := packet.IPv6(b)
	if len(b) < packet.IPv6HeaderLen+packet.ICMPHeaderLen {
		return
	}
	t := packet.ICMP(b[packet.IPv6HeaderLen:])
	switch {
	case h.NextHeader() == packet.ProtoTCP:
		p.handleTCP(h.Src(), packet.TCP(t))
	case h.NextHeader() == packet.ProtoUDP:
		p.handleAnswer(packet.UDP(t))
	case t.Type() == packet.ICMPv6EchoReply:
		p.handleEcho(h.Src(), t, false)
	case t.Type() == packet.ICMPv6Echo:
		p.handleEcho(h.Dst(), t, true)
	case t.Type() >= packet.ICMPv6Unreachable && t.Type() <= packet.ICMPv6ParamProblem:
		q := packet.IPv6(t.Payload())
		if len(q) < packet.IPv6HeaderLen {
			return
		}
		p.handleError(flowKey{to: q.Dst(), protocol: q.NextHeader()}, q[packet.IPv6HeaderLen:],
			icmpError{from: h.Src(), kind: t.Type(), code: t.Code(), mtu: int(t.MTU6()), size: q.TotalLen()})
	}
}

// handleEcho handles an echo reply from addr, or, with back, a request to addr that has returned to this host.
func (p *prober) handleEcho(addr netip.Addr, t packet.ICMP, back bool) {
	if data := t.Payload(); len(data) < cookieLen || cookie(data[:cookieLen]) != p.cookie {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.echoes[t.Rest()]; s != nil && s.from == addr {
		s.answered, s.back = true, s.back || back
		p.wake()
	}
}

// handleTCP handles a segment.
func (p *prober) handleTCP(from netip.Addr, t packet.TCP) {
	if len(t) < packet.TCPHeaderLen {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.syns[synKey{t.DstPort(), t.Ack()}]
	if s != nil && s.from == from && t.Flags()&packet.FlagACK != 0 {
		s.answered, s.flags = true, t.Flags()
		p.wake()
	}
}

// handleAnswer handles the answer of an agent. The nonce identifies it, since its source address depends on the routes
// of the agent's host.
func (p *prober) handleAnswer(t packet.UDP) {
	n := t.Len()
	if n < packet.UDPHeaderLen || n > len(t) {
		return
	}
	a, err := query.ParseAnswer(t[:n].Payload())
	if err != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.questions[a.Nonce]; s != nil {
		s.answered, s.answer = true, a
		p.wake()
	}
}

// handleError handles an ICMP error. quoted is the part of the quoted packet behind the IP header.
func (p *prober) handleError(k flowKey, quoted []byte, e icmpError) {
	if k.protocol == packet.ProtoUDP {
		if len(quoted) < 4 {
			return
		}
		k.port = packet.UDP(quoted).DstPort()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	const enough = 256 // the sniffers show the errors of other programs as well
	if len(p.icmpErrors) < enough*enough && len(p.icmpErrors[k]) < enough {
		p.icmpErrors[k] = append(p.icmpErrors[k], e)
	}
	p.wake()
}

// wake wakes the callers of await. The caller must hold mu.
func (p *prober) wake() {
	close(p.arrived)
	p.arrived = make(chan struct{})
}
