package forward

import (
	"bytes"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"vstun/balancer/conntab"
	"vstun/balancer/method"
	"vstun/encap/egress"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/encap/packet/stats"
	"vstun/testdata/testkit"
)

// TestUnresolved: while a MAC address is not known, three packets of each realserver wait, GSO packets whole. They are
// sent when it is known, in their order, or dropped after three seconds. All others are dropped at once. Each drop is
// counted.
func TestUnresolved(t *testing.T) {
	var f frames
	now := conntab.Ticks(1)
	w, _ := newDirect(t, 1500, method.Link{Device: 7, OwnMAC: nearLink.OwnMAC}, &f, &now)
	gso := packet.Offload{GSO: packet.GSOUDP, Size: 1200, Partial: true, CsumStart: 20, CsumOffset: 6}
	fill := func() {
		w.put(0, tcp(80, packet.FlagSYN, 0), packet.Offload{})
		w.put(1, udp(53, true, 10*1200), gso)
		for i := 2; i < 5; i++ {
			w.put(i, udp(53, true, i), packet.Offload{})
		}
		w.put(5, udp6(53, 6), packet.Offload{})
		w.forward(w.bufs[:6])
	}
	counts := func() (t stats.Tally) {
		w.Read(&t)
		w.shared.Read(&t)
		return t
	}
	fill()
	w.shared.SendResolved(w.balancer.Snapshot(), now)
	if c := counts(); len(f.out) != 0 || c.Drops[drop.Unresolved] != 2 {
		t.Errorf("%d packets have left, counted %v", len(f.out), c.Drops)
	}
	now += 4 * conntab.PerSecond
	w.shared.SendResolved(w.balancer.Snapshot(), now)
	if c := counts(); len(f.out) != 0 || c.Drops[drop.Unresolved] != 6 {
		t.Errorf("%d packets have left, counted %v", len(f.out), c.Drops)
	}
	fill()
	if err := w.balancer.Apply(directConfig(1500, nearLink)); err != nil {
		t.Fatal(err)
	}
	w.shared.SendResolved(w.balancer.Snapshot(), now)
	if c := counts(); len(f.out) != 4 || c.Drops[drop.Unresolved] != 8 || c.OutPackets != 4 ||
		!bytes.Equal(f.out[0], tcp(80, packet.FlagSYN, 0)) || f.left[1] != gso || f.to[3].Dst != near6 {
		t.Errorf("%d packets have left, counted %+v", len(f.out), c)
	}
	w.shared.SendResolved(w.balancer.Snapshot(), now)
	if len(f.out) != 4 {
		t.Errorf("%d packets have left", len(f.out))
	}
}

// TestHoldMore: until the given time all packets wait, and later ones as always. All are sent in their order.
func TestHoldMore(t *testing.T) {
	var f frames
	now := conntab.Ticks(1)
	w, _ := newDirect(t, 1500, method.Link{Device: 7, OwnMAC: nearLink.OwnMAC}, &f, &now)
	const begin = 50
	put := func(from, n int) (dropped uint64) {
		for i := range n {
			w.put(i, udp(53, true, from+i), packet.Offload{})
		}
		w.forward(w.bufs[:n])
		var c stats.Tally
		w.Read(&c)
		return c.Drops[drop.Unresolved]
	}
	w.shared.HoldMore(now + 1)
	if n := put(begin, 20); n != 0 {
		t.Errorf("%d packets are dropped", n)
	}
	now++
	if n := put(begin+20, 1); n != 1 {
		t.Errorf("%d packets are dropped after the end, want 1", n)
	}
	if err := w.balancer.Apply(directConfig(1500, nearLink)); err != nil {
		t.Fatal(err)
	}
	w.shared.SendResolved(w.balancer.Snapshot(), now)
	if len(f.out) != 20 {
		t.Fatalf("%d packets have left, want 20", len(f.out))
	}
	for i, p := range f.out {
		if want := udp(53, true, begin+i); !bytes.Equal(p, want) {
			t.Errorf("packet %d is %x, want %x", i, p, want)
		}
	}
}

// TestHoldBytes: the packets that wait, super-packets of 64 KB included, have a bound in bytes. When they are gone
// there is room again.
func TestHoldBytes(t *testing.T) {
	var f frames
	now := conntab.Ticks(1)
	w, _ := newDirect(t, 1500, method.Link{Device: 7, OwnMAC: nearLink.OwnMAC}, &f, &now)
	w.shared.HoldMore(now + 100*conntab.PerSecond)
	gso := packet.Offload{GSO: packet.GSOUDP, Size: 1200, Partial: true, CsumStart: 20, CsumOffset: 6}
	large := udp(53, true, 50*1200)
	most := uint64(holdBytes / len(large))
	for range 2 {
		var before, after stats.Tally
		w.Read(&before)
		for range most + 7 {
			w.put(0, large, gso)
			w.forward(w.bufs[:1])
		}
		if w.Read(&after); after.Drops[drop.Unresolved]-before.Drops[drop.Unresolved] != 7 {
			t.Errorf("%d super-packets are dropped, want 7 of %d", after.Drops[drop.Unresolved], most+7)
		}
		now += longestWait + 1
		w.shared.SendResolved(w.balancer.Snapshot(), now)
	}
}

