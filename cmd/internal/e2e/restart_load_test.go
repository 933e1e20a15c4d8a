package e2e

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vstun/testdata/testkit"
)

// TestRestartUnderLoad: downloads and requests run while systemd restarts the director, and while it starts a director
// that was killed. None breaks or fails. With VSTUN_FULL=1 (`make restarts`) there are 1,000 downloads and 500 requests
// a second, and none of them stalls for more than half a second: the machine should have nothing else to do.
func TestRestartUnderLoad(t *testing.T) {
	full := os.Getenv("VSTUN_FULL") != ""
	downloads, rate, rounds := 100, 50, 1
	if full {
		downloads, rate, rounds = 1000, 500, 5
	} else {
		t.Parallel()
	}
	const paced = 200 * time.Millisecond
	u := newUnitSite(t, tun, 2)
	b := u.systemd
	u.startAgents("")
	for _, web := range u.Webs {
		u.namedEcho(web, 80)
		u.pacedDownloads(web, 81, 512, paced)
	}
	b.write("/etc/vstun/director.toml", u.directorTOML("/run/vstun/director.sock", "",
		service{"tcp", "80", "rr", []int{1, 1}}, service{"tcp", "81", "rr", []int{1, 1}}))
	b.run("systemctl", "start", directorUnit)
	d := u.download(81, downloads)
	r := u.startRequestLoad(80, rate)
	for range rounds {
		for _, how := range []string{"restart", "kill -9"} {
			r.mustGoOn(t, how, d)
			r.slowest.Store(0)
			d.stall.Store(0)
			pid := b.property(directorUnit, "MainPID")
			if how == "restart" {
				b.run("systemctl", "restart", directorUnit)
			} else {
				b.run("kill", "-KILL", pid)
			}
			u.mustBeAnew(pid)
			r.mustGoOn(t, "after "+how, d)
			slowest, stall := time.Duration(r.slowest.Load()), time.Duration(d.stall.Load())-paced
			t.Logf("%s: the slowest of %d requests took %v; of %d downloads the longest stall was %v", how,
				r.all.Load(), slowest, d.n, stall)
			if bar := 500 * time.Millisecond; full && max(slowest, stall) > bar {
				t.Errorf("%s: longer than %v", how, bar)
			}
		}
	}
}

// requestLoad is requests to named echo servers, each on a connection of its own.
type requestLoad struct {
	all     atomic.Int64
	slowest atomic.Int64 // from SYN to the answer, in nanoseconds
	mu      sync.Mutex
	errs    []error
}

// startRequestLoad sends so many requests a second to a port of the VIP until the test ends.
func (s *site) startRequestLoad(port uint16, perSecond int) *requestLoad {
	r := &requestLoad{}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	s.t.Cleanup(running.Wait)
	s.t.Cleanup(cancel)
	running.Go(func() {
		ticker := time.NewTicker(time.Second / time.Duration(perSecond))
		defer ticker.Stop()
		for ; ctx.Err() == nil; <-ticker.C {
			running.Go(func() {
				begin := time.Now()
				err := s.requestOnce(ctx, port)
				if ctx.Err() != nil {
					return
				}
				longest(&r.slowest, time.Since(begin))
				r.all.Add(1)
				if err != nil {
					r.mu.Lock()
					r.errs = append(r.errs, err)
					r.mu.Unlock()
				}
			})
		}
	})
	return r
}

// requestOnce sends one request to a named echo server at a port of the VIP.
func (s *site) requestOnce(ctx context.Context, port uint16) error {
	ctx, cancel := context.WithTimeout(ctx, soon)
	defer cancel()
	c, err := s.Client.DialContext(ctx, "tcp", s.at(port))
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if _, err := fmt.Fprintln(c, "hello"); err != nil {
		return err
	}
	_, err = bufio.NewReader(c).ReadString('\n')
	return err
}

// mustGoOn waits until a second's requests and downloads have gone on, and fails the test if one has failed.
func (r *requestLoad) mustGoOn(t *testing.T, when string, d *downloads) {
	t.Helper()
	enough := r.all.Load() + 50
	testkit.Within(t, when+" requests go on", 4*soon, func() bool { return r.all.Load() >= enough })
	d.mustGoOn(t, when, 2048)
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.errs) > 0 {
		t.Fatalf("%s: %d of %d requests have failed: %v", when, len(r.errs), r.all.Load(), r.errs[0])
	}
}
