package health

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"vstun/testdata/testkit"
)

// tcpSubject is a realserver of web at that address, checked by connecting to it.
func tcpSubject(at netip.AddrPort, interval time.Duration) Subject {
	return Subject{Service: "web", Realserver: plain(at.Addr()), Targets: []netip.Addr{at.Addr()}, Port: at.Port(),
		Path: Direct{}, Way: "direct",
		Check: &Check{Probe: TCP{}, Interval: interval, Timeout: patience, Rise: 2, Fall: 3}}
}

// log is the changes that a Monitor has reported.
type changeLog struct {
	mu  sync.Mutex
	all []Change
}

func (l *changeLog) add(list []Change) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, list...)
}

func (l *changeLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := ""
	for _, c := range l.all {
		s += fmt.Sprintf("%s %v %v: %s\n", c.Service, c.Realserver.Addr(), c.Up, c.Reason)
	}
	return s
}

func mustSet(t testing.TB, m *Monitor, subjects ...Subject) {
	t.Helper()
	if err := m.Set(subjects); err != nil {
		t.Fatal(err)
	}
	m.Begin()
}

// TestDeadServerIsOut: a realserver that dies is down within fall × interval + timeout, and up again after rise more
// checks. Each change is reported once, with a reason.
func TestDeadServerIsOut(t *testing.T) {
	t.Parallel()
	const interval = 200 * time.Millisecond
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort(l.Addr().String())
	var told changeLog
	m := New(told.add)
	mustSet(t, m, tcpSubject(at, interval))
	if s := m.States()[0]; s.Up || !s.Checked || s.Reason != "" {
		t.Errorf("before the first check: %+v", s)
	}
	run(t, m)
	up := func() bool { return m.States()[0].Up }
	testkit.Eventually(t, "up", up)
	if s := m.States()[0]; s.Reason != "connected" || s.Since.IsZero() || s.Checks < 2 || s.Failures != 0 {
		t.Errorf("up: %+v", s)
	}
	testkit.Eventually(t, "beyond its first checks", func() bool { return m.States()[0].Checks >= 5 })
	died := time.Now()
	_ = l.Close()
	testkit.Eventually(t, "down", func() bool { return !up() })
	down := m.States()[0]
	// a late check is followed by the next one at once
	if bar := 3*interval + down.Duration; down.Since.Sub(died) > bar+patience/10 || down.Since.Sub(died) < interval/2 {
		t.Errorf("down after %v, want at most %v", down.Since.Sub(died), bar)
	}
	if down.Reason != "connection refused" || down.Failures < 3 || time.Since(down.Last) > patience {
		t.Errorf("down: %+v", down)
	}
	if l, err = net.Listen("tcp", at.String()); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	testkit.Eventually(t, "up again", up)
	want := fmt.Sprintf("web %[1]v true: connected\nweb %[1]v false: connection refused\nweb %[1]v true: connected\n",
		at.Addr())
	testkit.Eventually(t, "told", func() bool { return told.String() == want })
}

// TestIntervals: the first checks follow each other within a second, later ones within the interval, and never in much
// less.
func TestIntervals(t *testing.T) {
	for range 1000 {
		now := time.Now()
		target := &target{config: Check{Interval: 5 * time.Second, Rise: 3}, burst: 3, burstInterval: time.Second,
			due: now}
		for i := range 20 {
			was := target.due
			target.due = target.next(was.Add(10 * time.Millisecond))
			gap := target.due.Sub(was)
			switch {
			case i < 2 && gap != time.Second:
				t.Fatalf("check %d comes %v after the one before", i+2, gap)
			case i == 2 && (gap < 500*time.Millisecond || gap > 5*time.Second):
				t.Fatalf("check %d comes %v after the one before", i+2, gap)
			case i > 2 && (gap < 4500*time.Millisecond || gap > 5*time.Second):
				t.Fatalf("check %d comes %v after the one before", i+2, gap)
			}
		}
	}
}