// TestCaptureOfUnresolved: packets that have waited for a MAC address are captured when they are sent, if the filter
// selects them.
func TestCaptureOfUnresolved(t *testing.T) {
	for name, c := range map[string]struct {
		filter CaptureFilter
		sent   [][]byte
	}{
		"all":        {CaptureFilter{}, [][]byte{tcp(80, packet.FlagSYN, 0), udp(53, true, 1)}},
		"port":       {CaptureFilter{Port: 53}, [][]byte{udp(53, true, 1)}},
		"realserver": {CaptureFilter{Realserver: netip.AddrPortFrom(near, 53)}, [][]byte{udp(53, true, 1)}},
	} {
		now := conntab.Ticks(1)
		w, _ := newDirect(t, 1500, method.Link{Device: 7, OwnMAC: nearLink.OwnMAC}, discard{}, &now)
		w.shared.UseLink(new(frames))
		capture := NewCapture(c.filter, 100, 1<<20)
		w.shared.StartCapture(capture)
		w.put(0, tcp(80, packet.FlagSYN, 0), packet.Offload{})
		w.put(1, udp(53, true, 1), packet.Offload{})
		w.forward(w.bufs[:2])
		if err := w.balancer.Apply(directConfig(1500, nearLink)); err != nil {
			t.Fatal(err)
		}
		w.shared.SendResolved(w.balancer.Snapshot(), now)
		w.shared.StopCapture(capture)
		var sent [][]byte
		for _, p := range capture.Next(t.Context()) {
			if p.Sent {
				sent = append(sent, bytes.Clone(p.Bytes))
			}
		}
		if !slices.EqualFunc(sent, c.sent, bytes.Equal) {
			t.Errorf("%s: captured %x, want %x", name, sent, c.sent)
		}
	}
}

// slowPort takes packets only after its test lets it.
type slowPort struct{ asked, open chan struct{} }

func (p *slowPort) Send([]egress.Outgoing) (int, error) {
	p.asked <- struct{}{}
	<-p.open
	return 1, nil
}

// TestUnresolvedWhileSending: a worker with a packet for an unresolved realserver does not wait for a full socket.
func TestUnresolvedWhileSending(t *testing.T) {
	now := conntab.Ticks(1)
	w, _ := newDirect(t, 1500, method.Link{Device: 7, OwnMAC: nearLink.OwnMAC}, discard{}, &now)
	port := &slowPort{make(chan struct{}), make(chan struct{})}
	w.shared.UseLink(port)
	send := func() {
		w.put(0, tcp(80, packet.FlagSYN, 0), packet.Offload{})
		w.forward(w.bufs[:1])
	}
	send()
	old := w.balancer.Snapshot()
	if err := w.balancer.Apply(directConfig(1500, nearLink)); err != nil {
		t.Fatal(err)
	}
	var sender, worker sync.WaitGroup
	sender.Go(func() { w.shared.SendResolved(w.balancer.Snapshot(), now) })
	<-port.asked
	dest, d := old.Decide(&w.infos[0], now)
	held := make(chan drop.Reason, 1)
	worker.Go(func() { held <- w.hold(dest, &w.bufs[0], now) })
	if r := testkit.Receive(t, "the worker goes on", held); d != drop.Accept || r != drop.Accept {
		t.Errorf("the decision is %v, and the packet is held: %v", d, r)
	}
	close(port.open)
	sender.Wait()
	worker.Wait()
}

// alone is a port that serves one goroutine, as those of packet sockets and TAP devices.
type alone struct {
	inside, most atomic.Int32
	sent         int // the race detector finds two goroutines here
}

func (p *alone) Send(out []egress.Outgoing) (int, error) {
	p.most.Store(max(p.most.Load(), p.inside.Add(1)))
	p.sent++
	runtime.Gosched()
	p.inside.Add(-1)
	return len(out), nil
}

// TestSendResolvedTogether: the sweeper and the controller send resolved packets at the same time. The port serves one
// of them after the other, and each packet is sent once.
func TestSendResolvedTogether(t *testing.T) {
	const rounds = 500
	now := conntab.Ticks(1)
	w, _ := newDirect(t, 1500, method.Link{Device: 7, OwnMAC: nearLink.OwnMAC}, discard{}, &now)
	var port alone
	w.shared.UseLink(&port)
	w.put(0, tcp(80, packet.FlagSYN, 0), packet.Offload{})
	w.forward(w.bufs[:1])
	dest, _ := w.balancer.Snapshot().Decide(&w.infos[0], now)
	if err := w.balancer.Apply(directConfig(1500, nearLink)); err != nil {
		t.Fatal(err)
	}
	var senders sync.WaitGroup
	var held atomic.Int32
	held.Store(1)
	for range 2 {
		senders.Go(func() {
			for range rounds {
				if w.shared.unresolved.hold(unresolvedPacket{dest: dest, since: now}, &w.bufs[0]) == drop.Accept {
					held.Add(1)
				}
				w.shared.SendResolved(w.balancer.Snapshot(), now)
			}
		})
	}
	senders.Wait()
	if n := port.most.Load(); n > 1 || port.sent != int(held.Load()) {
		t.Errorf("%d goroutines in Send of one port; %d packets sent of %d", n, port.sent, held.Load())
	}
}
