package e2e

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vstun/testdata/testkit"
)

// TestConnectionRate opens connections by nat from 16 client addresses, each with a request, its answer and both FINs.
// No packet is sent twice, so that a connection that loses one fails. With VSTUN_FULL=1 (`make rate`) there are 10,000
// a second for 30 s.
func TestConnectionRate(t *testing.T) {
	rate, length := 1000, short(3*time.Second, time.Second)
	if full() {
		rate, length = 10_000, 30*time.Second
	} else {
		t.Parallel()
	}
	s := newStage(t, nat, false)
	s.startOurs("")
	callers := s.newCallers(rate * int(length/time.Second))
	begin := time.Now()
	callers.call(rate)
	took := time.Since(begin)
	testkit.Within(t, "the last connections end", soon, func() bool {
		return callers.done.Load() == int64(len(callers.state)) || callers.silent(time.Second)
	})
	failed := callers.failed()
	t.Logf("%d connections in %v, %d failed", len(callers.state), took, failed)
	if failed > 0 {
		t.Errorf("%d of %d connections failed, by their last step: %v", failed, len(callers.state), callers.steps())
	}
	if full() && took > length+length/20 {
		t.Errorf("the connections took %v, want %v: the rate was not kept", took, length)
	}
	st := s.director.balance()
	if r := st.Services[0].Realservers[0]; int(r.Connections) != len(callers.state) || len(st.Drops) != 0 {
		t.Errorf("the director has scheduled %d connections of %d, and dropped %v", r.Connections, len(callers.state),
			st.Drops)
	}
}

// callers are clients with addresses of their own, and the server, on a stage. A connection goes through these steps at
// its client.
const (
	unopened = iota
	opened   // the SYN is sent
	asked    // the SYN-ACK has come, the request is sent
	answered // the answer has come, the FIN is sent
	closed   // the server's FIN has come
)

type callers struct {
	s      *stage
	end    *wireEnd
	server [4]byte
	vip    [4]byte
	state  []atomic.Uint32
	done   atomic.Int64
	last   atomic.Int64 // when the last packet came, in nanoseconds
	errs   atomic.Int64 // packets that no step expects
}

const (
	callerAddresses = 16
	firstCaller     = 100  // last byte of the first address
	firstCallerPort = 1024 // of each address
	requestLen      = 8
	tcpHeaders      = 40
)

// newCallers prepares n connections, and starts the server and the receiver of the clients.
func (s *stage) newCallers(n int) *callers {
	s.t.Helper()
	c := &callers{s: s, server: s.realserver.As4(), vip: s.VIP.As4(), state: make([]atomic.Uint32, n)}
	// The clients are at the director's next hop, and no host's kernel sees their packets: a further host would need
	// its own CPU time.
	c.end = s.openEnd(s.Router, "director", s.mac(s.Director, "eth0"), netip.PrefixFrom(s.client, 24))
	nextHop := s.Director.Addr.As4()
	nextHop[3] = 1
	err := s.Director.Sink("eth0", netip.AddrFrom4(nextHop))
	if err != nil {
		s.t.Fatal(err)
	}
	var ends sync.WaitGroup
	for _, e := range []*wireEnd{c.end, s.webEnd} {
		const wait = 50_000 // µs: so often the receiver looks whether the test has ended
		err := unix.SetNonblock(e.fd, false)
		if err == nil {
			err = unix.SetsockoptTimeval(e.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: wait})
		}
		if err == nil {
			err = unix.SetsockoptInt(e.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
		}
		if err != nil {
			s.t.Fatal(err)
		}
	}
	stop := make(chan struct{})
	ends.Go(func() { receive(s.webEnd, stop, c.serve) })
	ends.Go(func() { receive(c.end, stop, c.proceed) })
	s.t.Cleanup(func() { close(stop); ends.Wait() })
	return c
}

func (c *callers) address(i int) netip.Addr {
	a := c.s.client.As4()
	a[3] = firstCaller + byte(i)
	return netip.AddrFrom4(a)
}

// receive calls take for each TCP packet that comes, and sends the packet that it returns.
func receive(e *wireEnd, stop chan struct{}, take func(in, out []byte) int) {
	runtime.LockOSThread() // it waits in the system call
	in, out := make([]byte, 2048), make([]byte, 2048)
	to := &unix.SockaddrLinklayer{Protocol: unix.ETH_P_IP<<8&0xff00 | unix.ETH_P_IP>>8, Ifindex: e.index, Halen: 6}
	copy(to.Addr[:], e.gateway)
	for {
		select {
		case <-stop:
			return
		default:
		}
		n, from, err := unix.Recvfrom(e.fd, in, 0)
		const outgoing = 4 // PACKET_OUTGOING, linux/if_packet.h
		if at, ok := from.(*unix.SockaddrLinklayer); err != nil || !ok || at.Pkttype == outgoing ||
			n < tcpHeaders || in[0] != 0x45 || in[9] != unix.IPPROTO_TCP {
			continue
		}
		if k := take(in[:n], out); k > 0 {
			_ = unix.Sendto(e.fd, out[:k], 0, to) // a connection fails
		}
	}
}