// TestTogether: a check that is due soon starts with the due ones, and its next one is due an interval later. Other
// checks wait.
func TestTogether(t *testing.T) {
	for _, c := range []struct {
		interval, due time.Duration
		starts        bool
	}{
		{time.Second, -time.Second, true},
		{time.Second, together - 5*time.Millisecond, true},
		{100 * time.Millisecond, time.Minute, false},
		{time.Hour, time.Minute, false}, // a twentieth of the interval would be more
	} {
		m := New(func([]Change) {})
		mustSet(t, m, tcpSubject(closed(t), c.interval))
		now := time.Now()
		target := m.queue[0]
		target.due = now.Add(c.due)
		var running sync.WaitGroup
		wait := m.startDue(t.Context(), &running)
		running.Wait()
		after := time.Now()
		if started := target.checks == 1; started != c.starts || !started && (wait > c.due || wait < c.due/2) {
			t.Errorf("%+v: started is %v; the next in %v", c, started, wait)
		}
		if c.starts && target.due.After(after.Add(c.interval)) {
			t.Errorf("%+v: the next one is due %v later", c, target.due.Sub(after))
		}
	}
}

// TestSameCheckIsMadeOnce: services with equal checks share one check, and each gets its result.
func TestSameCheckIsMadeOnce(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	at := listen(t, func(c net.Conn) { asked.Add(1) })
	const services = 20
	var all []Subject
	for i := range services {
		s := tcpSubject(at, 100*time.Millisecond)
		s.Service = fmt.Sprint(i)
		all = append(all, s)
	}
	other := tcpSubject(at, 100*time.Millisecond)
	other.Service, other.Way = "by another way", "other"
	all = append(all, other)
	var told changeLog
	m := New(told.add)
	mustSet(t, m, all...)
	stop := run(t, m)
	testkit.Eventually(t, "all are up", func() bool { return weight(m) == services+1 })
	stop()
	states := m.States()
	made := int64(states[0].Checks + states[services].Checks)
	if states[0].Checks != states[services-1].Checks || asked.Load() > made+2 { // two may have been aborted
		t.Errorf("%d connections, %d checks", asked.Load(), made)
	}
}

// weight returns the number of subjects that are up.
func weight(m *Monitor) (n int) {
	for _, s := range m.States() {
		if s.Up {
			n++
		}
	}
	return n
}

// TestReloadKeepsState: a realserver that is up stays up when a reload changes its checks. Only a check's results take
// it down.
func TestReloadKeepsState(t *testing.T) {
	t.Parallel()
	good, bad := listen(t, silence), closed(t)
	const never = time.Hour
	subject := tcpSubject(good, never)
	subject.Check.Interval = 50 * time.Millisecond
	var told changeLog
	m := New(told.add)
	mustSet(t, m, subject)
	run(t, m)
	testkit.Eventually(t, "up", func() bool { return weight(m) == 1 })
	since, checks := m.States()[0].Since, m.States()[0].Checks
	same := subject
	// equal, not the same
	same.Check = &Check{Probe: TCP{}, Interval: 50 * time.Millisecond, Timeout: patience, Rise: 2, Fall: 3}
	for i, s := range []Subject{
		same,
		withCheck(same, func(c *Check) { c.Interval, c.Rise = never, 10 }),
		withCheck(same, func(c *Check) {
			c.Interval, c.Probe = never,
				HTTP{Path: "/", Status: []StatusRange{{200, 299}}}
		}),
		{Service: "web", Realserver: subject.Realserver},
		withCheck(same, func(c *Check) { c.Interval = never }),
	} {
		mustSet(t, m, s)
		if got := m.States()[0]; !got.Up || !got.Since.Equal(since) || i == 0 && got.Checks < checks ||
			got.Checked != (s.Check != nil) {
			t.Errorf("after reload %d: %+v", i+1, got)
		}
	}
	// One more address to check, where the check fails.
	more := withCheck(same, func(c *Check) { c.Fall = 1 })
	more.Port, more.Targets = bad.Port(), []netip.Addr{bad.Addr(), netip.MustParseAddr("127.0.0.2")}
	mustSet(t, m, more)
	testkit.Eventually(t, "down", func() bool { return weight(m) == 0 })
	if got := m.States()[0].Reason; got != "127.0.0.1: connection refused" && got != "127.0.0.2: connection refused" {
		t.Errorf("reason %q", got)
	}
	// A new service of the same realserver begins as its check says.
	next := withCheck(same, func(c *Check) { c.Interval = never - 1 })
	next.Service = "next"
	mustSet(t, m, next)
	if m.States()[0].Up {
		t.Error("a new one begins up")
	}
	next.Service, next.Check.Up = "up", true
	mustSet(t, m, next)
	if !m.States()[0].Up {
		t.Error("a new one begins down")
	}
}

