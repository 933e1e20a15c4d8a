package wireguard

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/device"

	"vstun/encap/egress"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/encap/wire"
	"vstun/testdata/testkit"
)

// relay is a NAT router between two ends: it passes on what it gets from a at one port to b from another one, and back.
type relay struct {
	t      *testing.T
	inside *wire.Datagrams
	mark   atomic.Uint32 // class of what it passes on; keep: as it came
	mu     sync.Mutex
	seen   []seen         // of messages with packets from a
	a, b   netip.AddrPort // where the ends are
	out    *wire.Datagrams
	ended  sync.WaitGroup
}

// seen is the class and the size of a datagram.
type seen struct {
	class uint8
	size  int
}

// keep is no class.
const keep = 1 << 8

// newRelay makes a relay to b.
func newRelay(t *testing.T, b netip.AddrPort) *relay {
	t.Helper()
	r := &relay{t: t, b: b}
	r.mark.Store(keep)
	r.inside = r.open()
	r.move()
	t.Cleanup(func() {
		r.inside.Close()
		r.out.Close()
		r.ended.Wait()
	})
	r.ended.Go(func() {
		r.pass(r.inside, func(p []byte, class uint8, from wire.Ends) (*wire.Datagrams, netip.AddrPort) {
			r.a = from.Peer
			if p[0] == device.MessageTransportType && len(p) > device.MessageKeepaliveSize {
				r.seen = append(r.seen, seen{class, len(p)})
			}
			return r.out, r.b
		})
	})
	return r
}

func (r *relay) open() *wire.Datagrams {
	r.t.Helper()
	d, err := wire.OpenDatagrams(0, false)
	if err != nil {
		r.t.Fatal(err)
	}
	return d
}

// move gives the relay another port to b. The former one is closed.
func (r *relay) move() {
	r.t.Helper()
	out := r.open()
	r.mu.Lock()
	before := r.out
	r.out = out
	r.mu.Unlock()
	if before != nil {
		before.Close()
	}
	r.ended.Go(func() {
		r.pass(out, func([]byte, uint8, wire.Ends) (*wire.Datagrams, netip.AddrPort) { return r.inside, r.a })
	})
}

// pass passes on what from gets, until it is closed.
func (r *relay) pass(from *wire.Datagrams, to func(p []byte, class uint8, at wire.Ends) (*wire.Datagrams,
	netip.AddrPort)) {
	bufs, sizes, ends, classes := [][]byte{make([]byte, 65535)}, make([]int, 1), make([]wire.Ends, 1), make([]uint8, 1)
	for {
		if _, err := from.Receive(bufs, sizes, ends, classes); err != nil {
			return
		}
		p, class := bufs[0][:sizes[0]], classes[0]
		r.mu.Lock()
		d, at := to(p, class, ends[0])
		r.mu.Unlock()
		if m := r.mark.Load(); m != keep {
			class = uint8(m)
		}
		_, _ = d.Send([][]byte{p}, func([]byte) uint8 { return class }, wire.Ends{Peer: at})
	}
}

// at is where the relay gets a's datagrams.
func (r *relay) at() netip.AddrPort {
	port, err := r.inside.Port()
	if err != nil {
		r.t.Fatal(err)
	}
	return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)
}

// take returns what has passed from a since the last call.
func (r *relay) take() []seen {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.seen
	r.seen = nil
	return s
}

// behindNAT connects a to b by a relay: b does not know where a is.
func behindNAT(t *testing.T, addrA, addrB string, mtu int) (a, b *end, r *relay) {
	t.Helper()
	a, b = newEnd(t, addrA), newEnd(t, addrB)
	r = newRelay(t, b.as(true, false).Endpoint)
	b.set(a.as(false, false))
	p := b.as(true, false)
	p.Endpoint, p.MTU = r.at(), mtu
	a.set(p)
	a.ready()
	b.ready()
	return a, b, r
}

