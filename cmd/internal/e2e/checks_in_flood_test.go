package e2e

import (
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// overload is a flood during health checks.
type overload struct {
	name     string
	vips     int
	queues   int
	interval time.Duration
	timeout  time.Duration
	ipv6     bool          // one service more, with an IPv6 VIP
	encap    string        // of the tunnels
	narrow   bool          // the queue of the director's network device is full
	length   time.Duration // of the flood
	full     bool          // the flood comes at 200,000 SYNs a second, on a machine that does nothing else
}

// fall is the default of checks.
const fall = 3

// outBound returns twice the time until a realserver that dies is out.
func (o *overload) outBound() time.Duration { return 2 * (fall*o.interval + o.timeout) }

// TestChecksInFlood floods a service with more SYNs than the director can read, so that the kernel drops packets at the
// TUN device. No realserver goes down for the director's own overload. A realserver that dies is out in time.
// VSTUN_FULL=1 tests a narrow network device, too (`make long`), and all combinations, each for a minute.
func TestChecksInFlood(t *testing.T) {
	needTool(t, "nginx", "nginx-light")
	// a realserver whose checks fail is down after 4 s
	length := long(15*time.Second, 8*time.Second, 8*time.Second)
	list := []overload{
		{name: "10vips", vips: 10, queues: 2, interval: time.Second, timeout: 900 * time.Millisecond, ipv6: true,
			encap:  "ipip",
			length: length},
		{name: "narrow", vips: 10, queues: 1, interval: time.Second, timeout: 900 * time.Millisecond, encap: "gue",
			narrow: true,
			length: length},
	}
	if !full() {
		list = list[:1]
	} else {
		for _, interval := range []time.Duration{time.Second, 5 * time.Second} {
			for _, vips := range []int{1, 10} {
				for _, queues := range []int{1, 2} {
					list = append(list, overload{name: fmt.Sprintf("%v-%dvips-%dqueues", interval, vips, queues),
						vips: vips, queues: queues, interval: interval, timeout: 900 * time.Millisecond,
						encap: "ipip", length: time.Minute, full: !raceDetector})
				}
			}
		}
	}
	for _, o := range list {
		t.Run(o.name, func(t *testing.T) { testChecksInFlood(t, &o) })
	}
}

func testChecksInFlood(t *testing.T, o *overload) {
	if o.narrow {
		needTool(t, "tc", "iproute2")
	}
	s := newSite(t, 2, nil)
	for i := 1; i < o.vips; i++ {
		s.addVIP(netip.AddrFrom4([4]byte{198, 51, 100, byte(80 + i)}))
	}
	text := fmt.Sprintf("director.queues = %d\n", o.queues) + s.floodedTOML("web", quoted(s.vips), o)
	if o.ipv6 {
		s.addIPv6()
		text += s.floodedTOML("web6", fmt.Sprintf("%q", s.VIP6), o)
	}
	for _, web := range s.Webs {
		s.swallow(web, floodNetwork)
	}
	if o.narrow { // pfifo_fast, which the kernel gives network devices, behind what makes the link slow
		s.shell(s.Director, `tc qdisc add dev eth0 root handle 1: tbf rate 4mbit burst 32k limit 1m
			tc qdisc add dev eth0 parent 1:1 handle 2: pfifo_fast`)
	}
	s.startAgents(fmt.Sprintf("encap = [%q]", o.encap))
	var servers []*lab.Process
	for _, web := range s.Webs {
		servers = append(servers, s.nginxProcess(web))
	}
	s.startDirectorWith(text)
	s.awaitUp()

	rate := rateOfFlood()
	if o.full {
		rate = 200_000
	}
	f := s.startFlood(80, rate)
	defer f.end()
	lost, where := s.mustStayUp(o.length), "at the TUN device"
	count := func() { lost += s.mustStayUp(o.length / 3) }
	if o.narrow {
		where = "in the queue of the network device"
		count = func() { s.mustStayUp(o.length / 3); lost = s.lostByQueues(s.Director) }
		lost = s.lostByQueues(s.Director)
	}
	// A busy machine needs longer for as many packets.
	for end := time.Now().Add(2 * time.Minute); lost < 10_000 && !t.Failed() && time.Now().Before(end); {
		count()
	}
	t.Logf("the kernel dropped %d packets %s", lost, where)
	if lost < 10_000 {
		t.Errorf("the kernel dropped %d packets %s, want 10000 at least: that was no overload", lost, where)
	}

	begin := time.Now()
	if err := servers[1].Stop(); err != nil {
		t.Fatal(err)
	}
	testkit.Within(t, "the realserver that has died is out", o.outBound()+room, func() bool {
		return s.downCount() > 0
	})
	if took := time.Since(begin); took > o.outBound() {
		t.Errorf("a realserver that died was out after %v, want %v", took, o.outBound())
	} else {
		t.Logf("a realserver that died was out after %v", took)
	}
	_, came, err := f.end()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%.0f SYNs a second", came)
	if o.full && came < 0.9*float64(rate) {
		t.Errorf("%.0f SYNs a second came, want %d", came, rate)
	}
	if alive := s.director.balance().Services[0].Realservers[0]; alive.Health != "up" {
		t.Errorf("the other realserver is %s: %s", alive.Health, alive.Check.Reason)
	}
}

// lostByQueues returns the packets that the queueing disciplines of a host's network device have dropped.
func (s *site) lostByQueues(h *lab.Host) (n uint64) {
	s.t.Helper()
	out := run(s.t, h, exec.Command("tc", "-s", "qdisc", "show", "dev", "eth0")).stdout
	for _, m := range regexp.MustCompile(`dropped (\d+)`).FindAllStringSubmatch(out, -1) {
		dropped, _ := strconv.ParseUint(m[1], 10, 64)
		n = max(n, dropped)
	}
	return n
}

// floodedTOML returns an HTTP service at these VIPs with a realserver on each web server.
func (s *site) floodedTOML(name, vips string, o *overload) string {
	text := fmt.Sprintf("[[service]]\nname = %q\nvip = [%s]\nprotocol = \"tcp\"\nport = 80\nencap = %q\n"+
		"check = { type = \"http\", interval = %q, timeout = %q }\n", name, vips, o.encap, o.interval, o.timeout)
	for _, web := range s.Webs {
		text += fmt.Sprintf("[[service.realserver]]\naddress = %q\n", web.Addr)
	}
	return text
}

// mustStayUp fails the test if a realserver goes down within the time. It returns the packets that the kernel dropped
// at the TUN devices meanwhile.
func (s *site) mustStayUp(length time.Duration) (lost uint64) {
	s.t.Helper()
	before, former := s.director.balance(), strings.Count(s.director.Output(), "realserver down")
	begin, st, slowest := time.Now(), before, 0.0
	for down := 0; down == 0 && time.Since(begin) < length; time.Sleep(tick) {
		st = s.director.balance()
		for _, svc := range st.Services {
			for _, r := range svc.Realservers {
				slowest = max(slowest, r.Check.Duration)
				if r.Health == "down" {
					down++
				}
			}
		}
	}
	lost = st.Overruns - before.Overruns
	s.t.Logf("within %v the director read %d packets; the slowest check seen took %.3f s",
		time.Since(begin).Round(time.Millisecond),
		st.In.Packets-before.In.Packets, slowest)
	for _, svc := range st.Services {
		for _, r := range svc.Realservers {
			s.t.Logf("service %s: realserver %s: %s: %s", svc.Name, r.Address, r.Health, r.Check.Reason)
		}
	}
	if n := strings.Count(s.director.Output(), "realserver down") - former; n > 0 {
		s.t.Errorf("%d times a realserver went down in the flood:\n%s", n, s.director.Output())
	}
	return lost
}

// downCount returns the number of realservers of all services that are down.
func (s *site) downCount() (n int) {
	s.t.Helper()
	for _, svc := range s.director.balance().Services {
		for _, r := range svc.Realservers {
			if r.Health == "down" {
				n++
			}
		}
	}
	return n
}

// awaitUp waits until all realservers of all services are up.
func (s *site) awaitUp() {
	s.t.Helper()
	testkit.Within(s.t, "all realservers are up", 3*soon, func() bool { return s.downCount() == 0 })
}