func withCheck(s Subject, change func(*Check)) Subject {
	c := *s.Check
	change(&c)
	s.Check = &c
	return s
}

// TestPreview: Preview returns the states that Set would give, including the known state of a shared check, and changes
// nothing.
func TestPreview(t *testing.T) {
	t.Parallel()
	const never = time.Hour
	web := tcpSubject(listen(t, silence), never)
	web.Check.Rise = 1
	m := New(func([]Change) {})
	mustSet(t, m, web)
	run(t, m)
	testkit.Eventually(t, "up", func() bool { return weight(m) == 1 })
	before := m.States()
	same, other, unchecked := web, web, Subject{Service: "unchecked", Realserver: web.Realserver}
	same.Service = "same"
	other = withCheck(other, func(c *Check) { c.Interval = never - 1 })
	other.Service = "other"
	next := []Subject{same, other, unchecked}
	previewed, err := m.Preview(next)
	if err != nil {
		t.Fatal(err)
	}
	if got := m.States(); !slices.Equal(got, before) {
		t.Errorf("afterwards the states are %+v, were %+v", got, before)
	}
	for i, want := range []struct{ up, known bool }{{true, true}, {false, false}, {true, true}} {
		if got := previewed[i]; got.Up != want.up || got.Known != want.known {
			t.Errorf("%s: %+v", next[i].Service, got)
		}
	}
	if err := m.Set(next); err != nil {
		t.Fatal(err)
	}
	if got := m.States(); !slices.Equal(got, previewed) {
		t.Errorf("Set gives %+v, Preview %+v", got, previewed)
	}
	faulty := withCheck(web, func(c *Check) { c.Probe = TCP{Expect: "("} })
	if _, err := m.Preview([]Subject{faulty}); err == nil {
		t.Error("a faulty probe is taken")
	}
}

// TestSetRefusesFaultyProbes: Set returns an error and changes nothing.
func TestSetRefusesFaultyProbes(t *testing.T) {
	at := closed(t)
	m := New(func([]Change) {})
	mustSet(t, m, tcpSubject(at, time.Second))
	for _, p := range []Probe{
		TCP{Expect: "("}, UDP{Expect: "("}, HTTP{Path: "x"}, HTTP{Path: "/", Body: "("}, HTTP{Path: "/", TLS: true,
			CA: "none"},
		DNS{Query: "a..b", Type: "A", Rcode: "NOERROR"}, DNS{Query: "a", Type: "B", Rcode: "NOERROR"},
		DNS{Query: "a", Type: "A", Rcode: "OK"},
		TCP{ExpectHex: "0"}, UDP{ExpectHex: "0g"}, File{Path: "x"}, HTTP{Path: "/", TLS: true,
			Cert: "none"}, SMTP{Helo: "a b"}, Exec{}, Exec{Command: []string{"sh"}},
	} {
		s := withCheck(tcpSubject(at, time.Second), func(c *Check) { c.Probe = p })
		s.Service = "other"
		if err := m.Set([]Subject{s}); err == nil {
			t.Errorf("%#v is taken", p)
		}
	}
	if s := m.States(); len(s) != 1 || s[0].Service != "web" {
		t.Errorf("%+v", s)
	}
}

// faulty is a path on which this machine itself fails.
type faulty struct {
	Direct
	call string
	err  syscall.Errno
}

func (f faulty) DialContext(context.Context, string, string) (net.Conn, error) {
	return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError(f.call, f.err)}
}

// TestLocalErrorKeepsRealserver: if the director has no descriptors or no port left, all checks are inconclusive.
func TestLocalErrorKeepsRealserver(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		call   string
		err    syscall.Errno
		reason string
	}{
		{"socket", syscall.EMFILE, "dial tcp: socket: too many open files"},
		{"bind", syscall.EADDRINUSE, "dial tcp: bind: address already in use"}, // all ports are, or in TIME_WAIT
	} {
		s := tcpSubject(closed(t), 20*time.Millisecond)
		s.Path, s.Check.Up = faulty{call: c.call, err: c.err}, true
		told := make(chan Change, 100)
		m := New(func(all []Change) {
			for _, c := range all {
				told <- c
			}
		})
		mustSet(t, m, s)
		run(t, m)
		testkit.Eventually(t, "five checks", func() bool { return m.States()[0].Checks >= 5 })
		testkit.Eventually(t, "it is told", func() bool { return len(told) > 0 })
		if got := <-told; !got.Inconclusive || !got.Up ||
			got.Reason != "not checked, for a fault of this machine: "+c.reason || len(told) > 0 {
			t.Errorf("told of %+v and %d more", got, len(told))
		}
		if got := m.States()[0]; !got.Up || got.Failures < 5 || got.Reason != "not checked, for a fault of this "+
			"machine: "+c.reason {
			t.Errorf("%+v", got)
		}
	}
}

