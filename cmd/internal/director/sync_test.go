package director

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"vstun/balancer"
	"vstun/balancer/connsync"
	"vstun/balancer/conntab"
	"vstun/balancer/method"
	"vstun/encap/packet"
	"vstun/routing/query"
	"vstun/testdata/testkit"
)

// cable joins the Links of two directors.
type cable struct {
	mu   sync.Mutex
	ends [2]end
	mute bool // datagrams vanish
}

// end is a connsync.Link.
type end struct {
	cable  *cable
	at     int
	in     chan []byte
	closed chan struct{}
}

func newCable() *cable {
	w := &cable{}
	for i := range w.ends {
		w.ends[i] = end{w, i, make(chan []byte, 100_000), make(chan struct{})}
	}
	return w
}

func (e *end) Send(b []byte) error {
	e.cable.mu.Lock()
	defer e.cable.mu.Unlock()
	if e.cable.mute {
		return nil
	}
	e.cable.ends[1-e.at].in <- slices.Clone(b)
	return nil
}

func (e *end) Receive(b []byte) (int, netip.Addr, error) {
	select {
	case <-e.closed:
		return 0, netip.Addr{}, net.ErrClosed
	case in := <-e.in:
		return copy(b, in), netip.AddrFrom4([4]byte{10, 0, 2, byte(1 - e.at)}), nil
	}
}

func (e *end) Close() error {
	close(e.closed)
	return nil
}

// cut lets datagrams vanish, or no longer.
func (w *cable) cut(is bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mute = is
}

// newSync returns a director's exchange of connections over an end of a cable. open opens its connection number i.
func newSync(t *testing.T, e *end, rate int) (s *connsync.Sync, open func(i int)) {
	t.Helper()
	table := conntab.New(conntab.Config{Max: 10_000})
	b := balancer.New(table, 1)
	vip := netip.MustParseAddr("198.51.100.80")
	if err := b.Apply(balancer.Config{Services: []balancer.Service{{Name: "web", VIPs: []netip.Addr{vip},
		Scheduler: "rr", Protocol: packet.ProtoTCP, Ports: []balancer.PortRange{{First: 80, Last: 80}},
		Realservers: []balancer.Realserver{{Address: netip.MustParseAddr("10.0.11.1"), Weight: 1,
			Config: method.Config{MTU: 1500}}}}}}); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	now := func() conntab.Ticks { return conntab.Ticks(time.Since(begin) / (time.Second / conntab.PerSecond)) }
	open = func(i int) {
		for _, flags := range []uint8{packet.FlagSYN, packet.FlagACK} {
			p := packet.Info{Len: 40, TCPFlags: flags, Flow: packet.Flow{Proto: packet.ProtoTCP, Dst: vip, DstPort: 80,
				Src: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), SrcPort: uint16(1000 + i)}}
			b.Snapshot().Decide(&p, now())
		}
	}
	return connsync.New(connsync.Config{Key: make([]byte, 32), Size: connsync.MaxSize, BulkRate: rate}, e, table, b,
		now), open
}

// TestHold: a director is ready, takes roles and refuses packets of unknown connections when the connections of its
// peer are here; without a peer after three seconds. It takes roles and is ready after 30 s at the latest, but refuses
// nothing while connections are missing and the peer is heard. Where VRRP hears a master that is no peer, because of
// another key for example, it waits for the 30 s, too. After a fault it takes no role before it knows what it
// has missed.
func TestHold(t *testing.T) {
	for _, c := range []struct {
		name   string
		rate   int  // records a second that the peer sends of its table; 0: there is no peer
		master bool // VRRP hears another master
		during func(w *cable, s *peerSync, open func(i int))
		want   string
	}{
		{"a fast peer", 10_000, true, nil, "complete 0s, hold false 0s, ready 0s"},
		{"no peer", 0, false, nil, "complete 3s, hold false 3s, ready 3s"},
		{"a master that is no peer", 0, true, nil, "complete 3s, hold false 30s, ready 30s"},
		{"a slow peer", 20, true, nil, "complete 10s, hold false 10s, ready 10s"},
		{"a very slow peer", 4, true, nil, "hold false 30s, ready 30s, complete 50s"},
		{"a peer that falls silent", 4, false, func(w *cable, _ *peerSync, _ func(int)) {
			time.Sleep(10 * time.Second)
			w.cut(true)
		}, "complete 13s, hold false 13s, ready 13s"},
		{"a short fault", 20, true, func(w *cable, s *peerSync, _ func(int)) {
			time.Sleep(20 * time.Second)
			w.cut(true)
			time.Sleep(20 * time.Second)
			w.cut(false)
			s.rejoin()
		}, "complete 10s, hold false 10s, ready 10s, hold true 40s, hold false 43s"},
		{"a long fault", 200, true, func(w *cable, s *peerSync, open func(int)) {
			time.Sleep(20 * time.Second)
			w.cut(true)
			for i := range 3000 {
				open(1000 + i)
				time.Sleep(100 * time.Millisecond)
			}
			w.cut(false)
			s.rejoin()
		}, "complete 1s, hold false 1s, ready 1s, hold true 5m20s, incomplete 5m20s, complete 5m36s, hold false 5m36s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { hold(t, c.rate, c.master, c.during, c.want) })
		})
	}
}

