package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/gopacket/layers"

	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// smallTable is for tests with many starts of a director, each of which looks at every place of the former table.
const smallTable = "[connections]\nmax = 10_000\n"

// TestKeptConnections ends the director by SIGTERM and by kill -9 while downloads run, and starts it again by hand: no
// download breaks, idle connections stay at their realservers, and turns and counts go on. With nat there are downloads
// at kill -9 alone: SIGTERM puts the host back, and replies that reach a client as they are end the connection. With
// VSTUN_FULL=1 (`make long`) there are 50 downloads, else 20.
func TestKeptConnections(t *testing.T) {
	byMethod(t, func(t *testing.T, m method, ipv6 bool) {
		s := newMethodSite(t, m, ipv6, 2, nil)
		s.startAgents("")
		more := ""
		if m != tun {
			more = smallTable
		}
		s.startDirector(more, service{"tcp", "80", "rr", []int{1, 1}}, service{"tcp", "81", "rr", []int{1, 1}})
		for _, web := range s.Webs {
			s.namedEcho(web, 80)
			s.pacedDownloads(web, 81, 4096, 20*time.Millisecond)
		}
		idle, turn := map[net.Conn]string{}, []string{}
		for range 3 {
			c, server := s.whoAnswers(anyPort(s.Client.Addr), s.at(80))
			idle[c] = server
			turn = append(turn, server)
		}
		var half *halfOpen
		if !ipv6 { // rawSender has none
			half = s.halfOpen(81)
		}
		downloads := &downloads{}
		for _, end := range []struct {
			name string
			end  func()
			with bool // downloads
		}{{"SIGTERM", s.director.stop, m != nat}, {"kill -9", s.director.kill, true}} {
			if end.with && downloads.n == 0 {
				downloads = s.download(81, long(50, 20, 10))
			}
			downloads.mustGoOn(t, "before "+end.name, 1<<16)
			at := ""
			if half != nil {
				half.send()
				at = half.realserver()
			}
			before := s.director.balance()
			if !end.with {
				s.mustBeAcknowledged()
			}
			end.end()
			s.director.start()
			downloads.mustGoOn(t, "after "+end.name, 1<<16)
			for c, server := range idle {
				mustStay(t, c, server)
			}
			if half != nil {
				if now := half.realserver(); now != at {
					t.Errorf("after %s: a half-open connection is at %s, before at %s", end.name, now, at)
				}
			}
			s.mustBeServedBy(80, turn[1])
			s.mustBeServedBy(80, turn[0])
			after := s.director.balance()
			if a := after.Connections.Adopted; a == nil || a.Connections < len(idle)+downloads.n || a.Dropped > 0 {
				t.Errorf("after %s: adopted %+v", end.name, a)
			}
			if len(after.Drops) != 0 || after.In.Packets <= before.In.Packets || after.Out.Bytes <= before.Out.Bytes {
				t.Errorf("after %s: in %+v, out %+v, dropped %v; before: in %+v, out %+v", end.name, after.In,
					after.Out, after.Drops, before.In, before.Out)
			}
			for i, svc := range after.Services {
				for j, r := range svc.Realservers {
					was := before.Services[i].Realservers[j]
					if r.Connections < was.Connections || r.Forwarded.Packets < was.Forwarded.Packets {
						t.Errorf("after %s: realserver %s has %d connections and %+v, before %d and %+v", end.name,
							r.Address, r.Connections, r.Forwarded, was.Connections, was.Forwarded)
					}
				}
			}
		}
	})
}

// mustBeAcknowledged waits until the clients have acknowledged all that the servers sent. They do so up to 40 ms later.
func (s *site) mustBeAcknowledged() {
	s.t.Helper()
	testkit.Within(s.t, "all is acknowledged", soon, func() bool {
		return !slices.ContainsFunc(s.Webs, func(web *lab.Host) bool {
			got := run(s.t, web, exec.Command("ss", "-Htin"))
			if got.code != 0 {
				s.t.Fatalf("ss: exit status %d: %s", got.code, got.stderr)
			}
			return strings.Contains(got.stdout, "unacked:")
		})
	})
}

