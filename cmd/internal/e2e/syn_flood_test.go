package e2e

import (
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vstun/testdata/testkit"
)

// TestSYNFlood floods a service with SYNs from random addresses and ports, while 200 clients send requests and another
// one continues an upload. All are served, and the table stays within its bounds.
//
// The flood is as fast as one CPU can make it, faster than the director can read: generator, director, web servers and
// clients share the machine's CPUs, and a third to a half of all packets are lost before the director. With this size
// of the table, a half-open connection lives for a fifth of a second.
//
// On the web servers a blackhole route to the source addresses makes the kernel's reverse-path filter drop the flood
// before TCP. Otherwise it would test their SYN cookies, and their SYN-ACKs would come back to the VIP as ICMP errors.
func TestSYNFlood(t *testing.T) {
	needTool(t, "nginx", "nginx-light")
	const clients = 200
	length, size := short(4*time.Second, 1500*time.Millisecond), short(2_000_000, 1_000_000)
	s := newSite(t, 2, nil)
	for _, web := range s.Webs {
		s.swallow(web, floodNetwork)
	}
	s.startAgents("")
	s.startDirectorWith(`
connections = { max = 200_000, half_open_max = 50_000 }
[[service]]
name = "web"
vip = "198.51.100.80"
protocol = "tcp"
port = 80
realserver = [ { address = "10.0.11.2" }, { address = "10.0.12.2" } ]
[[service]]
name = "upload"
vip = "198.51.100.80"
protocol = "tcp"
port = 81
realserver = [ { address = "10.0.11.2" } ]
`)
	for _, web := range s.Webs {
		s.nginx(web)
	}
	s.acceptUploads(s.Webs[0], 81)
	var others sync.WaitGroup
	defer others.Wait()
	upload := s.dial("tcp", 81)
	if err := upload.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	others.Go(func() {
		answer, err := put(slow{upload}, size)
		if want := fmt.Sprintf("%d bytes, all as they should be", size); answer != want || err != nil {
			t.Errorf("the upload that began before the flood: %q, %v; want %q", answer, err, want)
		}
	})
	testkit.Within(t, "the upload has begun", soon,
		func() bool { return s.director.balance().Services[1].Realservers[0].Forwarded.Packets > 10 })

	watch := s.watchTable()
	defer watch()
	f := s.startFlood(80, rateOfFlood())
	defer f.end()
	testkit.Within(t, "there are as many half-open connections as there may be", soon,
		func() bool { return s.director.balance().Connections.Evicted > 0 })
	served, failed := s.crowd(clients, length)
	// A busy machine needs longer for the same number of SYNs.
	for end := time.Now().Add(time.Minute); s.director.balance().Connections.Evicted < 10_000 &&
		time.Now().Before(end); {
		more, less := s.crowd(clients, time.Second)
		served, failed = served+more, failed+less
	}
	sent, rate, err := f.end()
	if err != nil {
		t.Fatal(err)
	}
	st := s.director.balance()
	t.Logf("%.0f SYNs a second: %d requests were served, %d failed; %d connections evicted, %d overruns, dropped %v",
		rate, served, failed,
		st.Connections.Evicted, st.Overruns, st.Drops)
	if failed*100 > served+failed { // a busy machine has one request of each client
		t.Errorf("%d requests failed, %d were served: want 99 of 100", failed, served)
	}
	if st.Connections.Evicted < 10_000 || sent < 20_000 { // else this was no flood
		t.Errorf("%d connections were evicted by %d SYNs, want at least 10000 by 20000", st.Connections.Evicted, sent)
	}

	if served, failed = s.crowd(clients, 0); failed > 0 {
		t.Errorf("after the flood %d requests failed, %d were served", failed, served)
	}

	now := s.director.balance()
	most, halfOpen := watch()
	t.Logf("at most %d connections, %d of them half-open", most, halfOpen)
	if c := now.Connections; c.Max != 200_000 || c.HalfOpenMax != 50_000 || most > c.Max || halfOpen > c.HalfOpenMax {
		t.Errorf("there were %d connections, %d half-open ones; want at most 200000 (%d by status) and 50000 (%d)",
			most, halfOpen, c.Max, c.HalfOpenMax)
	}
	// A client that answers so late that its half-open connection has been evicted has no connection.
	for reason, n := range now.Drops {
		if reason != "no_connection" && reason != "table_full" {
			t.Errorf("%d packets were dropped as %s", n, reason)
		}
	}
}

// rateOfFlood is in SYNs a second, 0 for no limit. Programs with the race detector can take a fraction only.
func rateOfFlood() int {
	if raceDetector {
		return 20_000
	}
	return 0
}

// crowd lets each client send requests for a time, four a second and at least one, each on a new connection.
func (s *site) crowd(clients int, length time.Duration) (served, failed int) {
	var fine, bad atomic.Int64
	end := time.Now().Add(length)
	browser := s.browser()
	browser.Timeout = 10 * time.Second // a SYN that is lost is sent again after 1, 3 and 7 seconds
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			every := time.NewTicker(time.Second / 4)
			defer every.Stop()
			for {
				if _, err := fetch(browser, "http://"+s.at(80)+"/"); err == nil {
					fine.Add(1)
				} else if bad.Add(1) <= 3 {
					s.t.Logf("a request failed: %v", err)
				}
				if <-every.C; time.Now().After(end) {
					return
				}
			}
		})
	}
	all.Wait()
	return int(fine.Load()), int(bad.Load())
}

// slow is a connection whose sender is limited to 500,000 bytes a second.
type slow struct{ net.Conn }

// Write implements io.Writer.
func (c slow) Write(b []byte) (int, error) {
	time.Sleep(time.Duration(len(b)) * 2 * time.Microsecond)
	return c.Conn.Write(b)
}

// watchTable polls the size of the director's table until the returned function is called. That returns the largest
// size.
func (s *site) watchTable() (end func() (connections, halfOpen int)) {
	s.t.Helper()
	var connections, halfOpen int
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		every := time.NewTicker(tick)
		defer every.Stop()
		for {
			c := s.director.balance().Connections
			connections, halfOpen = max(connections, c.Count), max(halfOpen, c.HalfOpen)
			select {
			case <-stop:
				return
			case <-every.C:
			}
		}
	}()
	return sync.OnceValues(func() (int, int) {
		close(stop)
		<-ended
		return connections, halfOpen
	})
}
