package wireguard

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/device"

	"vstun/encap/egress"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/encap/packet/stats"
	"vstun/testdata/testkit"
)

// end is a Device with its key, and the packets that it has got.
type end struct {
	*Device
	t    *testing.T
	key  Key
	addr netip.Addr
	got  chan []byte
	port *Port
}

func newEnd(t *testing.T, addr string) *end {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	e := &end{t: t, key: NewPrivateKey(), addr: netip.MustParseAddr(addr), got: make(chan []byte, 1<<16)}
	d, err := Open(0, func(bufs []packet.Buf) error {
		if len(bufs) == 0 || len(bufs) > stats.MaxBatch {
			t.Errorf("%d packets are delivered at once", len(bufs))
		}
		for i := range bufs {
			select {
			case e.got <- bytes.Clone(bufs[i].Bytes()):
			case <-ctx.Done():
				return os.ErrClosed
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	e.Device, e.port = d, d.Sender()
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(d.Close(), <-ended); err != nil {
			t.Error(err)
		}
	})
	return e
}

// as is e as a peer; known reports whether its endpoint is. six selects the endpoint's IP version.
func (e *end) as(known, six bool) Peer {
	p := Peer{PublicKeys: []Key{e.key.Public()}, Address: e.addr}
	if known {
		p.Endpoint = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), e.Port())
		if six {
			p.Endpoint = netip.AddrPortFrom(netip.IPv6Loopback(), e.Port())
		}
	}
	return p
}

func (e *end) set(peers ...Peer) {
	e.t.Helper()
	if err := e.Set(Config{PrivateKey: e.key, Peers: peers}); err != nil {
		e.t.Fatal(err)
	}
}

// ready waits for a handshake with each peer, and until packets can be sent to each.
func (e *end) ready() {
	e.t.Helper()
	testkit.Eventually(e.t, "a handshake with each peer", func() bool {
		routes := *e.routes.Load()
		return !slices.ContainsFunc(e.Status().Peers, func(p PeerStatus) bool {
			return p.Handshake.IsZero() || !routes[p.Address].known.Load()
		})
	})
}

// send sends packets as one batch.
func (e *end) send(packets ...[]byte) {
	e.t.Helper()
	for out := outgoing(packets); len(out) > 0; {
		n, err := e.port.Send(out)
		if err != nil {
			e.t.Fatal(err)
		}
		out = out[n:]
	}
}

func outgoing(packets [][]byte) (out []egress.Outgoing) {
	for _, p := range packets {
		o := egress.Packet(p)
		o.Head, o.Body = p[:len(p)/2], p[len(p)/2:]
		out = append(out, o)
	}
	return out
}

// next returns the next packet that came.
func (e *end) next() []byte {
	e.t.Helper()
	select {
	case p := <-e.got:
		return p
	case <-time.After(10 * time.Second):
		e.t.Fatal("no packet came")
		return nil
	}
}

// tunnelled is an IP packet of n bytes between tunnel addresses. number tells it from others.
func tunnelled(from, to netip.Addr, n int, number uint32) []byte {
	b := make([]byte, n)
	at := packet.IPv4HeaderLen
	if from.Is4() {
		packet.IPv4(b).Encode(packet.IPv4Fields{TotalLen: n, TTL: 64, Protocol: packet.ProtoIPIP, Src: from.As4(),
			Dst: to.As4()})
		packet.IPv4(b).SetChecksum()
	} else {
		packet.IPv6(b).Encode(packet.IPv6Fields{TotalLen: n, HopLimit: 64, NextHeader: packet.ProtoIPIP,
			Src: from.As16(), Dst: to.As16()})
		at = packet.IPv6HeaderLen
	}
	binary.BigEndian.PutUint32(b[at:], number)
	for i := at + 4; i < n; i++ {
		b[i] = byte(i + int(number))
	}
	return b
}

func numberOf(p []byte) uint32 {
	if packet.Version(p) == 6 {
		return binary.BigEndian.Uint32(p[packet.IPv6HeaderLen:])
	}
	return binary.BigEndian.Uint32(p[packet.IPv4HeaderLen:])
}