// busy is a path on which this machine itself fails at first.
type busy struct {
	Direct
	fails atomic.Int64
}

func (b *busy) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if b.fails.Add(-1) >= 0 {
		return nil, syscall.EAGAIN
	}
	return b.Direct.DialContext(ctx, network, address)
}

// TestOwnFaultIsNoFirstCheck: a realserver comes up as quickly as others, even if its first checks could not be made
// during a reload.
func TestOwnFaultIsNoFirstCheck(t *testing.T) {
	t.Parallel()
	way := new(busy)
	way.fails.Store(3)
	s := tcpSubject(listen(t, silence), time.Hour)
	s.Path = way
	m := New(func([]Change) {})
	mustSet(t, m, s)
	run(t, m)
	testkit.Eventually(t, "up", func() bool { return weight(m) == 1 })
}

// TestNeverTwoAtOnce: a check that takes its whole timeout ends before the next one begins. No check runs after Run has
// returned, or after its subject is gone.
func TestNeverTwoAtOnce(t *testing.T) {
	t.Parallel()
	var open counted
	s := withCheck(tcpSubject(listen(t, silence), 20*time.Millisecond), func(c *Check) {
		c.Probe,
			c.Timeout = TCP{Expect: "never"}, 20*time.Millisecond
	})
	s.Path = &open
	m := New(func([]Change) {})
	mustSet(t, m, s)
	stop := run(t, m)
	testkit.Eventually(t, "twenty checks", func() bool { return m.States()[0].Checks >= 20 })
	if got := open.most.Load(); got != 1 {
		t.Errorf("%d checks at once", got)
	}
	mustSet(t, m, withCheck(s, func(c *Check) { c.Timeout, c.Interval = time.Hour, time.Hour }))
	testkit.Eventually(t, "one that hangs", func() bool { return open.now.Load() == 1 })
	mustSet(t, m)
	testkit.Eventually(t, "it is given up", func() bool { return open.now.Load() == 0 })
	mustSet(t, m, withCheck(s, func(c *Check) { c.Timeout, c.Interval = time.Hour, time.Hour }))
	testkit.Eventually(t, "one that hangs", func() bool { return open.now.Load() == 1 })
	stop()
	if got := open.now.Load(); got != 0 {
		t.Errorf("%d checks go on after Run", got)
	}
}

// counted is a direct path that counts its connections.
type counted struct {
	Direct
	now, most atomic.Int64
}

func (p *counted) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := p.Direct.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	p.most.Store(max(p.most.Load(), p.now.Add(1)))
	return &countedConn{TCPConn: c.(*net.TCPConn), of: p}, nil
}

type countedConn struct {
	*net.TCPConn
	of *counted
}

func (c *countedConn) Close() error {
	c.of.now.Add(-1)
	return c.TCPConn.Close()
}

// TestSlowListener: checks go on while changed blocks, and no change is lost.
func TestSlowListener(t *testing.T) {
	t.Parallel()
	at := listen(t, silence)
	release := make(chan struct{})
	var told changeLog
	m := New(func(list []Change) {
		<-release
		told.add(list)
	})
	const n = 50
	var all []Subject
	for i := range n {
		s := tcpSubject(at, 50*time.Millisecond)
		s.Service = fmt.Sprint(i)
		all = append(all, s)
	}
	mustSet(t, m, all...)
	run(t, m)
	testkit.Eventually(t, "all are up", func() bool { return weight(m) == n })
	checks := m.States()[0].Checks
	testkit.Eventually(t, "checks go on", func() bool { return m.States()[0].Checks > checks+3 })
	close(release)
	testkit.Eventually(t, "all are told", func() bool {
		told.mu.Lock()
		defer told.mu.Unlock()
		return len(told.all) == n
	})
}