// TestLeftConnections: downloads whose realserver, or whose port of the VIP, has left the file go on after a kill, and
// after another one, as they do after a reload.
func TestLeftConnections(t *testing.T) {
	byMethod(t, func(t *testing.T, m method, ipv6 bool) {
		s := newMethodSite(t, m, ipv6, 2, nil)
		s.startAgents("")
		both := service{"tcp", "81", "rr", []int{1, 1}}
		s.startDirector(smallTable, both)
		for _, web := range s.Webs {
			s.pacedDownloads(web, 81, 4096, 20*time.Millisecond)
		}
		downloads := s.download(81, 10)
		both.weights[1] = -1
		text := s.directorTOML(s.director.socket, smallTable, both)
		s.director.configure(strings.Replace(text, "port = 81\n", "port = 82\n", 1))
		s.mustReload()
		downloads.mustGoOn(t, "after the reload", 1<<16)
		for range 2 {
			s.director.kill()
			s.director.start()
			downloads.mustGoOn(t, "after kill -9", 1<<16)
			if st := s.director.balance(); st.Connections.Adopted == nil ||
				st.Connections.Adopted.Connections < downloads.n || len(st.Drops) > 0 {
				t.Errorf("adopted %+v, dropped %v", st.Connections.Adopted, st.Drops)
			}
		}
	})
}

// halfOpen sends SYNs of one connection to a port of the VIP. The client never gets the SYN-ACKs.
type halfOpen struct {
	s      *site
	client netip.Addr
	syn    []byte
	sender *rawSender
}

func (s *site) halfOpen(port uint16) *halfOpen {
	s.t.Helper()
	for _, web := range s.Webs {
		s.swallow(web, floodNetwork)
	}
	client := floodNetwork.Addr().Next()
	syn := build(s.t, ip4(client, s.VIP, layers.IPProtocolTCP),
		&layers.TCP{SrcPort: 4000, DstPort: layers.TCPPort(port), Seq: 1, SYN: true, Window: 65535})
	return &halfOpen{s, client, syn, s.rawSender(s.Router)}
}

// send sends a SYN.
func (h *halfOpen) send() { h.sender.inject(h.syn) }

// realserver waits for the connection and returns its realserver.
func (h *halfOpen) realserver() (address string) {
	h.s.t.Helper()
	testkit.Within(h.s.t, "there is the half-open connection, and no other", soon, func() bool {
		all := h.s.connections("--client", h.client.String())
		if len(all) == 1 && all[0].State == "SYN_RECV" {
			address = all[0].Realserver
		}
		return address != ""
	})
	return address
}

// downloads are downloads without end from servers of pacedDownloads.
type downloads struct {
	n     int
	read  []atomic.Int64 // bytes of each, all as they were sent
	stall atomic.Int64   // the longest time without bytes of one, in nanoseconds
	mu    sync.Mutex
	errs  []error
}

// pacedDownloads sends n bytes of the stream to each client every period.
func (s *site) pacedDownloads(h *lab.Host, port uint16, n int64, period time.Duration) {
	s.t.Helper()
	s.serveTCP(h, s.behind(h, port), func(c net.Conn) {
		every := time.NewTicker(period)
		defer every.Stop()
		for same := stream(); ; <-every.C {
			if _, err := io.CopyN(c, same, n); err != nil {
				return
			}
		}
	})
}

// download starts n downloads from a port of the VIP, which end with the test.
func (s *site) download(port uint16, n int) *downloads {
	s.t.Helper()
	d := &downloads{n: n, read: make([]atomic.Int64, n)}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	s.t.Cleanup(all.Wait)
	s.t.Cleanup(cancel)
	for i := range n {
		c := s.dial("tcp", port)
		context.AfterFunc(ctx, func() { c.Close() })
		all.Go(func() {
			want, got := make([]byte, 4096), make([]byte, 4096)
			for same := stream(); ; {
				begin := time.Now()
				k, err := c.Read(got)
				longest(&d.stall, time.Since(begin))
				_, _ = io.ReadFull(same, want[:k]) // never fails
				if err == nil && !bytes.Equal(want[:k], got[:k]) {
					err = fmt.Errorf("other bytes than were sent, after %d", d.read[i].Load())
				}
				if ctx.Err() != nil {
					return
				}
				if err != nil {
					d.mu.Lock()
					d.errs = append(d.errs, fmt.Errorf("download %d, after %d bytes: %w", i, d.read[i].Load(), err))
					d.mu.Unlock()
					return
				}
				d.read[i].Add(int64(k))
			}
		})
	}
	return d
}

// longest makes n the largest of itself and d.
func longest(n *atomic.Int64, d time.Duration) {
	for was := n.Load(); int64(d) > was && !n.CompareAndSwap(was, int64(d)); was = n.Load() {
	}
}

// mustGoOn fails the test unless each download gets at least more further bytes.
func (d *downloads) mustGoOn(t *testing.T, when string, more int64) {
	t.Helper()
	enough := make([]int64, d.n)
	for i := range enough {
		enough[i] = d.read[i].Load() + more
	}
	testkit.Within(t, when+" all downloads go on", 4*soon, func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		for _, err := range d.errs {
			t.Fatalf("%s: %d downloads are broken: %v", when, len(d.errs), err)
		}
		for i := range enough {
			if d.read[i].Load() < enough[i] {
				return false
			}
		}
		return true
	})
}