// TestPadding: padding makes no datagram larger than the path's MTU, and every packet arrives as it was.
func TestPadding(t *testing.T) {
	for mtu, want := range map[int]map[int]int{
		1437: {1437: 1437, 1436: 1437, 1430: 1437, 1424: 1424, 45: 48, 1500: 1500},
		1440: {1440: 1440, 1425: 1440},
		0:    {1437: 1440},
	} {
		a, b, r := behindNAT(t, "10.99.0.1", "10.99.0.2", mtu)
		other := newEnd(t, "10.99.0.3") // the MTU of its path is another one
		with := *a.cfg.peer(b.addr)
		least := other.as(true, false)
		least.MTU = 1300
		a.set(with, least)
		r.take()
		for n, padded := range want {
			sent := tunnelled(a.addr, b.addr, n, uint32(n))
			a.send(sent)
			if got := b.next(); !bytes.Equal(got, sent) {
				t.Errorf("MTU %d: a packet of %d bytes arrives with %d", mtu, n, len(got))
			}
			if s := r.take(); len(s) != 1 || s[0].size != padded+32 {
				t.Errorf("MTU %d: a packet of %d bytes becomes datagrams %v, want one of %d bytes", mtu, n, s,
					padded+32)
			}
		}
	}
}

// peer returns the peer with an address.
func (c *Config) peer(a netip.Addr) *Peer {
	for i := range c.Peers {
		if c.Peers[i].Address == a {
			return &c.Peers[i]
		}
	}
	return nil
}

// classed is tunnelled with a TOS or traffic class.
func classed(from, to netip.Addr, class uint8, number uint32) []byte {
	p := tunnelled(from, to, 300, number)
	if packet.Version(p) == 6 {
		packet.IPv6(p).SetTrafficClass(class)
	} else {
		packet.IPv4(p).SetTOS(class)
		packet.IPv4(p).SetChecksum()
	}
	return p
}

// TestECN: the datagrams have the ECN of the packets in them, and no DSCP. CE of a datagram gets into a packet that is
// ECN-capable.
func TestECN(t *testing.T) {
	for _, addrs := range [][2]string{{"10.99.0.1", "10.99.0.2"}, {"fd99::1", "fd99::2"}} {
		a, b, r := behindNAT(t, addrs[0], addrs[1], 1440)
		r.take()
		var batch [][]byte
		for class := range uint32(256) {
			batch = append(batch, classed(a.addr, b.addr, uint8(class), class))
		}
		a.send(batch...)
		for i := range batch {
			if got := b.next(); !bytes.Equal(got, batch[i]) {
				t.Fatalf("class %#x: the packet is another one", i)
			}
		}
		for i, s := range r.take() {
			if s.class != uint8(i&ecnMask) {
				t.Fatalf("class %#x: the datagram has %#x", i, s.class)
			}
		}
		r.mark.Store(0xff) // CE, and a DSCP
		a.send(batch...)
		for i := range batch {
			class := uint8(i)
			if class&ecnMask != 0 {
				class |= ce
			}
			if got, want := b.next(), classed(a.addr, b.addr, class, uint32(i)); !bytes.Equal(got, want) {
				t.Fatalf("class %#x: a packet whose datagram has CE begins with %x, want %x", i, got[:20], want[:20])
			}
		}
		r.mark.Store(0) // the buffers of marked datagrams are used again
		for range 4 {
			a.send(batch...)
			for i := range batch {
				if got := b.next(); !bytes.Equal(got, batch[i]) {
					t.Fatalf("class %#x: a packet whose datagram has no CE begins with %x", i, got[:20])
				}
			}
		}
	}
}

// TestMappingChanges: an end behind a NAT router that forgets its mapping is found at the new one with its first
// packet.
func TestMappingChanges(t *testing.T) {
	a, b, r := behindNAT(t, "10.99.0.1", "10.99.0.2", 1440)
	for i := range uint32(5) {
		was := b.Status().Peers[0].Endpoint
		r.move()
		a.send(tunnelled(a.addr, b.addr, 100, i))
		if n := numberOf(b.next()); n != i {
			t.Fatalf("packet %d", n)
		}
		testkit.Within(t, "the new endpoint", 5*time.Second, func() bool { return b.Status().Peers[0].Endpoint != was })
		b.send(tunnelled(b.addr, a.addr, 100, i))
		if n := numberOf(a.next()); n != i {
			t.Fatalf("packet %d on the way back", n)
		}
	}
}