// TestPackets: packets of all sizes go both ways, over both families and with both families of tunnel addresses.
func TestPackets(t *testing.T) {
	for _, six := range []bool{false, true} {
		for _, addrs := range [][2]string{{"10.99.0.1", "10.99.0.2"}, {"fd99::1", "fd99::2"}} {
			a, b := newEnd(t, addrs[0]), newEnd(t, addrs[1])
			b.set(a.as(false, six)) // the handshakes of both would take turns
			a.set(b.as(true, six))
			a.ready()
			b.ready()
			for _, ends := range [][2]*end{{a, b}, {b, a}} {
				var sent [][]byte
				for i, n := range []int{44, 45, 1280, 1440, 1439, 1425, 1440, 9000, maxPacket, 60} {
					sent = append(sent, tunnelled(ends[0].addr, ends[1].addr, n, uint32(i)))
				}
				for i := range 300 {
					sent = append(sent, tunnelled(ends[0].addr, ends[1].addr, 1400, uint32(i+100)))
				}
				ends[0].send(sent...)
				for i, want := range sent {
					if got := ends[1].next(); !bytes.Equal(got, want) {
						t.Fatalf("over IPv6 %v, %s: packet %d: %d bytes, number %d, want %d", six, addrs[0], i,
							len(got), numberOf(got), len(want))
					}
				}
			}
			if p := a.Status().Peers[0]; p.In == 0 || p.Out == 0 || p.Endpoint.Port() != b.Port() ||
				p.PublicKey != b.key.Public() {
				t.Errorf("status: %+v", p)
			}
		}
	}
}

// TestUnknownEndpoint: a peer of unknown endpoint comes by itself. Until then there is an error for its packets.
func TestUnknownEndpoint(t *testing.T) {
	a, b := newEnd(t, "10.99.0.1"), newEnd(t, "10.99.0.2")
	a.set(b.as(false, false))
	p := tunnelled(a.addr, b.addr, 100, 7)
	if n, err := a.port.Send(outgoing([][]byte{p})); n != 0 || err != unix.EDESTADDRREQ {
		t.Errorf("sent %d, %v", n, err)
	}
	other := tunnelled(a.addr, netip.MustParseAddr("10.99.0.3"), 100, 7)
	if n, err := a.port.Send(outgoing([][]byte{other})); n != 0 || err != unix.ENOKEY {
		t.Errorf("to no peer: sent %d, %v", n, err)
	}
	b.set(a.as(true, false))
	a.ready()
	testkit.Within(t, "the endpoint", 5*time.Second, func() bool {
		n, _ := a.port.Send(outgoing([][]byte{p, other}))
		return n == 1
	})
	if got := b.next(); !bytes.Equal(got, p) {
		t.Errorf("%x", got)
	}
}

// TestBeginsAgain: a Device that begins anew has a handshake at once, so that the packets of the other end, which knows
// of nothing, arrive.
func TestBeginsAgain(t *testing.T) {
	a, b := newEnd(t, "10.99.0.1"), newEnd(t, "10.99.0.2")
	a.set(b.as(true, false))
	b.set(a.as(true, false))
	a.ready()
	b.ready()
	testkit.Within(t, "the time in which a second handshake counts as a flood", time.Second, func() bool {
		return time.Since(a.Status().Peers[0].Handshake) > 2*device.HandshakeInitationRate
	})
	again := newEnd(t, "10.99.0.2") // at another port: the peer roams, too
	again.key = b.key
	b.set()
	again.set(a.as(true, false))
	number := uint32(0)
	testkit.Within(t, "a packet arrives", 2*time.Second, func() bool {
		a.send(tunnelled(a.addr, again.addr, 100, number))
		number++
		return len(again.got) > 0
	})
	if p := a.Status().Peers[0]; p.Endpoint.Port() != again.Port() {
		t.Errorf("endpoint %v, want port %d", p.Endpoint, again.Port())
	}
}

// TestBeginsAgainWithoutEndpoint: a Device that begins anew and does not know where its peer is, is found by that, if
// it has a keepalive.
func TestBeginsAgainWithoutEndpoint(t *testing.T) {
	director, realserver := newEnd(t, "10.99.0.1"), newEnd(t, "10.99.0.2")
	director.set(realserver.as(false, false))
	kept := director.as(true, false)
	kept.Keepalive = time.Second
	realserver.set(kept)
	director.ready()
	again := newEnd(t, "10.99.0.1")
	again.key = director.key
	director.set()
	again.set(realserver.as(false, false))
	moved := again.as(true, false) // the port of the test's second Device is another one
	moved.Keepalive = time.Second
	realserver.set(moved)
	before := realserver.Status().Peers[0].Handshake
	testkit.Within(t, "another handshake", 15*time.Second, func() bool {
		return realserver.Status().Peers[0].Handshake.After(before)
	})
	again.ready()
	testkit.Within(t, "a packet", 5*time.Second, func() bool {
		_, _ = again.port.Send(outgoing([][]byte{tunnelled(again.addr, realserver.addr, 100, 1)}))
		return len(realserver.got) > 0
	})
}