// TestChurn: thousands of checks of every kind run while the subjects change all the time, servers hang and programs
// are killed. Afterwards no goroutine or descriptor is left.
func TestChurn(t *testing.T) {
	servers := []netip.AddrPort{closed(t), closedUDP(t), listen(t, silence),
		listen(t, says("HTTP/1.1 200 OK\r\n\r\nx")), listen(t, reset), datagrams(t, "x"), nameServer(t, "udp", zone)}
	probes := []Probe{TCP{}, TCP{Send: "x", Expect: "y"}, HTTP{Path: "/", Status: []StatusRange{{200, 299}}, Body: "x"},
		HTTP{TLS: true, Path: "/"},
		DNS{Query: "www.example.com", Type: "A", Rcode: "NOERROR"}, UDP{Send: "x", Expect: "x"}, SMTP{}, Ping{},
		shell("echo fine"), shell("sleep 10")}
	m := New(func([]Change) {})
	goroutines, fds := runtime.NumGoroutine(), testkit.Descriptors(t, "")
	var before, after runtime.MemStats
	stop := run(t, m)
	length := 6 * time.Second
	if testing.Short() {
		length = 2 * time.Second
	}
	checks := func() (n uint64) {
		for _, s := range m.States() {
			n += s.Checks
		}
		return n
	}
	r := rand.New(rand.NewPCG(1, 2))
	var made uint64
	sets := 0
	round := func(until time.Time) {
		for time.Now().Before(until) {
			var all []Subject
			for i := range 40 {
				at := servers[r.IntN(len(servers))]
				s := withCheck(tcpSubject(at, 100*time.Millisecond), func(c *Check) {
					c.Probe, c.Timeout = probes[r.IntN(len(probes))], time.Duration(10+r.IntN(90))*time.Millisecond
				})
				s.Service = fmt.Sprint(i)
				all = append(all, s)
			}
			mustSet(t, m, all...)
			sets++
			time.Sleep(time.Duration(r.IntN(100)) * time.Millisecond)
			made += checks()
		}
	}
	begin := time.Now()
	round(begin.Add(length / 2))
	mustSet(t, m)
	noneLeft(t, goroutines+2, fds) // Run's own
	runtime.GC()
	runtime.GC() // a sync.Pool takes two
	runtime.ReadMemStats(&before)
	round(begin.Add(length))
	mustSet(t, m)
	noneLeft(t, goroutines+2, fds)
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 1<<20 {
		t.Errorf("%d bytes more than half way", grown)
	}
	stop()
	noneLeft(t, goroutines, fds)
	t.Logf("%d checks, %d changes of the configuration", made, sets)
	if made < 50 {
		t.Errorf("only %d checks", made)
	}
}

// firsts returns the first changes in l, each of which must occur once: "web 127.0.0.1 true: connected", in any order.
func (l *changeLog) firsts() map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := map[string]int{}
	for _, c := range l.all {
		if c.First {
			all[fmt.Sprintf("%s %v %v: %s", c.Service, c.Realserver.Addr(), c.Up, c.Reason)]++
		}
	}
	return all
}

// TestFirstState: the first state of each subject is reported once, with a reason and the time. This holds for each
// initial state, and for subjects that a reload adds. The known state of a shared check is reported at once.
func TestFirstState(t *testing.T) {
	t.Parallel()
	good, bad := listen(t, silence), closed(t)
	named := func(name string, at netip.AddrPort, up bool) Subject {
		s := withCheck(tcpSubject(at, 20*time.Millisecond), func(c *Check) { c.Up = up })
		s.Service = name
		return s
	}
	both := named("two places, one bad", bad, false)
	both.Targets = append(both.Targets, netip.MustParseAddr("127.0.0.2"))
	unchecked := Subject{Service: "unchecked", Realserver: plain(netip.MustParseAddr("127.0.0.1"))}
	subjects := []Subject{named("down, is up", good, false), named("up, is up", good, true),
		named("down, is down", bad, false), named("up, is down", bad, true), both, unchecked}
	want := map[string]int{}
	for line, up := range map[string]bool{"down, is up": true, "up, is up": true, "down, is down": false,
		"up, is down": false} {
		reason := "connected"
		if !up {
			reason = "connection refused"
		}
		want[fmt.Sprintf("%s 127.0.0.1 %v: %s", line, up, reason)] = 1
	}
	want["unchecked 127.0.0.1 true: no check"] = 1
	var told changeLog
	m := New(told.add)
	mustSet(t, m, subjects...)
	run(t, m)
	complete := func() bool {
		got := told.firsts()
		for line := range want {
			if got[line] == 0 {
				return false
			}
		}
		const both = "two places, one bad 127.0.0.1 false: "
		return got[both+"127.0.0.1: connection refused"]+got[both+"127.0.0.2: connection refused"] == 1
	}
	testkit.Eventually(t, "all first states are told", complete)

	late := named("late", good, false)
	subjects = append(subjects, late, Subject{Service: "unchecked, late", Realserver: late.Realserver},
		named("late, its check is known", good, false))
	want["late 127.0.0.1 true: connected"], want["unchecked, late 127.0.0.1 true: no check"] = 1, 1
	want["late, its check is known 127.0.0.1 true: connected"] = 1
	mustSet(t, m, subjects...)
	testkit.Eventually(t, "the new ones' first states are told", complete)
	checks := m.States()[0].Checks
	testkit.Eventually(t, "ten more checks", func() bool { return m.States()[0].Checks >= checks+10 })
	mustSet(t, m, subjects...)
	subjects[0].Check = nil // its state is known already
	mustSet(t, m, subjects...)
	mustSet(t, m, withCheck(named("down, is up", good, false), func(c *Check) { c.Interval = time.Hour }))
	told.mu.Lock()
	defer told.mu.Unlock()
	if len(told.all) != 9 {
		t.Errorf("%d changes are told, want 9: %+v", len(told.all), told.all)
	}
	for _, c := range told.all {
		if c.Time.IsZero() || !c.First || c.Checked == strings.HasPrefix(c.Service, "unchecked") {
			t.Errorf("told of %+v", c)
		}
	}
}