// hold notes what follows from an exchange with a peer that has 200 connections.
func hold(t *testing.T, rate int, master bool, during func(w *cable, s *peerSync, open func(int)), want string) {
	w, begin := newCable(), time.Now()
	var got []string
	note := func(what string) { got = append(got, fmt.Sprint(what, " ", time.Since(begin))) }
	own, _ := newSync(t, &w.ends[0], 0)
	s := peerSync{Sync: own, mode: "vstun", alive: map[netip.Addr]bool{},
		log: slog.New(slog.DiscardHandler), rejoined: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	var open func(int)
	if rate > 0 {
		var peer *connsync.Sync
		peer, open = newSync(t, &w.ends[1], rate)
		for i := range 200 {
			open(i)
		}
		all.Go(func() { _ = peer.Run(ctx) })
	}
	all.Go(func() {
		if err := s.run(ctx, syncing{ready: func() { note("ready") }, backup: func() bool { return master },
			complete: func(is bool) { note(map[bool]string{true: "complete", false: "incomplete"}[is]) },
			hold: func(is bool) {
				note(fmt.Sprint("hold ", is))
				if s.status().Ready == is {
					t.Errorf("hold %v, and the status says the reverse", is)
				}
			}}); err != nil {
			t.Error(err)
		}
	})
	if during != nil {
		during(w, &s, open)
	}
	time.Sleep(2 * time.Minute)
	cancel()
	all.Wait()
	if !slices.EqualFunc(got, strings.Split(want, ", "), about) {
		t.Errorf("%s, want %s", strings.Join(got, ", "), want)
	}
}

// about reports whether two notes have the same text and about the same time: directors meet within two seconds.
func about(a, b string) bool {
	at, to := strings.LastIndex(a, " "), strings.LastIndex(b, " ")
	x, errX := time.ParseDuration(a[at+1:])
	y, errY := time.ParseDuration(b[to+1:])
	return errX == nil && errY == nil && a[:at] == b[:to] && (x-y).Abs() < 2*time.Second
}

// crowd is a connsync.Link on which datagrams of the mode IPVS come from many addresses.
type crowd struct {
	n      int
	closed chan struct{}
}

func (c *crowd) Send([]byte) error { return nil }

func (c *crowd) Receive(b []byte) (int, netip.Addr, error) {
	if c.n++; c.n > 300 {
		<-c.closed
		return 0, netip.Addr{}, net.ErrClosed
	}
	return copy(b, []byte{0, 0, 0, 8, 0, 1, 0, 0}), netip.AddrFrom4([4]byte{10, 0, byte(c.n >> 8), byte(c.n)}), nil
}

func (c *crowd) Close() error {
	close(c.closed)
	return nil
}

// TestForgedPeersInLog: forged addresses fill neither the log nor the memory.
func TestForgedPeersInLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := conntab.New(conntab.Config{Max: 1024})
		own := connsync.New(connsync.Config{Size: 1400}, &crowd{closed: make(chan struct{})}, table,
			balancer.New(table, 1), func() conntab.Ticks { return 1000 })
		var log strings.Builder
		s := peerSync{Sync: own, mode: "ipvs", alive: map[netip.Addr]bool{},
			log: slog.New(slog.NewTextHandler(&log, nil))}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { _ = own.Run(ctx) })
		time.Sleep(time.Second)
		peers := own.Status().Peers
		for range 3 {
			s.logPeers()
		}
		if n := strings.Count(log.String(), "\n"); len(peers) <= newPeersMost || n != newPeersMost {
			t.Errorf("%d lines for %d peers, want %d", n, len(peers), newPeersMost)
		}
		for n := range 100 {
			s.alive[netip.AddrFrom4([4]byte{10, 1, 0, byte(n)})] = true
		}
		if s.logPeers(); len(s.alive) != len(peers) {
			t.Errorf("%d addresses are kept of %d peers", len(s.alive), len(peers))
		}
		cancel()
		running.Wait()
	})
}

