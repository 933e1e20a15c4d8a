package page

import (
	"context"
	"fmt"
	"maps"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/daemon"
	"vstun/cmd/internal/page/pagetest"
)

// browser is the browser of all tests.
var browser = sync.OnceValues(pagetest.Start)

var browserUsed atomic.Bool

func TestMain(m *testing.M) {
	code := m.Run()
	if browserUsed.Load() {
		if b, err := browser(); err == nil {
			b.Close()
		}
	}
	os.Exit(code)
}

// source is a status that tests change.
type source struct {
	mu sync.Mutex
	st api.DirectorStatus
}

func (s *source) status() api.DirectorStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.st // deep, as the program's own is
	st.Drops = maps.Clone(st.Drops)
	st.Services = slices.Clone(st.Services)
	for i := range st.Services {
		st.Services[i].Realservers = slices.Clone(st.Services[i].Realservers)
	}
	return st
}

func (s *source) change(fn func(*api.DirectorStatus)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn(&s.st)
}

// serve serves the page until the test ends, or stop is called.
func serve(t *testing.T, p *Page) (url string, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	server := httptest.NewServer(p.Handler())
	stop = sync.OnceFunc(func() {
		server.CloseClientConnections()
		server.Close()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return server.URL + "/", stop
}

// open shows the page in the browser.
func open(t *testing.T, url string, look pagetest.Look) *pagetest.Tab {
	t.Helper()
	b, err := browser()
	if pagetest.Missing(err) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	browserUsed.Store(true)
	tab := b.Open(t, url, look)
	tab.Wait("the page is live", "document.body.dataset.state === 'live' && document.querySelector('#services tbody')")
	return tab
}

// small is the status of a small director with every feature.
func small() api.DirectorStatus {
	rs := func(address string, weight int, health, reason string) api.Realserver {
		r := api.Realserver{Address: address, Encap: "ipip", Weight: weight, Effective: weight, Health: health,
			Active: 41 * weight, Inactive: 160 * weight,
			Connections: uint64(123_456 * weight), Forwarded: api.Traffic{Packets: uint64(1_234_567 * weight),
				Bytes: uint64(812_345_678 * weight)}}
		if health == "up" || health == "down" {
			r.Check = &api.Check{Type: "http", Via: "tunnel", Reason: reason, Last: 2.2, Duration: 0.0034,
				Since: 7300}
		}
		if health == "down" {
			r.Effective, r.Active = 0, 0
		}
		return r
	}
	return api.DirectorStatus{
		Program: "director", Version: "v1.4.0", Pid: 4711, Uptime: 275_000, TUN: "vs0", Queues: 4,
		Offloads: "csum tso uso",
		In:       api.Traffic{Packets: 98_765_432, Bytes: 12_345_678_901}, Out: api.Traffic{Packets: 98_700_000,
			Bytes: 14_345_678_901},
		Drops:       map[string]uint64{"no_service": 1234, "too_big": 17, "send_error": 3},
		Connections: api.Connections{Count: 48_213, Max: 1_000_000, HalfOpen: 312, HalfOpenMax: 250_000},
		Services: []api.Service{
			{Name: "web", VIPs: []string{"198.51.100.80", "2001:db8:100::80"}, Protocol: "tcp",
				Ports: []string{"80", "443"}, Scheduler: "wrr", Health: "up", Quorum: 1, WeightUp: 5,
				Realservers: []api.Realserver{rs("10.0.11.2", 2, "up", "HTTP 200"), rs("10.0.12.2", 3, "up",
					"HTTP 200"), rs("10.0.13.2", 2, "down", "connect to 198.51.100.80:80: connection refused"),
					rs("10.0.14.2", 0, "up", "HTTP 200")}},
			{Name: "dns", VIPs: []string{"198.51.100.53"}, Protocol: "udp", Ports: []string{"53"}, Scheduler: "rr",
				OnePacket: true,
				Realservers: []api.Realserver{rs("fd00:0:11::2", 1, "unchecked", ""),
					rs("fd00:0:12::2", 1, "unchecked", "")}},
			{Name: "mail", VIPs: []string{"198.51.100.25"}, Protocol: "tcp", Ports: []string{"25"}, Scheduler: "wlc",
				Persistence: &api.Persistence{Timeout: 300, Netmask: 24, Netmask6: 128}, Health: "down", Quorum: 2,
				WeightUp: 0,
				Sorry:    true, Realservers: []api.Realserver{rs("10.0.21.2", 1, "down",
					"no answer through the tunnel within 2 s"), rs("10.0.22.2", 1, "down",
					"no answer through the tunnel within 2 s")}},
		},
		Announced: []api.Announced{{VIP: "198.51.100.25", Devices: []string{"eth0"}},
			{VIP: "198.51.100.80", Devices: []string{"eth0", "eth1"},
				Conflicts: []api.Conflict{{Device: "eth1", MAC: "02:00:00:00:00:09", Packets: 3, Last: 7300}}}},
		Leaving: api.Leaving{Realservers: 1, Connections: 19, List: []api.LeavingRealserver{{Service: "web",
			Address: "10.0.15.2", Forward: "nat", Active: 12, Inactive: 7}}},
	}
}

// large is the status of a director with many services and realservers.
func large(services, realservers int) api.DirectorStatus {
	st := small()
	st.Services = nil
	for i := range services {
		svc := api.Service{Name: fmt.Sprintf("service-%04d", i),
			VIPs: []string{fmt.Sprintf("198.51.%d.%d", 100+i/250, i%250+1)}, Protocol: "tcp", Ports: []string{"443"},
			Scheduler: "wlc", Health: "up", Quorum: 1}
		for j := range realservers {
			r := api.Realserver{Address: fmt.Sprintf("10.%d.%d.%d", i/250, i%250, j+1), Encap: "gue", Weight: 10,
				Effective: 10, Health: "up", Active: i*j%97 + 3, Inactive: i % 89,
				Check: &api.Check{Type: "tcp", Via: "tunnel", Reason: "connected", Last: 1, Duration: 0.001,
					Since: 86_400}}
			if (i*realservers+j)%97 == 96 {
				r.Health, r.Effective, r.Check.Reason = "down", 0, "connection timed out"
			}
			svc.Realservers = append(svc.Realservers, r)
		}
		st.Services = append(st.Services, svc)
	}
	return st
}

// move adds the traffic of a moment.
func move(st *api.DirectorStatus, n uint64) {
	for i := range st.Services {
		for j := range st.Services[i].Realservers {
			r := &st.Services[i].Realservers[j]
			if r.Health == "down" {
				continue
			}
			k := n * uint64(3+(i+j)%7)
			r.Connections += k
			r.Forwarded.Packets += 11 * k
			r.Forwarded.Bytes += 11 * 420 * k
			st.In.Packets += 11 * k
			st.In.Bytes += 11 * 420 * k
		}
	}
	st.Out = st.In
}

func number(t *testing.T, text string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(strings.ReplaceAll(text, ",", ""), 10, 64)
	if err != nil {
		t.Fatalf("%q is no number", text)
	}
	return n
}

// TestPictures shows the page with history, in each of its forms, for people to look at.
func TestPictures(t *testing.T) {
	if os.Getenv(pagetest.Pictures) == "" {
		t.Skipf("takes pictures: say where to in %s", pagetest.Pictures)
	}
	for _, size := range []struct {
		name string
		st   api.DirectorStatus
	}{{"small", small()}, {"large", large(100, 10)}} {
		src := &source{st: size.st}
		p := New(src.status)
		i := 0
		pass := func(n uint64) {
			i++
			src.change(func(st *api.DirectorStatus) {
				move(st, n*uint64(40+i%7*3+i/8%13*5+20*(i/60%2)))
				st.Connections.Count += i%17*20 - 160
				if i > 2*steps-30 {
					st.Drops["no_service"] += uint64(i % 50)
				}
			})
		}
		for at := time.Now().Add(-2 * steps * stepTime); time.Since(at) > stepTime; at = at.Add(stepTime) {
			pass(5)
			p.take(at)
		}
		url, _ := serve(t, p)
		ctx, cancel := context.WithCancel(t.Context())
		var moving sync.WaitGroup
		moving.Go(func() { _ = daemon.Every(time.Second/5, func() { pass(1) })(ctx) })
		for name, look := range map[string]pagetest.Look{
			"light": {Width: 1440, Height: 1000}, "dark": {Width: 1440, Height: 1000, Dark: true},
			"tablet": {Width: 900, Height: 1100}, "phone": {Width: 390, Height: 844, Phone: true},
			"phone-dark": {Width: 390, Height: 844, Phone: true, Dark: true},
		} {
			tab := open(t, url, look)
			tab.Wait("charts are drawn", "document.querySelector('#tile-packets .line').getAttribute('d')")
			tab.Wait("rates are there", "document.querySelector('#tile-packets b').textContent !== '0'")
			tab.Picture(size.name + "-" + name)
			tab.Do("scrollTo(0, innerHeight * .8)")
			tab.Picture(size.name + "-" + name + "-below")
		}
		cancel()
		moving.Wait()
	}
}