// TestRotation: each end changes its key while packets go. The other end knows the new and the old one. Every packet
// arrives, none twice, also if the other end is slow to look at its peers. On a machine that is too busy for the times
// that the ends give each other, packets may be lost: not three times in a row.
func TestRotation(t *testing.T) {
	for i := range 4 {
		sender, slow := i%2 == 0, i >= 2
		for try := 1; ; try++ {
			lost := rotate(t, sender, slow)
			if lost == 0 {
				break
			}
			if t.Logf("sender changes: %v, slow: %v: %d packets are lost", sender, slow, lost); try == 3 {
				t.Fatal("three times in a row")
			}
		}
	}
}

// rotate makes two ends, lets one of them change its key while packets go, and returns the number of those that are
// lost. With slow the other end looks at its peers 50 ms later.
func rotate(t *testing.T, sender, slow bool) (lost int) {
	a, b := newEnd(t, "10.99.0.1"), newEnd(t, "10.99.0.2")
	changed, other := a, b
	if !sender {
		changed, other = b, a
	}
	was, next := changed.key, NewPrivateKey()
	both := changed.as(true, false)
	both.PublicKeys = []Key{next.Public(), was.Public()}
	other.set(both)
	changed.set(other.as(true, false))
	a.ready()
	b.ready()
	s := &stream{t: t, from: a, to: b, seen: map[uint32]bool{}}
	s.run(100 * time.Millisecond)
	s.lost = 0
	changed.key = next
	if slow {
		other.mu.Lock()
		time.AfterFunc(50*time.Millisecond, other.mu.Unlock)
	}
	changed.set(other.as(true, false))
	s.run(500 * time.Millisecond)
	testkit.Within(t, "the address belongs to the new key", 20*time.Second, func() bool {
		return other.Status().Peers[0].PublicKey == next.Public()
	})
	other.set(changed.as(true, false)) // without the old one
	s.run(100 * time.Millisecond)
	return s.lost
}

// stream is numbered packets from one end to another.
type stream struct {
	t        *testing.T
	from, to *end
	number   uint32 // of the next packet
	seen     map[uint32]bool
	lost     int
}

// run sends packets for d, and waits until they have come, for 5 s at most.
func (s *stream) run(d time.Duration) {
	before := int(s.number) - len(s.seen)
	pace := time.NewTicker(100 * time.Microsecond)
	defer pace.Stop()
	for end := time.Now().Add(d); time.Now().Before(end); s.number++ {
		s.from.send(tunnelled(s.from.addr, s.to.addr, 200, s.number))
		<-pace.C
	}
	late := time.After(5 * time.Second)
	for len(s.seen)+before < int(s.number) {
		select {
		case p := <-s.to.got:
			n := numberOf(p)
			if s.seen[n] {
				s.t.Fatalf("packet %d came twice", n)
			}
			s.seen[n] = true
		case <-late:
			s.lost += int(s.number) - len(s.seen) - before
			return
		}
	}
}

// TestClockSetBack: the address belongs to the key with the latest handshake, whatever its time says.
func TestClockSetBack(t *testing.T) {
	was, next := NewPrivateKey().Public(), NewPrivateKey().Public()
	p := &Peer{PublicKeys: []Key{next, was}, Address: netip.MustParseAddr("10.99.0.2")}
	d := &Device{owners: map[netip.Addr]Key{}}
	noon := time.Unix(1_800_000_000, 0)
	for i, step := range []struct {
		was, next time.Time
		owner     Key
	}{
		{owner: next},
		{was: noon, owner: was},
		{was: noon, next: noon.Add(-time.Hour), owner: next}, // the clock was set back meanwhile
		{was: noon, next: noon.Add(-time.Hour), owner: next},
		{was: noon.Add(-time.Minute), next: noon.Add(-time.Hour), owner: was},
		{was: noon.Add(time.Minute), next: noon.Add(2 * time.Minute), owner: next}, // both since the last look
	} {
		now := map[Key]session{was: {handshake: step.was}, next: {handshake: step.next}}
		d.turns.order(now)
		owner := d.owner(p, now)
		if owner != step.owner {
			t.Errorf("step %d: the address belongs to the former key: %v, want %v", i, owner == was, step.owner == was)
		}
		d.owners[p.Address] = owner
	}
}

