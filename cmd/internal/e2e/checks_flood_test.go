package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"vstun/cmd/internal/lab"
)

// overload is a flood beside health checks.
type overload struct {
	name     string
	vips     int
	queues   int
	interval time.Duration
	timeout  time.Duration
	ipv6     bool          // one service more, with an IPv6 VIP
	length   time.Duration // of the flood
}

// fall is the default of checks.
const fall = 3

// outBound is twice the time that a realserver that dies may take until it is out.
func (o *overload) outBound() time.Duration { return 2 * (fall*o.interval + o.timeout) }

// TestChecksInFlood floods a service with more SYNs than the director takes, so that the kernel drops packets at the TUN device. No realserver goes down:
// the director's own overload says nothing of them. One that really dies is out in time. With VSTUN_FULL=1 it is all combinations, each for a minute.
func TestChecksInFlood(t *testing.T) {
	needTool(t, "nginx", "nginx-light")
	list := []overload{
		{name: "short", vips: 10, queues: 2, interval: time.Second, timeout: 900 * time.Millisecond, ipv6: true,
			length: short(15*time.Second, 10*time.Second)},
	}
	if os.Getenv("VSTUN_FULL") != "" {
		list = nil
		for _, interval := range []time.Duration{time.Second, 5 * time.Second} {
			for _, vips := range []int{1, 10} {
				for _, queues := range []int{1, 2} {
					list = append(list, overload{name: fmt.Sprintf("interval %v, %d VIPs, %d queues", interval, vips, queues),
						vips: vips, queues: queues, interval: interval, timeout: min(interval-100*time.Millisecond, 2*time.Second),
						length: time.Minute})
				}
			}
		}
	}
	for _, o := range list {
		t.Run(o.name, func(t *testing.T) { testChecksInFlood(t, &o) })
	}
}

func testChecksInFlood(t *testing.T, o *overload) {
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
	s.startAgents("")
	var servers []*lab.Process
	for _, web := range s.Webs {
		servers = append(servers, s.nginxProcess(web))
	}
	s.startWrittenDirector(text)
	s.awaitUp(len(s.Webs))

	f := s.startFlood(80, floodOfChecks())
	defer f.end()
	s.mustStayUp(f, o.length)

	begin := time.Now()
	if err := servers[1].Stop(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the realserver that has died is out", o.outBound()+room, func() bool { return s.downCount() > 0 })
	if took := time.Since(begin); took > o.outBound() {
		t.Errorf("a realserver that died was out after %v, want %v", took, o.outBound())
	} else {
		t.Logf("a realserver that died was out after %v", took)
	}
	if out := s.director.Output(); strings.Contains(out, s.Webs[0].Addr.String()) && strings.Contains(out, "realserver down") && s.up(0) != "up" {
		t.Errorf("the other realserver is down, too")
	}
}

// floodOfChecks is in SYNs a second.
func floodOfChecks() int {
	if raceDetector {
		return 50_000
	}
	return 200_000
}

// floodedTOML is a service of HTTP at these VIPs with a realserver on each web server.
func (s *site) floodedTOML(name, vips string, o *overload) string {
	text := fmt.Sprintf("[[service]]\nname = %q\nvip = [%s]\nprotocol = \"tcp\"\nport = 80\ncheck = { type = \"http\", interval = %q, timeout = %q }\n",
		name, vips, o.interval, o.timeout)
	for _, web := range s.Webs {
		text += fmt.Sprintf("[[service.realserver]]\naddress = %q\n", web.Addr)
	}
	return text
}

// mustStayUp wants that no realserver goes down for so long, while the kernel drops half of the flood at the TUN device.
func (s *site) mustStayUp(f *flood, length time.Duration) {
	s.t.Helper()
	before := s.director.balance()
	begin := time.Now()
	for ; time.Since(begin) < length; time.Sleep(tick) {
		if n := s.downCount(); n > 0 {
			break
		}
	}
	st := s.director.balance()
	lost, read := st.Overruns-before.Overruns, st.In.Packets-before.In.Packets
	s.t.Logf("within %v the kernel dropped %d packets at the TUN device, the director read %d", time.Since(begin).Round(time.Millisecond), lost, read)
	for _, svc := range st.Services {
		for _, r := range svc.Realservers {
			s.t.Logf("service %s: realserver %s: %s: %s", svc.Name, r.Address, r.Health, r.Check.Reason)
		}
	}
	if n := strings.Count(s.director.Output(), "realserver down"); n > 0 {
		s.t.Errorf("%d times a realserver went down in the flood:\n%s", n, s.director.Output())
	}
	if lost < read/4 {
		s.t.Errorf("the kernel dropped %d packets at the TUN device, the director read %d: that was no overload", lost, read)
	}
}

// downCount is how many realservers of all services are down.
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

// up is the health of a realserver of the first service.
func (s *site) up(realserver int) string {
	s.t.Helper()
	return s.director.balance().Services[0].Realservers[realserver].Health
}

// awaitUp waits until all realservers of all services are up.
func (s *site) awaitUp(int) {
	s.t.Helper()
	eventually(s.t, "all realservers are up", 3*soon, func() bool { return s.downCount() == 0 })
}