// TestSwappedKeys: two peers swap their keys, and the configuration follows. Neither gets the other's packets.
func TestSwappedKeys(t *testing.T) {
	a, b, c := newEnd(t, "10.99.0.1"), newEnd(t, "10.99.0.2"), newEnd(t, "10.99.0.3")
	all := func() {
		b.set(a.as(true, false))
		c.set(a.as(true, false))
		a.set(b.as(true, false), c.as(true, false))
	}
	all()
	a.ready()
	for round := range uint32(4) {
		calm := func(p PeerStatus) bool { return time.Since(p.Handshake) > 2*device.HandshakeInitationRate }
		testkit.Within(t, "the time in which a second handshake counts as a flood", time.Second, func() bool {
			p := a.Status().Peers
			return calm(p[0]) && calm(p[1])
		})
		b.key, c.key = c.key, b.key
		all()
		for _, to := range []*end{b, c} {
			number := round * 1000
			testkit.Within(t, "a packet of this round at the right peer", 2*time.Second, func() bool {
				number++
				a.send(tunnelled(a.addr, to.addr, 100, number))
				for len(to.got) > 0 {
					p := <-to.got
					if at := netip.AddrFrom4(packet.IPv4(p).Dst().As4()); at != to.addr {
						t.Fatalf("round %d: %v gets a packet for %v", round, to.addr, at)
					}
					if numberOf(p) > round*1000 {
						return true
					}
				}
				return false
			})
		}
	}
}

// TestWrongKeys: an end that has a wrong key of the other, that has its own key as the other's, or whose endpoint is
// itself, has no handshake, and says that some were refused.
func TestWrongKeys(t *testing.T) {
	a, b := newEnd(t, "10.99.0.1"), newEnd(t, "10.99.0.2")
	itself := b.as(true, false)
	itself.Endpoint = a.as(true, false).Endpoint
	wrong := b.as(true, false)
	wrong.PublicKeys = []Key{NewPrivateKey().Public()}
	for name, peer := range map[string]Peer{"itself": itself, "wrong key": wrong} {
		b.set(a.as(false, false))
		a.set()
		refused := func() uint64 { return drops(a.Device)[drop.Handshake] + drops(b.Device)[drop.Handshake] }
		before := refused()
		a.set(peer)
		testkit.Within(t, name+": a refused handshake", 10*time.Second, func() bool { return refused() > before })
		if !a.Status().Peers[0].Handshake.IsZero() {
			t.Errorf("%s: there was a handshake", name)
		}
	}
	b.key = a.key // both ends have the same key
	b.set(a.as(true, false))
	a.set(b.as(true, false))
	if _, err := b.port.Send(outgoing([][]byte{tunnelled(b.addr, a.addr, 100, 1)})); err != unix.EDESTADDRREQ {
		t.Errorf("to a peer with this end's own key: %v", err)
	}
}

// gets reports whether packet number comes within limit. It skips those before.
func (e *end) gets(number uint32, limit time.Duration) bool {
	end := time.After(limit)
	for {
		select {
		case p := <-e.got:
			if numberOf(p) == number {
				return true
			}
		case <-end:
			return false
		}
	}
}