// TestSet: peers come and go, and those that stay lose no packet.
func TestSet(t *testing.T) {
	a, b, c := newEnd(t, "10.99.0.1"), newEnd(t, "10.99.0.2"), newEnd(t, "fd99::3")
	a.set(b.as(true, false))
	b.set(a.as(true, false))
	a.ready()
	for i := range uint32(50) {
		switch i % 4 {
		case 1:
			a.set(c.as(true, false), b.as(true, false))
		case 3:
			keepalive := b.as(true, false)
			keepalive.Keepalive = 25 * time.Second
			a.set(keepalive)
		}
		a.send(tunnelled(a.addr, b.addr, 500, i))
		if n := numberOf(b.next()); n != i {
			t.Fatalf("packet %d, want %d", n, i)
		}
	}
	moved := b.as(true, false)
	moved.Address = netip.MustParseAddr("10.99.0.77") // of the same key
	a.set(moved)
	if _, err := a.port.Send(outgoing([][]byte{tunnelled(a.addr, b.addr, 100, 1)})); err != unix.ENOKEY {
		t.Errorf("to the former address: %v", err)
	}
	a.send(tunnelled(a.addr, moved.Address, 100, 99))
	if n := numberOf(b.next()); n != 99 {
		t.Errorf("packet %d to the new address", n)
	}
}

// TestPresharedKey: ends with different preshared keys have no handshake.
func TestPresharedKey(t *testing.T) {
	a, b := newEnd(t, "10.99.0.1"), newEnd(t, "10.99.0.2")
	pa, pb := a.as(true, false), b.as(true, false)
	pb.PresharedKey = NewPrivateKey()
	a.set(pb)
	pa.PresharedKey = NewPrivateKey()
	b.set(pa)
	testkit.Eventually(t, "a refused handshake", func() bool {
		return drops(a.Device)[drop.Handshake]+drops(b.Device)[drop.Handshake] > 0
	})
	if !a.Status().Peers[0].Handshake.IsZero() || !b.Status().Peers[0].Handshake.IsZero() {
		t.Error("there was a handshake")
	}
	pa.PresharedKey = pb.PresharedKey
	b.set(pa)
	a.ready()
	b.ready()
}

func drops(d *Device) map[drop.Reason]uint64 {
	var t stats.Tally
	d.Read(&t)
	all := map[drop.Reason]uint64{}
	for r, n := range t.Drops {
		if n > 0 {
			all[drop.Reason(r)] = n
		}
	}
	return all
}

// TestRefused sends the packets of an attacker on the path: replayed, changed, made up, cut, of every type. None is
// accepted. Each is counted.
func TestRefused(t *testing.T) {
	rounds := 20_000
	if testkit.Full() {
		rounds = 1_000_000
	}
	a, b := newEnd(t, "10.99.0.1"), newEnd(t, "10.99.0.2")
	sealed := recordMessages(t, a, b)
	if len(sealed) < 20 {
		t.Fatalf("only %d messages recorded", len(sealed))
	}
	for len(b.got) > 0 {
		<-b.got
	}
	before := drops(b.Device)
	conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(b.as(true, false).Endpoint))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	rnd := rand.New(rand.NewPCG(1, 2))
	handled := func(n uint64) func() bool {
		return func() bool { return b.received.transport.Load()+b.received.other.Load() >= n }
	}
	start := b.received.transport.Load() + b.received.other.Load()
	for i := range rounds {
		p := bytes.Clone(sealed[rnd.IntN(len(sealed))])
		switch i % 5 {
		case 0: // replayed
		case 1:
			p[16+rnd.IntN(len(p)-16)] ^= 1 << rnd.IntN(8)
		case 2:
			binary.LittleEndian.PutUint64(p[8:], rnd.Uint64()) // the counter
		case 3:
			binary.LittleEndian.PutUint32(p[4:], rnd.Uint32()) // the session
		case 4:
			p = p[:32+rnd.IntN(len(p)-32)]
			binary.LittleEndian.PutUint32(p, 5+rnd.Uint32()>>1)
		}
		if _, err := conn.Write(p); err != nil {
			t.Fatal(err)
		}
		if i%256 == 255 { // the socket's buffer must hold them
			testkit.Within(t, "the messages", 20*time.Second, handled(start+uint64(i)+1))
		}
	}
	testkit.Within(t, "the count", 30*time.Second, func() bool {
		return drops(b.Device)[drop.Unauthenticated]-before[drop.Unauthenticated] == uint64(rounds)
	})
	if n := len(b.got); n > 0 {
		t.Errorf("%d packets are accepted of %d", n, rounds)
	}
	for _, size := range []int{device.MessageInitiationSize, device.MessageResponseSize} {
		p := make([]byte, size)
		p[0] = map[int]byte{device.MessageInitiationSize: 1, device.MessageResponseSize: 2}[size]
		if _, err := conn.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	testkit.Within(t, "the refused handshakes", 5*time.Second, func() bool {
		return drops(b.Device)[drop.Handshake]-before[drop.Handshake] == 2
	})
	a.send(tunnelled(a.addr, b.addr, 100, 5)) // the session is unharmed
	if n := numberOf(b.next()); n != 5 {
		t.Errorf("packet %d", n)
	}
	a.send(tunnelled(netip.MustParseAddr("10.99.0.9"), b.addr, 100, 6))
	testkit.Within(t, "the refused source", 5*time.Second, func() bool {
		return drops(b.Device)[drop.TunnelSource] == 1
	})
	if len(b.got) > 0 {
		t.Error("a packet with another peer's source is accepted")
	}
}

