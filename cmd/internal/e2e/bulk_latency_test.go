package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// barTransfer is the time in which a new peer has a table of a million connections.
const barTransfer = 30 * time.Second

// TestBulkRoundTrip: while a director sends its table of a million connections to a new peer, the round trips of its
// traffic take less than twice as long as without a transfer, at the 99th percentile: on the fast path, and through
// the director. Both directors share the machine with the client and the server.
func TestBulkRoundTrip(t *testing.T) {
	needQuiet(t)
	for _, c := range []struct{ name, more string }{{"fast path", ""}, {"TUN", `fast_path = "off"`}} {
		t.Run(c.name, func(t *testing.T) {
			p := newBulkPair(t, c.more)
			p.fill(1_000_000)
			var quiet, bulk []time.Duration
			for range 3 {
				during := p.transfer()
				without := p.roundTrips(after(15 * time.Second))
				t.Logf("round trips during the transfer: %s; without: %s", percentiles(during), percentiles(without))
				bulk, quiet = append(bulk, during...), append(quiet, without...)
				p.second.kill()
			}
			t.Logf("all during a transfer: %s", percentiles(bulk))
			t.Logf("all without:           %s", percentiles(quiet))
			if was, is := percentile(quiet, 99), percentile(bulk, 99); is > 2*was {
				t.Errorf("the 99th percentile is %v during a transfer, and %v without: want twice that at most", is,
					was)
			}
			if fast := p.first.balance().FastPath; c.more == "" && fast.On && fast.Taken.Packets < uint64(len(bulk)) {
				t.Errorf("%d packets took the fast path, of %d round trips", fast.Taken.Packets, len(bulk)+len(quiet))
			}
		})
	}
}

// bulkPair is two directors. The first one has the VIP, and the second one is started for each transfer.
type bulkPair struct{ *pair }

// newBulkPair starts the first director, with further keys of [director]. Port 80 of the VIP echoes each byte. The
// realserver of port 81 drops all packets.
func newBulkPair(t *testing.T, more string) *bulkPair {
	t.Helper()
	p := &bulkPair{&pair{site: newLANFor(t, tun)}}
	p.startAgent(p.Webs[0], "")
	p.serveTCP(p.Webs[0], p.at(80), func(c net.Conn) { _, _ = io.Copy(c, c) })
	p.command(p.Webs[1], "table ip drops {\nchain drop4 {\ntype filter hook prerouting priority -300\n"+
		"ip protocol 4 drop\n}\n}\n", "nft", "-f", "-")
	key := filepath.Join(p.dir, "sync.key")
	if err := os.WriteFile(key, slices.Repeat([]byte("key "), 8), 0o600); err != nil {
		t.Fatal(err)
	}
	p.first, p.second = p.prepare(p.Director, "director"), p.prepare(p.Backup, "director")
	for i, d := range []*program{p.first, p.second} {
		d.configure(p.directorTOML(d.socket, fmt.Sprintf(`%s
[connections]
max = 1_100_000
keep = ""
[[vrrp]]
name = "VI_1"
interface = "eth0"
router_id = 51
priority = %d
%s
[sync]
peers = [%s]
key = %q
`, more, 150-50*i, p.addresses(), quoted(p.sources), key),
			service{"tcp", "80", "wlc", []int{1}}, service{"tcp", "81", "wlc", []int{-1, 1}}))
	}
	p.director = p.first
	p.first.start()
	p.role(p.first, "master")
	return p
}

// fill gives the first director n connections to port 81, of clients that do not exist.
func (p *bulkPair) fill(n int) {
	p.t.Helper()
	const at = lab.Burst / 2 // connections that are sent at once
	gateway, err := p.Router.MAC(p.Client.Name)
	if err != nil {
		p.t.Fatal(err)
	}
	vip := p.VIP.As4()
	for p.first.balance().Connections.Count < n*99/100 { // a busy machine may drop some
		err := p.Client.Do(func() error {
			b, err := lab.NewBlaster("")
			if err != nil {
				return err
			}
			defer b.Close()
			head := slices.Concat(gateway, b.MAC(), words(unix.ETH_P_IP))
			frames := make([][]byte, 2*at)
			for i := range frames {
				frames[i] = append(slices.Clone(head), make([]byte, tcpHeaders)...)
			}
			for next := 0; next < n; {
				for i := range at {
					k := min(next+i, n-1)
					client := [4]byte{100, 64, byte(k >> 16), byte(k >> 8)}
					port := uint16(1024 + k&0xff)
					segment(frames[2*i][len(head):], client, vip, port, 81, 1, 0, flagSYN, nil)
					segment(frames[2*i+1][len(head):], client, vip, port, 81, 2, 1, flagACK, nil)
				}
				for sent := 0; sent < len(frames); {
					m, err := b.Send(len(frames)-sent, func(i int) []byte { return frames[sent+i] })
					if err != nil {
						return err
					}
					sent += m
				}
				if next += at; next%(8*at) == 0 {
					time.Sleep(2 * time.Millisecond) // 100,000 connections a second
				}
			}
			return nil
		})
		if err != nil {
			p.t.Fatal(err)
		}
	}
}

