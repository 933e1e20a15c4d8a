package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"vstun/testdata/testkit"
)

// TestSoak is a director's day within seconds, or within ten minutes with VSTUN_FULL=1 (`make soak`): checks of all
// kinds many times a second, reloads that add, change and remove them, web servers and agents that die and come back,
// and clients all the time. No goroutine, descriptor or memory is left behind.
func TestSoak(t *testing.T) {
	t.Parallel()
	length := long(10*time.Minute, 10*time.Second, 8*time.Second)
	s := newSite(t, 3, nil)
	s.addIPv6()
	const times = `interval = "150ms", timeout = "150ms", rise = 1, fall = 3`
	servers := s.startChecked("", `type = "http", `+times)
	steady := s.checkedTOML("", `type = "http", `+times)
	clients := s.visit(20)
	more := func(vip, protocol, check string, port int) string {
		return fmt.Sprintf("[[service]]\nname = \"more%d\"\nvip = %q\nprotocol = %q\nport = %d\nencap = "+
			"\"gue\"\ncheck = { %s, %s }\nrealserver = [ { address = %q }, { address = %q } ]\n",
			port, vip, protocol, port, check, times, s.Webs[0].Addr, s.Webs[1].Addr6)
	}
	kinds := []string{
		steady + more(s.VIP.String(), "udp", `type = "ping"`, 5000) + more(s.VIP6.String(), "tcp",
			`type = "tcp", port = 80`, 5001),
		steady + more(s.VIP.String(), "udp", `type = "udp", send = "x"`, 5000) + more(s.VIP6.String(), "udp",
			`type = "dns", query = "example.com"`, 5002),
		s.checkedTOML(`on_failure = "drain"`, `type = "tcp", send = "GET / HTTP/1.0\r\n\r\n", expect = "200", `+times),
		s.checkedTOML(fmt.Sprintf("quorum = 3\nsorry_server = %q", "10.0.99.2"),
			`type = "http", via = "direct", `+times),
		steady + more(s.VIP6.String(), "tcp", `type = "exec", command = ["/bin/false"]`, 5003) +
			"[notify]\ncommand = [\"/bin/true\"]\n",
		"[[service]]\nname = \"web\"\nvip = \"" + s.VIP.String() + "\"\nprotocol = \"tcp\"\nport = 80\nrealserver = " +
			"[ { address = \"" + s.Webs[0].Addr.String() + "\" } ]\n",
	}
	round := func(n int) {
		t.Helper()
		s.reloadWith(kinds[n%len(kinds)])
		web := n % len(s.Webs)
		switch n % 4 {
		case 0:
			if err := servers[web].Stop(); err != nil {
				t.Fatal(err)
			}
			servers[web] = s.nginxProcess(s.Webs[web])
		case 2:
			s.agents[web].kill()
			s.agents[web].start()
		}
	}
	settle := func() {
		t.Helper()
		s.reloadWith(steady)
		s.awaitHealth("up up up")
	}
	s.reloadWith(kinds[0])
	testkit.Within(t, "all are up, IPv6's table is there", 2*soon, func() bool {
		for _, svc := range s.director.balance().Services {
			if svc.Health != "up" {
				return false
			}
		}
		return true
	})
	for n := range len(kinds) {
		round(n)
	}
	settle()
	before := s.director.leftovers()
	for range 10 { // checks come and go
		now := s.director.leftovers()
		before = leftovers{min(before.goroutines, now.goroutines), min(before.descriptors, now.descriptors),
			max(before.heap, now.heap)}
	}
	end, rounds := time.Now().Add(length), 0
	for ; time.Now().Before(end); rounds++ {
		round(rounds)
	}
	settle()
	clients.stop()
	var after leftovers
	defer func() { t.Logf("there are %+v, were %+v", after, before) }()
	testkit.Within(t, "all is as it was", 6*soon, func() bool {
		after = s.director.leftovers()
		return after.goroutines <= before.goroutines && after.descriptors <= before.descriptors &&
			after.heap <= before.heap+heapRoom
	})
	t.Logf("%d rounds, %d requests, %d failed", rounds, clients.asked, len(clients.failed))
	if clients.asked == 0 {
		t.Error("no client asked anything")
	}
}

// heapRoom is the allowed difference between two measurements of a director's heap: garbage of the control socket's
// answers, and maps that have grown once.
const heapRoom = 1 << 20

// leftovers is the resources of a program that must not grow over time.
type leftovers struct{ goroutines, descriptors, heap int }

// leftovers measures a program by its profiles.
func (p *program) leftovers() leftovers {
	p.t.Helper()
	number := func(path, pattern string) int {
		p.t.Helper()
		client := http.Client{Timeout: soon, Transport: &http.Transport{DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "unix", p.socket)
			}}}
		resp, err := client.Get("http://control/debug/pprof/" + path)
		if err != nil {
			p.t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			p.t.Fatal(err)
		}
		found := regexp.MustCompile(pattern).FindSubmatch(text)
		if found == nil {
			p.t.Fatalf("%s has no %s:\n%s", path, pattern, strings.ToValidUTF8(string(text[:min(len(text), 500)]), "?"))
		}
		n, err := strconv.Atoi(string(found[1]))
		if err != nil {
			p.t.Fatal(err)
		}
		return n
	}
	return leftovers{number("goroutine?debug=1", `total (\d+)`), p.descriptors(), number("heap?gc=1&debug=1",
		`# HeapAlloc = (\d+)`)}
}