// TestBusy: while packets flow as fast as the library takes them, those that it has not handled yet are not refused.
func TestBusy(t *testing.T) {
	t.Parallel()
	a, b := newEnd(t, "10.99.0.1"), newEnd(t, "10.99.0.2")
	a.set(b.as(true, false))
	b.set(a.as(true, false))
	a.ready()
	go func() {
		for range b.got { // let nothing wait
		}
	}()
	var batch [][]byte
	for range 64 {
		batch = append(batch, tunnelled(a.addr, b.addr, 1400, 0))
	}
	for end := time.Now().Add((window + 2) * time.Second); time.Now().Before(end); {
		a.send(batch...)
		if n := drops(b.Device)[drop.Unauthenticated]; n > 0 {
			t.Fatalf("%d genuine messages are counted as refused", n)
		}
	}
}

// recordMessages connects a and b by a relay, sends packets from a, and returns the messages to b with packets.
func recordMessages(t *testing.T, a, b *end) (sealed [][]byte) {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	middle := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(conn.LocalAddr().(*net.UDPAddr).Port))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		buf := make([]byte, 65535)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			to := b.as(true, false).Endpoint
			if from.Port() == b.Port() {
				to = a.as(true, false).Endpoint
			} else if buf[0] == device.MessageTransportType && n > 32 {
				sealed = append(sealed, bytes.Clone(buf[:n]))
			}
			_, _ = conn.WriteToUDPAddrPort(buf[:n], to)
		}
	}()
	pb := b.as(true, false)
	pb.Endpoint = middle
	b.set(a.as(false, false))
	a.set(pb)
	a.ready()
	for i := range uint32(30) {
		a.send(tunnelled(a.addr, b.addr, 100+int(i)*40, i))
		b.next()
	}
	conn.Close()
	<-ended
	a.set(b.as(true, false)) // directly
	return sealed
}