// given reports whether the second director has the table of the first one.
func (p *bulkPair) given() bool {
	var st api.DirectorStatus
	return p.second.get(&st) == nil && st.Sync != nil && len(st.Sync.Peers) == 1 && st.Sync.Peers[0].Bulk != nil
}

// transfer starts the second director, and returns the round trips while it gets the table.
func (p *bulkPair) transfer() []time.Duration {
	p.t.Helper()
	p.second.start()
	testkit.Eventually(p.t, "a transfer begins", func() bool { return p.first.balance().Sync.Sending })
	begin, before := time.Now(), [2]time.Duration{p.cpu(p.first), p.cpu(p.second)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		every := time.NewTicker(200 * time.Millisecond)
		defer every.Stop()
		for time.Since(begin) < 2*barTransfer && !p.given() {
			<-every.C
		}
	}()
	all := p.roundTrips(ended)
	took := time.Since(begin)
	var share [2]float64 // percents of a core
	for i, d := range []*program{p.first, p.second} {
		share[i] = float64(p.cpu(d)-before[i]) / float64(took) * 100
	}
	p.t.Logf("a transfer of %d connections in %v: %.0f %% of a core at the sender, %.0f %% at the receiver; %d "+
		"datagrams sent again", p.second.balance().Connections.Count, took.Round(time.Millisecond), share[0], share[1],
		p.first.balance().Sync.Resent)
	if took > barTransfer {
		p.t.Errorf("a transfer took %v, want %v at most", took, barTransfer)
	}
	return all
}

// cpu returns the CPU time of a program.
func (p *bulkPair) cpu(of *program) (all time.Duration) {
	p.t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", of.Pid()))
	if err != nil {
		p.t.Fatal(err)
	}
	for _, file := range files {
		var ns int64
		text, err := os.ReadFile(file)
		if err != nil { // the thread has ended
			continue
		}
		if _, err := fmt.Sscan(string(text), &ns); err != nil {
			p.t.Fatal(err)
		}
		all += time.Duration(ns)
	}
	return all
}

// after returns a channel that is closed after d.
func after(d time.Duration) <-chan struct{} {
	done := make(chan struct{})
	time.AfterFunc(d, func() { close(done) })
	return done
}

// roundTrips sends a byte to port 80 of the VIP a thousand times a second, until done is closed, and returns the times
// until it is back. Its blocking calls, in a thread of its own, keep Go's poller out of them.
func (p *bulkPair) roundTrips(done <-chan struct{}) (all []time.Duration) {
	p.t.Helper()
	const unsteady = 200 // round trips, until the kernel has the connection, if it gets any
	err := p.Client.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		limit := unix.NsecToTimeval(int64(soon))
		if err := errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
			unix.Connect(fd, &unix.SockaddrInet4{Port: 80, Addr: p.VIP.As4()})); err != nil {
			return err
		}
		b := []byte{'x'}
		for n := 0; ; n++ {
			select {
			case <-done:
				return nil
			default:
			}
			begin := time.Now()
			if _, err := unix.Write(fd, b); err != nil {
				return err
			}
			m, err := unix.Read(fd, b)
			for err == unix.EINTR { // a signal of Go's runtime
				m, err = unix.Read(fd, b)
			}
			if err != nil || m != 1 {
				return fmt.Errorf("no byte came back: %w", err)
			}
			if n >= unsteady {
				all = append(all, time.Since(begin))
			}
			time.Sleep(time.Until(begin.Add(time.Millisecond)))
		}
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return all
}

// percentile returns a percentile of times.
func percentile(all []time.Duration, n int) time.Duration {
	all = slices.Clone(all)
	slices.Sort(all)
	return all[min(len(all)*n/100, len(all)-1)]
}

// percentiles writes the median, the 90th and 99th percentile, and the longest time.
func percentiles(all []time.Duration) string {
	us := func(n int) string { return percentile(all, n).Round(time.Microsecond).String() }
	return fmt.Sprintf("p50 %s, p90 %s, p99 %s, longest %s, of %d", us(50), us(90), us(99), us(100), len(all))
}