// TestReasonOfSeveralTargets: the reason of a state is that of a target which has it, and not that of one whose check
// has not ended.
func TestReasonOfSeveralTargets(t *testing.T) {
	t.Parallel()
	at := listen(t, silence)
	s := withCheck(tcpSubject(at, time.Hour), func(c *Check) { c.Probe, c.Fall = TCP{Expect: "a greeting"}, 1 })
	s.Targets = append(s.Targets, netip.MustParseAddr("127.0.0.2")) // a closed port
	for _, up := range []bool{false, true} {
		s = withCheck(s, func(c *Check) { c.Up = up })
		var told changeLog
		m := New(told.add)
		mustSet(t, m, s)
		run(t, m)
		testkit.Eventually(t, "the state is told", func() bool { return len(told.firsts()) > 0 })
		const want = "web 127.0.0.1 false: 127.0.0.2: connection refused"
		if got := told.firsts(); got[want] != 1 {
			t.Errorf("the state is told as %v, want %q", got, want)
		}
		if got := m.States()[0].Reason; got != "127.0.0.2: connection refused" {
			t.Errorf("the reason is %q", got)
		}
	}
}

// TestBegin: a check that Set has added is not made, and no state is reported, before Begin: the path to its realserver
// may be missing until then.
func TestBegin(t *testing.T) {
	t.Parallel()
	var asked, others atomic.Int64
	s := tcpSubject(listen(t, func(net.Conn) { asked.Add(1) }), 10*time.Millisecond)
	other := tcpSubject(listen(t, func(net.Conn) { others.Add(1) }), 10*time.Millisecond)
	other.Service = "other"
	var told changeLog
	m := New(told.add)
	mustSet(t, m, other)
	run(t, m)
	testkit.Eventually(t, "the other is up", func() bool { return weight(m) == 1 && told.String() != "" })
	for range 2 { // a reload that fails is followed by another
		if err := m.Set([]Subject{other, s, {Service: "unchecked", Realserver: s.Realserver}}); err != nil {
			t.Fatal(err)
		}
	}
	before := others.Load()
	testkit.Eventually(t, "twenty checks of the other", func() bool { return others.Load() >= before+20 })
	if n, log := asked.Load(), told.String(); n > 0 || strings.Count(log, "\n") != 1 {
		t.Errorf("%d checks were made before Begin, told %q", n, log)
	}
	m.Begin()
	testkit.Eventually(t, "all are up", func() bool {
		return weight(m) == 3 && strings.Count(told.String(), "\n") == 3
	})

	gone := tcpSubject(closed(t), 10*time.Millisecond)
	gone.Service = "gone before it has begun"
	if err := m.Set([]Subject{other, gone}); err != nil {
		t.Fatal(err)
	}
	mustSet(t, m, other)
	if n := len(m.States()); n != 1 {
		t.Errorf("%d subjects", n)
	}
}
