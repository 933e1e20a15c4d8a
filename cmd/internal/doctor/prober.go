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

// shot is one probe, sent again and again until it is answered or given up.
type shot struct {
	packet []byte // as it leaves this host
	from   netip.Addr
	number uint32 // of an echo request
	port   uint16 // source port of a SYN; 0: an echo request, or a question
	seq    uint32 // of a SYN
	nonce  uint64 // of a question; 0: none

	via    netip.Addr // neighbour that it goes to; the zero Addr: as the route says
	device int        // index of the device of via

	answered bool
	back     bool         // an echo request has come to this host again
	flags    byte         // of the answer to a SYN
	answer   query.Answer // to a question
	err      error
}

// trouble is an ICMP error about what this host has sent to one destination.
type trouble struct {
	from       netip.Addr
	kind, code uint8
	mtu        int // that the error names
	size       int // of the packet that it is about
}

// road is what errors are told apart by: the destination and the IP protocol of the packet that they quote.
type road struct {
	to       netip.Addr
	protocol uint8
	port     uint16 // of UDP
}

// synKey identifies the answer to a SYN. SYNs to many realservers have the same port; the sequence number distinguishes
// their answers.
type synKey struct {
	port uint16
	ack  uint32
}

func (s *shot) key() synKey { return synKey{s.port, s.seq + 1} }

// prober sends probes, and sees what comes back before this host's own filters do: while a director runs, a strict
// rp_filter drops what a VIP answers.
type prober struct {
	cookie cookie
	sendMu sync.Mutex
	sender *wire.Sender
	taps   []*wire.Sniffer
	sinks  []*wire.Sink    // they keep the kernel from answering the answers
	asks   map[bool]uint16 // source port of questions, by whether their answers come over IPv6
	read   sync.WaitGroup

	mu        sync.Mutex
	next      uint32
	echoes    map[uint32]*shot
	syns      map[synKey]*shot
	questions map[uint64]*shot
	troubles  map[road][]trouble
	ports     map[portKey]uint16 // source ports of SYNs
	arrived   chan struct{}      // closed, and made anew, when something has come
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
			p.asks[over6] = port
			filters = append(filters, wire.SnifferFilter{Protocol: packet.ProtoUDP, First: port, Last: port})
		} else if !over6 {
			return nil, errors.Join(err, p.close())
		}
		t, err := wire.NewSniffer(over6, filters...)
		if err != nil {
			return nil, errors.Join(err, p.close())
		}
		p.taps = append(p.taps, t)
		p.read.Go(func() { p.listen(t, over6) })
	}
	return p, nil
}

// emptyProber is a prober without sockets.
func emptyProber() *prober {
	return &prober{cookie: newCookie(), next: rand.Uint32(), echoes: map[uint32]*shot{}, syns: map[synKey]*shot{},
		questions: map[uint64]*shot{},
		troubles:  map[road][]trouble{}, ports: map[portKey]uint16{}, asks: map[bool]uint16{},
		arrived: make(chan struct{})}
}