// call opens all connections, at a rate per second.
func (c *callers) call(rate int) {
	c.s.t.Helper()
	out := make([]byte, 64)
	begin := time.Now()
	for i := range c.state {
		if due := begin.Add(time.Duration(i) * time.Second / time.Duration(rate)); i%32 == 0 {
			time.Sleep(time.Until(due))
		}
		c.state[i].Store(opened)
		src := c.address(i % callerAddresses).As4()
		n := segment(out, src, c.vip, callerPort(i), 80, uint32(i), 0, flagSYN, nil)
		c.end.send(out[:n])
	}
}

func callerPort(i int) uint16 { return firstCallerPort + uint16(i/callerAddresses) }

const (
	flagFIN = 1
	flagSYN = 2
	flagACK = 16
)

// segment writes a TCP segment into b, and returns its length.
func segment(b []byte, src, dst [4]byte, sport, dport uint16, seq, ack uint32, flags byte, data []byte) int {
	n := tcpHeaders + len(data)
	b = b[:n]
	copy(b, []byte{0x45, 0, byte(n >> 8), byte(n), 0, 0, 0x40, 0, 64, unix.IPPROTO_TCP, 0, 0})
	copy(b[12:], src[:])
	copy(b[16:], dst[:])
	fixChecksum(b[:20])
	binary.BigEndian.PutUint16(b[20:], sport)
	binary.BigEndian.PutUint16(b[22:], dport)
	binary.BigEndian.PutUint32(b[24:], seq)
	binary.BigEndian.PutUint32(b[28:], ack)
	copy(b[32:], []byte{5 << 4, flags, 0x7f, 0xff, 0, 0, 0, 0})
	copy(b[tcpHeaders:], data)
	binary.BigEndian.PutUint16(b[36:], tcpChecksum(b))
	return n
}

// tcpChecksum returns the checksum of an IPv4 packet's TCP segment, whose field is 0. Its length must be even.
func tcpChecksum(b []byte) uint16 {
	total := uint32(unix.IPPROTO_TCP) + uint32(len(b)-20)
	for i := 12; i < len(b); i += 2 {
		total += uint32(b[i])<<8 | uint32(b[i+1])
	}
	total = total&0xffff + total>>16
	return ^uint16(total&0xffff + total>>16)
}

// serve is the server: it answers a segment of a client.
func (c *callers) serve(in, out []byte) int {
	src, dst := [4]byte(in[12:]), [4]byte(in[16:])
	if dst != c.server || src[3] < firstCaller {
		return 0
	}
	sport, dport := binary.BigEndian.Uint16(in[20:]), binary.BigEndian.Uint16(in[22:])
	seq, ack, data := binary.BigEndian.Uint32(in[24:]), binary.BigEndian.Uint32(in[28:]), in[tcpHeaders:]
	switch flags := in[33]; {
	case flags == flagSYN:
		return segment(out, dst, src, dport, sport, 1000, seq+1, flagSYN|flagACK, nil)
	case len(data) > 0: // the answer is the request
		return segment(out, dst, src, dport, sport, ack, seq+uint32(len(data)), flagACK, data)
	case flags&flagFIN != 0:
		return segment(out, dst, src, dport, sport, ack, seq+1, flagFIN|flagACK, nil)
	}
	return 0
}

// proceed is the clients: it answers a segment of the server.
func (c *callers) proceed(in, out []byte) int {
	src, dst := [4]byte(in[12:]), [4]byte(in[16:])
	port := binary.BigEndian.Uint16(in[22:])
	i := int(port-firstCallerPort)*callerAddresses + int(dst[3]) - firstCaller
	if src != c.vip || dst[3] < firstCaller || dst[3] >= firstCaller+callerAddresses || i >= len(c.state) {
		return 0
	}
	c.last.Store(time.Now().UnixNano())
	seq, ack, data := binary.BigEndian.Uint32(in[24:]), binary.BigEndian.Uint32(in[28:]), in[tcpHeaders:]
	request := binary.BigEndian.AppendUint64(nil, uint64(i))
	reply := func(seq, ack uint32, flags byte, data []byte) int {
		return segment(out, dst, c.vip, port, 80, seq, ack, flags, data)
	}
	switch flags, state := in[33], &c.state[i]; {
	case flags == flagSYN|flagACK && state.CompareAndSwap(opened, asked):
		return reply(ack, seq+1, flagACK, request)
	case flags == flagACK && string(data) == string(request) && state.CompareAndSwap(asked, answered):
		return reply(ack, seq+requestLen, flagFIN|flagACK, nil)
	case flags == flagFIN|flagACK && state.CompareAndSwap(answered, closed):
		c.done.Add(1)
		return reply(ack, seq+1, flagACK, nil)
	}
	c.errs.Add(1)
	return 0
}

// silent reports whether no packet has come for this time.
func (c *callers) silent(d time.Duration) bool { return time.Since(time.Unix(0, c.last.Load())) > d }

// failed returns the number of connections that have not closed, and of unexpected packets.
func (c *callers) failed() int { return len(c.state) - int(c.done.Load()) + int(c.errs.Load()) }

// steps counts the connections by their last step.
func (c *callers) steps() string {
	var n [closed + 1]int
	for i := range c.state {
		n[c.state[i].Load()]++
	}
	return fmt.Sprintf("%d unopened, %d opened, %d asked, %d answered, %d closed; %d unexpected packets", n[unopened],
		n[opened], n[asked], n[answered], n[closed], c.errs.Load())
}
