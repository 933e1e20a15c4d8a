package connsync

import (
	"context"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/encap/packet"
	"vstun/testdata/testkit"
)

// Bars of the exchange.
const (
	perSecond = 5000 // new connections
	barFour   = 120  // bytes on the wire for a connection
	barSix    = 220
	barBulk   = 30 * time.Second // for a million connections
)

// ethernet is the bytes of the Ethernet header of a datagram; those of IP and UDP follow.
const ethernet = 14

// churn opens perSecond/10 connections at d, sends a request by each, and closes those that are half a second old.
func (d *director) churn(w *network, step int, to netip.Addr, port uint16) {
	const n, age = perSecond / 10, 5
	for i := step * n; i < (step+1)*n; i++ {
		d.send(w, client(i, to, packet.ProtoTCP, port, packet.FlagSYN), client(i, to, packet.ProtoTCP, port,
			packet.FlagACK), client(i, to, packet.ProtoTCP, port, packet.FlagACK))
	}
	for i := (step - age) * n; i >= 0 && i < (step-age+1)*n; i++ {
		d.send(w, client(i, to, packet.ProtoTCP, port, packet.FlagFIN|packet.FlagACK),
			client(i, to, packet.ProtoTCP, port, packet.FlagACK))
	}
}

// TestBytesOfConnection: what a TCP connection takes on the wire, from its SYN until its entry has ended.
func TestBytesOfConnection(t *testing.T) {
	for mode, key := range modes {
		for name, c := range map[string]struct {
			to   netip.Addr
			port uint16
			bar  float64
		}{"ipv4": {vip, 80, barFour}, "ipv6": {vip6, 83, barSix}} {
			t.Run(mode+"/"+name, func(t *testing.T) {
				w := newNetwork(t, 1, 400_000, key)
				d := w.directors[0]
				w.run(5 * second)
				const steps = 40
				before := d.Status().Sent
				for step := range steps {
					d.churn(w, step, c.to, c.port)
					w.run(10)
				}
				w.run(130 * second)
				after := d.Status().Sent
				headers := ethernet + 28
				if c.to.Is6() {
					headers += 20
				}
				bytes := float64(after.Bytes-before.Bytes) + float64(headers)*float64(after.Datagrams-before.Datagrams)
				per := bytes / (steps * perSecond / 10)
				t.Logf("%.1f bytes a connection, %.2f records", per,
					float64(after.Records-before.Records)/(steps*perSecond/10))
				if per > c.bar {
					t.Errorf("%.1f bytes a connection, want %v", per, c.bar)
				}
			})
		}
	}
}

// cpuTime returns the CPU time of this thread.
func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkSecond is the CPU time that the exchange takes in a second with perSecond new connections, in a table with
// 600,000: of the sender, and of the receiver. The sockets are not part of it.
func BenchmarkSecond(b *testing.B) {
	for mode, key := range modes {
		w := newNetwork(b, 2, 1_000_000, key)
		one, two := w.directors[0], w.directors[1]
		w.run(5 * second)
		for i := range 600_000 {
			one.open(w, 1_000_000+i, vip, 81)
			if i%5000 == 0 {
				w.run(10)
			}
		}
		w.run(2 * second)
		step, send, receive := 0, time.Duration(0), time.Duration(0)
		b.Run(mode, func(b *testing.B) {
			runtime.LockOSThread() // b.Run has a goroutine of its own
			defer runtime.UnlockOSThread()
			send, receive = 0, 0
			for b.Loop() {
				for range 10 {
					one.churn(w, step%2000, vip, 80)
					step++
					w.now += 10
					begin := cpuTime(b)
					one.work(w.now, 10)
					sent := cpuTime(b)
					for _, d := range one.box.sent {
						two.take(d, one.addr, w.now)
					}
					two.work(w.now, 10)
					send, receive = send+sent-begin, receive+cpuTime(b)-sent
					one.box.sent, two.box.sent = nil, nil
				}
			}
			b.ReportMetric(send.Seconds()*1000/float64(b.N), "ms-sender/s")
			b.ReportMetric(receive.Seconds()*1000/float64(b.N), "ms-receiver/s")
		})
	}
}

// TestBulk measures a bulk transfer between two directors over a link: of a million connections with VSTUN_FULL=1.
func TestBulk(t *testing.T) {
	n := 50_000
	if testkit.Full() {
		n = 1_000_000
	}
	one, two, size := openPair(t, func(device string, _ netip.Addr) UDPConfig {
		return UDPConfig{Interface: device, Group: netip.MustParseAddr("224.0.0.81"), Port: 8848}
	}, false)
	begin := time.Now()
	clock := func() conntab.Ticks { return conntab.Ticks(time.Since(begin) / (time.Second / conntab.PerSecond)) }
	start := func(l Link) *Sync {
		table := conntab.New(conntab.Config{Max: n + 1000})
		b := balancer.New(table, 1)
		if err := b.Apply(balancer.Config{Services: services()}); err != nil {
			t.Fatal(err)
		}
		return New(Config{Key: key, Size: size}, l, table, b, clock)
	}
	run := func(s *Sync) {
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error)
		go func() { ended <- s.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
	from, to := start(one), start(two)
	for i := range n {
		for _, flags := range []uint8{packet.FlagSYN, packet.FlagACK} {
			if d, reason := from.balancer.Snapshot().Decide(client(i, vip, packet.ProtoTCP, 80, flags),
				clock()); d == nil {
				t.Fatal(reason)
			}
		}
	}
	run(from)
	testkit.Eventually(t, "the director alone is ready", func() bool { return from.Status().Ready })
	began := time.Now()
	run(to)
	testkit.Within(t, "the other has the table", barBulk,
		func() bool { return to.Status().Ready && to.table.Len() == n })
	st := to.Status()
	t.Logf("%d connections in %v; lost %d, recovered %d, resent %d", n, time.Since(began), st.Lost,
		st.Peers[0].Recovered, from.Status().Resent)
}