func unspecified(six bool) netip.Addr {
	if six {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

func (p *prober) close() error {
	err := p.sender.Close()
	for _, t := range p.taps {
		err = errors.Join(err, t.Close())
	}
	p.read.Wait()
	for _, s := range p.sinks {
		err = errors.Join(err, s.Close())
	}
	return err
}

// sink takes a port of a, in the range that the taps show. What comes to it gets no RST and no ICMP error of this
// host's kernel: those would go into the director's device, and count there as packets of unknown connections.
func (p *prober) sink(protocol uint8, a netip.Addr) (port uint16, err error) {
	const tries = 32 // other programs have some ports
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

// synPort is the source port of SYNs from a. SYNs of one number have one port: no host gets two of the same number for
// the same VIP and port.
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

// echo makes a shot of an echo request: wrapped makes what leaves this host of it.
func (p *prober) echo(src, dst netip.Addr, size int, wrapped func([]byte) ([]byte, error)) (*shot, error) {
	p.mu.Lock()
	p.next++
	s := &shot{from: dst, number: p.next}
	p.mu.Unlock()
	var err error
	s.packet, err = wrapped(echoRequest(src, dst, size, s.number, p.cookie))
	return s, err
}

// syn makes a shot of a TCP SYN. Sequence numbers count, from a random one on: those of two SYNs never are the same.
func (p *prober) syn(src, dst netip.AddrPort, wrapped func([]byte) ([]byte, error)) (*shot, error) {
	p.mu.Lock()
	p.next++
	s := &shot{from: dst.Addr(), port: src.Port(), seq: p.next}
	p.mu.Unlock()
	var err error
	s.packet, err = wrapped(segment(src, dst, s.seq, 0, packet.FlagSYN))
	return s, err
}

// question makes a shot of a question to the agent at the end of a tunnel, which carries the family of vip, for its
// VIPs from number first on.
func (p *prober) question(c encap.Config, vip netip.Addr, first int) *shot {
	s := &shot{nonce: max(rand.Uint64(), 1)}
	port := p.asks[c.Destination.Is6()]
	if port == 0 {
		s.err = unix.EAFNOSUPPORT
		return s
	}
	src, dst := query.Inner(c.Source, c.Destination, vip)
	payload := query.AppendQuestion(nil, query.Question{Version: query.Version, First: uint16(first), Nonce: s.nonce})
	s.packet, s.err = wrap(c, datagram(netip.AddrPortFrom(src, port), netip.AddrPortFrom(dst, query.Port), payload))
	return s
}

// bare is for probes that go without a tunnel.
func bare(b []byte) ([]byte, error) { return b, nil }

// How long a volley waits after each of its tries. What is answered costs no more than the way there and back.
var waits = []time.Duration{250 * time.Millisecond, 500 * time.Millisecond, 750 * time.Millisecond}

// volley sends shots, those that are not answered three times, and returns when all are answered, or none of the others
// will be. Then they do not change any more.
func (p *prober) volley(ctx context.Context, shots ...*shot) {
	p.expect(shots, true)
	defer p.expect(shots, false)
	for _, wait := range waits {
		if p.settled(shots) || ctx.Err() != nil {
			return
		}
		p.fire(shots)
		late := time.NewTimer(wait)
		for waiting := true; waiting; {
			p.mu.Lock()
			arrived := p.arrived
			p.mu.Unlock()
			if p.settled(shots) {
				break
			}
			select {
			case <-arrived:
			case <-late.C:
				waiting = false
			case <-ctx.Done():
				waiting = false
			}
		}
		late.Stop()
	}
}

// expect lets answers to shots be taken, or no more.
func (p *prober) expect(shots []*shot, on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range shots {
		switch {
		case s.nonce != 0 && on:
			p.questions[s.nonce] = s
		case s.nonce != 0:
			delete(p.questions, s.nonce)
		case s.port != 0 && on:
			p.syns[s.key()] = s
		case s.port != 0:
			delete(p.syns, s.key())
		case on:
			p.echoes[s.number] = s
		default:
			delete(p.echoes, s.number)
		}
	}
}

// settled reports whether each shot is answered, or was refused by this host's kernel.
func (p *prober) settled(shots []*shot) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !slices.ContainsFunc(shots, func(s *shot) bool { return !s.answered && s.err == nil })
}

// fire sends the shots that are not answered.
func (p *prober) fire(shots []*shot) {
	for _, s := range shots {
		p.mu.Lock()
		done := s.answered || s.err != nil
		p.mu.Unlock()
		if !done {
			if err := p.sendShot(s); err != nil && !errors.Is(err, unix.ENOBUFS) {
				p.mu.Lock()
				s.err = err
				p.mu.Unlock()
			}
		}
	}
}

// send sends one packet.
func (p *prober) send(b []byte) error { return p.sendShot(&shot{packet: b}) }

// sendShot sends the packet of a shot.
func (p *prober) sendShot(s *shot) error {
	p.sendMu.Lock()
	defer p.sendMu.Unlock()
	if s.via.IsValid() {
		return p.sender.SendVia(s.via, s.device, s.packet)
	}
	_, err := p.sender.Send([]egress.Outgoing{egress.Packet(s.packet)})
	return err
}

// about returns the errors about packets of a road.
func (p *prober) about(r road) []trouble {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.troubles[r])
}

// listen takes what a tap shows, until it is closed.
func (p *prober) listen(t *wire.Sniffer, over6 bool) {
	buf := make([]byte, 2048)
	for {
		n, err := t.Read(buf)
		if errors.Is(err, os.ErrClosed) || err != nil {
			return
		}
		if over6 {
			p.take6(buf[:n])
		} else {
			p.take4(buf[:n])
		}
	}
}

func (p *prober) take4(b []byte) {
	h := packet.IPv4(b)
	if len(b) < packet.IPv4HeaderLen || h.HeaderLen() < packet.IPv4HeaderLen ||
		len(b) < h.HeaderLen()+packet.ICMPHeaderLen {
		return
	}
	t := packet.ICMP(b[h.HeaderLen():])
	switch {
	case h.Protocol() == packet.ProtoTCP:
		p.takeTCP(h.Src(), packet.TCP(t))
	case h.Protocol() == packet.ProtoUDP:
		p.takeAnswer(packet.UDP(t))
	case t.Type() == packet.ICMPEchoReply:
		p.takeEcho(h.Src(), t, false)
	case t.Type() == packet.ICMPEcho:
		p.takeEcho(h.Dst(), t, true)
	case t.Type() == packet.ICMPUnreachable || t.Type() == packet.ICMPTimeExceeded:
		q := packet.IPv4(t.Payload())
		if len(q) < packet.IPv4HeaderLen || len(q) < q.HeaderLen() {
			return
		}
		p.takeTrouble(road{to: q.Dst(), protocol: q.Protocol()}, q[q.HeaderLen():],
			trouble{from: h.Src(), kind: t.Type(), code: t.Code(), mtu: t.MTU4(),
				size: q.TotalLen()})
	}
}

func (p *prober) take6(b []byte) {
	h := packet.IPv6(b)
	if len(b) < packet.IPv6HeaderLen+packet.ICMPHeaderLen {
		return
	}
	t := packet.ICMP(b[packet.IPv6HeaderLen:])
	switch {
	case h.NextHeader() == packet.ProtoTCP:
		p.takeTCP(h.Src(), packet.TCP(t))
	case h.NextHeader() == packet.ProtoUDP:
		p.takeAnswer(packet.UDP(t))
	case t.Type() == packet.ICMPv6EchoReply:
		p.takeEcho(h.Src(), t, false)
	case t.Type() == packet.ICMPv6Echo:
		p.takeEcho(h.Dst(), t, true)
	case t.Type() >= packet.ICMPv6Unreachable && t.Type() <= packet.ICMPv6ParamProblem:
		q := packet.IPv6(t.Payload())
		if len(q) < packet.IPv6HeaderLen {
			return
		}
		p.takeTrouble(road{to: q.Dst(), protocol: q.NextHeader()}, q[packet.IPv6HeaderLen:],
			trouble{from: h.Src(), kind: t.Type(), code: t.Code(), mtu: int(t.MTU6()),
				size: q.TotalLen()})
	}
}

// takeEcho takes an echo reply from the address of a request, or, with back, the request itself, which has come back.
func (p *prober) takeEcho(of netip.Addr, t packet.ICMP, back bool) {
	if len(t) < packet.ICMPHeaderLen+cookieLen || cookie(t.Payload()) != p.cookie {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.echoes[t.Rest()]; s != nil && s.from == of {
		s.answered, s.back = true, s.back || back
		p.wake()
	}
}

// takeTCP takes a segment.
func (p *prober) takeTCP(from netip.Addr, t packet.TCP) {
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

// takeAnswer takes the answer of an agent. It is known by its nonce: the agent sends it from the address that its
// host's route gives.
func (p *prober) takeAnswer(t packet.UDP) {
	n := t.Len()
	if n < packet.UDPHeaderLen || n > len(t) {
		return
	}
	a, err := query.ParseAnswer(t[packet.UDPHeaderLen:n])
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

// takeTrouble takes an ICMP error; t is what it quotes behind the IP header.
func (p *prober) takeTrouble(r road, t []byte, what trouble) {
	if r.protocol == packet.ProtoUDP {
		if len(t) < 4 {
			return
		}
		r.port = packet.UDP(t).DstPort()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	const enough = 256 // others' errors come by as well
	if len(p.troubles) < enough*enough && len(p.troubles[r]) < enough {
		p.troubles[r] = append(p.troubles[r], what)
	}
	p.wake()
}

// wake lets volleys look.
func (p *prober) wake() {
	close(p.arrived)
	p.arrived = make(chan struct{})
}