// TestFlood: up to ten thousand forged handshake messages a second, each from another source, keep neither an existing
// tunnel from its packets nor a peer from its handshake.
func TestFlood(t *testing.T) {
	a, b, c := newEnd(t, "10.99.0.1"), newEnd(t, "10.99.0.2"), newEnd(t, "10.99.0.3")
	b.set(a.as(true, false), c.as(false, false))
	a.set(b.as(true, false))
	a.ready()
	initiation := make([]byte, device.MessageInitiationSize)
	initiation[0] = device.MessageInitiationType
	var checker device.CookieGenerator // makes the only part that an attacker can: mac1 of a public key
	checker.Init(device.NoisePublicKey(b.key.Public()))
	checker.AddMacs(initiation)
	stop := make(chan struct{})
	var flood sync.WaitGroup
	t.Cleanup(func() {
		close(stop)
		flood.Wait()
	})
	var sent atomic.Uint64
	flood.Go(func() {
		pace := time.NewTicker(10 * time.Millisecond)
		defer pace.Stop()
		for {
			for i := range 100 {
				n := sent.Load()
				d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.IPv4(127, byte(n>>8), byte(n), byte(1+i))}}
				conn, err := d.Dial("udp4", b.as(true, false).Endpoint.String())
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = conn.Write(initiation)
				conn.Close()
				sent.Add(1)
			}
			select {
			case <-stop:
				return
			case <-pace.C:
			}
		}
	})
	testkit.Eventually(t, "the flood", func() bool { return sent.Load() > 5000 })
	begin := time.Now()
	c.set(b.as(true, false))
	lost := 0
	for i := range uint32(200) {
		a.send(tunnelled(a.addr, b.addr, 100, i))
		if !b.gets(i, 100*time.Millisecond) { // the flood may have filled the socket at that moment
			lost++
			testkit.Within(t, fmt.Sprintf("packet %d in the flood", i), 10*time.Second, func() bool {
				a.send(tunnelled(a.addr, b.addr, 100, i))
				return b.gets(i, 100*time.Millisecond)
			})
		}
	}
	testkit.Within(t, "a handshake in the flood", 30*time.Second, func() bool {
		return !c.Status().Peers[0].Handshake.IsZero()
	})
	t.Logf("a handshake took %v, %d of 200 packets were sent again; %d forged messages in all", time.Since(begin), lost,
		sent.Load())
}

// TestEncapsulationLimit: the header with the limit that a kernel's ip6tnl and ip6gre add by default (RFC 2473, section
// 4.1.1) is not delivered. Other options, and what is cut short, are left as they are.
func TestEncapsulationLimit(t *testing.T) {
	a, b := newEnd(t, "fd99::1"), newEnd(t, "fd99::2")
	a.set(b.as(true, false))
	b.set(a.as(true, false))
	a.ready()
	b.ready()
	plain := tunnelled(a.addr, b.addr, 200, 7)
	with := func(options ...byte) []byte {
		p := slices.Concat(plain[:packet.IPv6HeaderLen], options, plain[packet.IPv6HeaderLen:])
		h := packet.IPv6(p)
		h[6] = unix.IPPROTO_DSTOPTS
		binary.BigEndian.PutUint16(h[4:], uint16(len(p)-packet.IPv6HeaderLen))
		return p
	}
	const ipip = packet.ProtoIPIP
	cut := with(ipip, 200, 4, 1, 4, 1, 1, 0)
	twice := with(unix.IPPROTO_DSTOPTS, 0, 4, 1, 4, 1, 1, 0, ipip, 0, 4, 1, 3, 1, 1, 0)
	for name, c := range map[string]struct{ sent, want []byte }{
		"none": {plain, plain}, "limit": {with(ipip, 0, 4, 1, 4, 1, 1, 0), plain},
		"limit 0":    {with(ipip, 0, 4, 1, 0, 0, 0, 0), plain},
		"padded":     {with(ipip, 1, 4, 1, 4, 1, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0), plain},
		"twice":      {twice, twice},
		"other":      {with(ipip, 0, 0x1e, 1, 4, 1, 1, 0), with(ipip, 0, 0x1e, 1, 4, 1, 1, 0)},
		"no limit":   {with(ipip, 0, 1, 4, 0, 0, 0, 0), with(ipip, 0, 1, 4, 0, 0, 0, 0)},
		"cut":        {cut, cut},
		"cut option": {with(ipip, 0, 4, 1, 4, 1, 9, 0), with(ipip, 0, 4, 1, 4, 1, 9, 0)},
	} {
		a.send(c.sent)
		if got := b.next(); !bytes.Equal(got, c.want) {
			t.Errorf("%s: %x, want %x", name, got[:60], c.want[:60])
		}
	}
}