// TestRefusedInLog: the log has the sender of refused datagrams, with what to do, at once and each minute while they
// come. Datagrams that a start makes are no line.
func TestRefusedInLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCable()
		own, _ := newSync(t, &w.ends[0], 0)
		var log testkit.Log
		s := peerSync{Sync: own, mode: "vstun", alive: map[netip.Addr]bool{}, rejoined: make(chan struct{}, 1),
			log: slog.New(slog.NewTextHandler(&log, nil))}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() {
			if err := s.run(ctx, syncing{ready: func() {}, backup: func() bool { return false },
				complete: func(bool) {}, hold: func(bool) {}}); err != nil {
				t.Error(err)
			}
		})
		lines := func() int { return strings.Count(log.String(), "sync datagrams are refused") }
		var forged [56]byte // an envelope without a valid HMAC
		forged[2], forged[3], forged[5] = 0xff, 0xff, 2
		for second := 1; second <= 125; second++ {
			_ = w.ends[1].Send(forged[:])
			time.Sleep(time.Second)
			synctest.Wait()
			if want := (second-2)/60 + 1; second > 2 && second%60 > 3 && lines() != want {
				t.Fatalf("%d lines after %d s, want %d:\n%s", lines(), second, want, &log)
			}
		}
		for _, want := range []string{"copy the file key of [sync]", "peer=10.0.2.1 ", "refused=forged datagrams="} {
			if !strings.Contains(log.String(), want) {
				t.Errorf("no %q in\n%s", want, &log)
			}
		}
		was := lines()
		time.Sleep(5 * time.Minute)
		if is := lines(); is > was+1 {
			t.Errorf("%d lines more without datagrams", is-was)
		}
		cancel()
		running.Wait()
	})
}

// TestSyncFollowsDevice: the sockets are opened anew when their device has been made anew, whether the director has
// seen it away or not, and for no other reason.
func TestSyncFollowsDevice(t *testing.T) {
	own, _ := newSync(t, &newCable().ends[0], 0)
	renewed := 0
	s := peerSync{Sync: own, device: "eth0", renew: func() { renewed++ }}
	eth0 := func(removals int) query.Device { return query.Device{Name: "eth0", Index: 2, Removals: removals} }
	other := query.Device{Name: "eth1", Index: 3, Removals: 9}
	for _, c := range []struct {
		what    string
		devices []query.Device
		want    int
	}{
		{"the first look", []query.Device{eth0(0), other}, 0},
		{"the same", []query.Device{eth0(0), other}, 0},
		{"made anew between two looks", []query.Device{eth0(1), other}, 1},
		{"the same", []query.Device{eth0(1)}, 1},
		{"away", []query.Device{other}, 1},
		{"back", []query.Device{eth0(1), other}, 2},
	} {
		if s.followDevices(c.devices); renewed != c.want {
			t.Errorf("%s: %d, want %d", c.what, renewed, c.want)
		}
	}
	(&peerSync{}).followDevices([]query.Device{eth0(5)}) // there is no [sync]
}

// TestUnheardGroup: the status names the multicast group until a peer is heard.
func TestUnheardGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCable()
		own, _ := newSync(t, &w.ends[0], 0)
		peer, _ := newSync(t, &w.ends[1], 0)
		s := peerSync{Sync: own, mode: "vstun", group: netip.MustParseAddr("224.0.0.81")}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { _ = own.Run(ctx) })
		time.Sleep(5 * time.Second)
		if got := s.status().Unheard; !slices.Equal(got, []string{"224.0.0.81"}) {
			t.Errorf("alone: %q", got)
		}
		running.Go(func() { _ = peer.Run(ctx) })
		time.Sleep(5 * time.Second)
		if got := s.status().Unheard; got != nil {
			t.Errorf("with a peer: %q", got)
		}
		cancel()
		running.Wait()
	})
}

// TestUnheardPeers: the status names each configured peer that has not been heard yet.
func TestUnheardPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCable()
		own, _ := newSync(t, &w.ends[0], 0)
		peer, _ := newSync(t, &w.ends[1], 0)
		s := peerSync{Sync: own, mode: "vstun", peers: []netip.Addr{netip.MustParseAddr("10.0.2.1"),
			netip.MustParseAddr("10.0.2.9")}}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { _ = own.Run(ctx) })
		time.Sleep(5 * time.Second)
		if got := s.status().Unheard; !slices.Equal(got, []string{"10.0.2.1", "10.0.2.9"}) {
			t.Errorf("alone: %q", got)
		}
		running.Go(func() { _ = peer.Run(ctx) })
		time.Sleep(5 * time.Second)
		if got := s.status().Unheard; !slices.Equal(got, []string{"10.0.2.9"}) {
			t.Errorf("with a peer: %q", got)
		}
		cancel()
		running.Wait()
	})
}