// TestDeliveryFails: Run returns the error of a packet that cannot be delivered, but for that of a device that is
// closed.
func TestDeliveryFails(t *testing.T) {
	a, b := newEnd(t, "10.99.0.1"), newEnd(t, "10.99.0.2")
	calls := 0
	d, err := Open(0, func([]packet.Buf) error {
		if calls++; calls == 1 {
			return os.ErrClosed
		}
		return unix.ENODEV
	})
	if err != nil {
		t.Fatal(err)
	}
	end := &end{Device: d, t: t, key: b.key, addr: b.addr}
	a.set(end.as(true, false))
	end.set(a.as(false, false))
	a.ready()
	ended := make(chan error, 1)
	go func() { ended <- d.Run(t.Context()) }()
	testkit.Eventually(t, "Run ends", func() bool {
		a.send(tunnelled(a.addr, b.addr, 100, 0))
		return len(ended) > 0
	})
	if err := <-ended; !errors.Is(err, unix.ENODEV) {
		t.Errorf("Run returns %v", err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

// TestClose: Close ends Send, also one that waits for room.
func TestClose(t *testing.T) {
	d, err := Open(0, func([]packet.Buf) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	key, peer := NewPrivateKey(), Peer{PublicKeys: []Key{NewPrivateKey().Public()},
		Endpoint: netip.MustParseAddrPort("127.0.0.1:9"), Address: netip.MustParseAddr("10.99.0.2")}
	if err := d.Set(Config{PrivateKey: key, Peers: []Peer{peer}}); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		port := d.Sender()
		p := outgoing(slices.Repeat([][]byte{tunnelled(netip.MustParseAddr("10.99.0.1"), peer.Address, 1000, 1)}, 64))
		for {
			if _, err := port.Send(p); err != nil {
				ended <- err
				return
			}
		}
	}()
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, os.ErrClosed) {
		t.Errorf("ended with %v", err)
	}
}

// TestCloseSends: the packets that Send has taken leave before Close ends, but those to a peer without a session, for
// which Close does not wait long.
func TestCloseSends(t *testing.T) {
	for range 5 {
		a, b, absent := newEnd(t, "10.99.0.1"), newEnd(t, "10.99.0.2"), newEnd(t, "10.99.0.3")
		b.set(a.as(false, false))
		a.set(b.as(true, false), absent.as(true, false))
		testkit.Eventually(t, "a session", func() bool {
			return !a.Status().Peers[0].Handshake.IsZero() && (*a.routes.Load())[b.addr].known.Load()
		})
		var sent [][]byte
		for i := range uint32(500) {
			sent = append(sent, tunnelled(a.addr, b.addr, 200, i))
		}
		a.send(tunnelled(a.addr, absent.addr, 200, 0))
		a.send(sent...)
		begin := time.Now()
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		t.Log("Close took", time.Since(begin))
		for i := range sent {
			if n := numberOf(b.next()); n != uint32(i) {
				t.Fatalf("packet %d, want %d", n, i)
			}
		}
	}
}

// TestAllocations: sending, encryption, decryption and receiving allocate nothing for a packet.
func TestAllocations(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: the race detector empties pools")
	}
	a, b := newEnd(t, "10.99.0.1"), newEnd(t, "10.99.0.2")
	a.set(b.as(true, false))
	b.set(a.as(true, false))
	a.ready()
	b.ready()
	out := outgoing(slices.Repeat([][]byte{tunnelled(a.addr, b.addr, 1400, 1)}, 64))
	late := time.After(time.Minute)
	n := testing.AllocsPerRun(300, func() {
		if n, err := a.port.Send(out); n != len(out) || err != nil {
			t.Fatal(n, err)
		}
		for range out {
			select {
			case <-b.got:
			case <-late:
				t.Fatal("a packet is lost")
			}
		}
	})
	// The test clones each packet, and the library's garbage-collected pools may be empty.
	if perPacket := n/float64(len(out)) - 1; perPacket > 0.2 {
		t.Errorf("%.2f allocations a packet", perPacket)
	}
}

func TestKeys(t *testing.T) {
	k := NewPrivateKey()
	if got, err := ParseKey(" " + k.String() + "\n"); err != nil || got != k {
		t.Errorf("%v %v", got, err)
	}
	// RFC 7748, section 6.1
	private, _ := ParseKey("dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=")
	if got := private.Public().String(); got != "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=" {
		t.Errorf("public key %s", got)
	}
	for _, text := range []string{"", "x", k.String()[:43], k.String() + "A", "!" + k.String()[1:]} {
		if _, err := ParseKey(text); err == nil {
			t.Errorf("%q is a key", text)
		}
	}
}

// TestSetMTU: the MTU of a peer stays as it was set, unless a configuration has another one. It bounds the padding.
func TestSetMTU(t *testing.T) {
	a, b := newEnd(t, "10.99.0.1"), newEnd(t, "10.99.0.2")
	set := func(mtu int) {
		t.Helper()
		p := b.as(true, false)
		p.MTU = mtu
		a.set(p)
	}
	address := netip.MustParseAddr("10.99.0.2")
	padding := func(n int) int {
		port := &Port{device: a.Device, routes: a.routes.Load()}
		_ = port.check(&egress.Outgoing{Hop: egress.Hop{To: &egress.Peer{Dst: address}}})
		return port.padding(n)
	}
	set(0)
	testkit.Eventually(t, "the endpoint is known", func() bool { return (*a.routes.Load())[address].known.Load() })
	if n := padding(1321); n != 7 {
		t.Errorf("without MTU: %d bytes of padding, want 7", n)
	}
	a.SetMTU(address, 1324)
	set(0)
	if n := padding(1321); n != 3 {
		t.Errorf("with an MTU of 1324: %d bytes of padding, want 3", n)
	}
	set(1330)
	if n := padding(1321); n != 7 {
		t.Errorf("with an MTU of 1330: %d bytes of padding, want 7", n)
	}
	a.SetMTU(netip.MustParseAddr("10.99.0.9"), 1) // no peer
}