// TestRefusedHandshakes: each forged handshake message is counted, also those that are refused for a flood, have a
// wrong length, or are an answer to no message.
func TestRefusedHandshakes(t *testing.T) {
	t.Parallel()
	a, b := newEnd(t, "10.99.0.1"), newEnd(t, "10.99.0.2")
	b.set(a.as(true, false))
	conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(b.as(true, false).Endpoint))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var checker device.CookieGenerator // makes the only part that an attacker can: mac1 of a public key
	checker.Init(device.NoisePublicKey(b.key.Public()))
	before := drops(b.Device)
	handshakes, others := uint64(0), uint64(0)
	send := func(kind byte, size int) {
		p := make([]byte, size)
		p[0] = kind
		if kind == device.MessageInitiationType && size == device.MessageInitiationSize {
			checker.AddMacs(p)
		}
		if _, err := conn.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	for kind, size := range map[byte]int{device.MessageInitiationType: device.MessageInitiationSize,
		device.MessageResponseType: device.MessageResponseSize, device.MessageCookieReplyType: 64} {
		for _, more := range []int{-1, 1} {
			send(kind, size+more)
			others++
		}
		send(kind, size)
		handshakes++
	}
	for ; handshakes < 5000; handshakes++ {
		send(device.MessageInitiationType, device.MessageInitiationSize)
		if handshakes%1000 == 0 { // the socket's buffer must hold them
			testkit.Within(t, "the messages", 20*time.Second, func() bool {
				return b.received.handshake.Load() >= handshakes
			})
		}
	}
	testkit.Within(t, "the count", 30*time.Second, func() bool {
		now := drops(b.Device)
		return now[drop.Handshake]-before[drop.Handshake] == handshakes &&
			now[drop.Unauthenticated]-before[drop.Unauthenticated] == others
	})
}

// TestKernelErrors: an error of the kernel ends no receiver, what it refuses to send is counted, and the status has the
// error for a while.
func TestKernelErrors(t *testing.T) {
	a, b := newEnd(t, "10.99.0.1"), newEnd(t, "10.99.0.2")
	a.set(b.as(true, false))
	b.set(a.as(true, false))
	a.ready()
	b.ready()
	for fd := 3; fd < 1000; fd++ { // the socket then has the errors of datagrams that no port takes
		if name, err := unix.Getsockname(fd); err == nil {
			if at, ok := name.(*unix.SockaddrInet4); ok && at.Port == int(a.Port()) {
				if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	closed := wire.Ends{Peer: netip.MustParseAddrPort("127.0.0.1:9")}
	for range 3 {
		_, _ = a.bind.four.Send([][]byte{{0}}, a.bind.classOf, closed)
		testkit.Within(t, "the error", 5*time.Second, func() bool { return a.Status().LastError == unix.ECONNREFUSED })
		b.send(tunnelled(b.addr, a.addr, 100, 1))
		a.next()
	}
	a.bind.failed.Store(time.Now().Add(-2 * recent).UnixNano())
	if err := a.Status().LastError; err != nil {
		t.Errorf("an old error is reported: %v", err)
	}
	before := drops(a.Device)[drop.SendError]
	bad := b.as(true, false)
	bad.Endpoint = netip.MustParseAddrPort("255.255.255.255:9")
	a.set(bad)
	var out []egress.Outgoing
	for range 5 {
		out = append(out, outgoing([][]byte{tunnelled(a.addr, b.addr, 100, 1)})...)
	}
	if n, err := a.port.Send(out); n != 5 || err != nil {
		t.Fatal(n, err)
	}
	testkit.Within(t, "the count", 5*time.Second, func() bool { return drops(a.Device)[drop.SendError] == before+5 })
	if err := a.Status().LastError; err != unix.EACCES {
		t.Errorf("last error %v", err)
	}
}
