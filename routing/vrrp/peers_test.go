package vrrp

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"vstun/routing/kernel/kerneltest"
	"vstun/routing/query"
	"vstun/testdata/testkit"
)

// link is this host and another one at a bridge:
//
//	 10.0.0.1, fe80::1             10.0.0.2, fe80::2
//	┌──────────┐   ┌─────────┐   ┌──────────┐
//	│ ours eth0├───┤ bridge  ├───┤eth0 peer │   three namespaces
//	└──────────┘   └─────────┘   └──────────┘
type link struct {
	t            *testing.T
	ours, bridge netns.NsHandle
	peer         netns.NsHandle
	dir          string
	events       *eventLog
	router       *Router
}

func newLink(t *testing.T) *link {
	l := &link{t: t, dir: t.TempDir(), events: &eventLog{}}
	l.ours = testkit.NewNamespace(t)
	l.bridge, l.peer = l.namespace(), l.namespace()
	l.in(l.bridge, func() {
		kerneltest.Must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: kerneltest.Named("br0")}))
		kerneltest.LinkUp(t, "br0")
		for n, ns := range []netns.NsHandle{l.ours, l.peer} {
			port := fmt.Sprint("port", n)
			attrs := kerneltest.Named(port)
			kerneltest.Must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0",
				PeerNamespace: netlink.NsFd(ns)}))
			l.connect(n, true)
			kerneltest.LinkUp(t, port)
		}
	})
	l.in(l.ours, func() { configure(t, 1) })
	l.in(l.peer, func() { configure(t, 2) })
	return l
}

// namespace returns a new namespace.
func (l *link) namespace() netns.NsHandle {
	l.t.Helper()
	ns, err := netns.New()
	kerneltest.Must(l.t, err)
	l.t.Cleanup(func() { ns.Close() })
	kerneltest.Must(l.t, netns.Set(l.ours))
	return ns
}

// in calls fn in a namespace.
func (l *link) in(ns netns.NsHandle, fn func()) {
	l.t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	kerneltest.Must(l.t, netns.Set(ns))
	defer func() { kerneltest.Must(l.t, netns.Set(l.ours)) }()
	fn()
}

// configure sets the addresses of a host up. Without duplicate address detection they are ready at once.
func configure(t *testing.T, number int) {
	t.Helper()
	kerneltest.SetSysctl(t, "net/ipv6/conf/eth0/addr_gen_mode", "1")
	for _, name := range []string{"lo", "eth0"} {
		kerneltest.LinkUp(t, name)
	}
	for _, a := range []string{"10.0.0.%d/24", "fe80::%d/64", "2001:db8::%d/64"} {
		at, err := netlink.ParseAddr(fmt.Sprintf(a, number))
		kerneltest.Must(t, err)
		at.Flags = syscall.IFA_F_NODAD
		kerneltest.Must(t, netlink.AddrAdd(kerneltest.LinkOf(t, "eth0"), at))
	}
	testkit.Eventually(t, "a link", func() bool {
		return kerneltest.LinkOf(t, "eth0").Attrs().OperState == netlink.OperUp
	})
}

// connect plugs a host in or out: neither host loses its link.
func (l *link) connect(n int, in bool) {
	l.t.Helper()
	port := kerneltest.LinkOf(l.t, fmt.Sprint("port", n))
	if in {
		kerneltest.Must(l.t, netlink.LinkSetMaster(port, kerneltest.LinkOf(l.t, "br0")))
		return
	}
	kerneltest.Must(l.t, netlink.LinkSetNoMaster(port))
}

// eventLog collects events.
type eventLog struct {
	mu  sync.Mutex
	all []Event
}

func (l *eventLog) add(v Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, v)
}

func (l *eventLog) has(kind EventKind) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, v := range l.all {
		if v.Kind == kind {
			return true
		}
	}
	return false
}

// run runs a Router with instances on this host. end ends it.
func (l *link) run(all ...Instance) (end func()) {
	l.t.Helper()
	l.open(all...)
	return l.begin()
}

// open opens a Router with instances on this host.
func (l *link) open(all ...Instance) {
	l.t.Helper()
	r, err := Open(l.events.add)
	kerneltest.Must(l.t, err)
	l.router = r
	l.refreshDevices()
	r.Set(all)
	kerneltest.Must(l.t, r.JoinError())
}

// begin runs the Router. end ends it.
func (l *link) begin() (end func()) {
	l.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := l.router.Run(ctx); err != nil {
			l.t.Errorf("run: %v", err)
		}
	})
	end = sync.OnceFunc(func() { cancel(); running.Wait() })
	l.t.Cleanup(end)
	return end
}

// refreshDevices passes this host's devices to the router.
func (l *link) refreshDevices() {
	l.t.Helper()
	all, err := query.Devices()
	kerneltest.Must(l.t, err)
	var devices []Device
	for _, d := range all {
		devices = append(devices, Device{Name: d.Name, Index: d.Index, Running: d.Running, Addrs: d.Addrs})
	}
	l.router.SetDevices(devices)
}

// waitRole waits until the first instance has a role.
func (l *link) waitRole(r Role) {
	l.t.Helper()
	testkit.Eventually(l.t, "ours is "+r.String(), func() bool { return l.router.Status()[0].Role == r })
}

// logStatus logs the state of this host's router.
func (l *link) logStatus() {
	if l.router == nil {
		return
	}
	for _, s := range l.router.Status() {
		l.t.Logf("ours: %+v", s)
	}
}

// stays fails if the roles change within d.
func (l *link) stays(d time.Duration, r Role, peer *daemon, peerRole string) {
	l.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if is := l.router.Status()[0]; is.Role != r {
			l.t.Fatalf("ours is %v (%s), want %v", is.Role, is.Reason, r)
		}
		if is := peer.role(); is != peerRole {
			l.t.Fatalf("the peer is %s, want %s", is, peerRole)
		}
	}
}

// daemon is a program on the other host.
type daemon struct {
	l    *link
	role func() string // "backup", "master"; "": unknown
	stop func()        // by SIGTERM
	kill func()
	cmds []*exec.Cmd
}

func (d *daemon) waitRole(r string) {
	d.l.t.Helper()
	testkit.Eventually(d.l.t, "the peer is "+r, func() bool { return d.role() == r })
}

// start starts a program on the other host.
func (d *daemon) start(out string, name string, args ...string) {
	d.l.t.Helper()
	f, err := os.Create(out)
	kerneltest.Must(d.l.t, err)
	defer f.Close()
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = f, f
	// A group of its own gets the signals: keepalived has a child.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	d.l.in(d.l.peer, func() { err = cmd.Start() })
	kerneltest.Must(d.l.t, err)
	d.cmds = append(d.cmds, cmd)
}

// end ends the programs by a signal, the last one first.
func (d *daemon) end(s syscall.Signal) {
	for n := len(d.cmds) - 1; n >= 0; n-- {
		_ = syscall.Kill(-d.cmds[n].Process.Pid, s)
		_ = d.cmds[n].Wait()
	}
	d.cmds = nil
}

// keepalived runs keepalived with an instance; extra are more lines of the instance.
func (l *link) keepalived(priority int, extra ...string) *daemon {
	l.t.Helper()
	path, err := exec.LookPath(cmpOr(os.Getenv("VSTUN_KEEPALIVED"), "keepalived"))
	if err != nil {
		l.t.Skip("SKIPPED: needs keepalived")
	}
	has := func(key string) bool {
		for _, s := range extra {
			if strings.HasPrefix(s, key+" ") {
				return true
			}
		}
		return false
	}
	lines := []string{"global_defs {\n vrrp_garp_master_delay 1\n}", "vrrp_instance VI {", "state BACKUP",
		"interface eth0", "virtual_router_id 51", fmt.Sprint("priority ", priority)}
	for key, value := range map[string]string{"version": "3", "advert_int": "0.1",
		"virtual_ipaddress": "{\n 10.0.0.80/24\n}"} {
		if !has(key) {
			lines = append(lines, key+" "+value)
		}
	}
	file := filepath.Join(l.dir, "keepalived.conf")
	text := strings.Join(append(append(lines, extra...), "}", ""), "\n")
	kerneltest.Must(l.t, os.WriteFile(file, []byte(text), 0o644))
	out := filepath.Join(l.dir, "keepalived.log")
	d := &daemon{l: l}
	args := []string{"-n", "-l", "-f", file, "-p", filepath.Join(l.dir, "k.pid"), "-r",
		filepath.Join(l.dir, "kv.pid")}
	if !strings.Contains(path, "/ka24/") {
		args = append(args, "-P") // no checkers
	}
	d.start(out, path, args...)
	d.stop, d.kill = func() { d.end(syscall.SIGTERM) }, func() { d.end(syscall.SIGKILL) }
	l.t.Cleanup(func() {
		d.stop()
		if l.t.Failed() {
			text, _ := os.ReadFile(out)
			l.t.Logf("keepalived:\n%s", text)
			l.logStatus()
		}
	})
	d.role = func() string {
		text, _ := os.ReadFile(out)
		s := string(text)
		at := strings.LastIndex(s, "Entering ")
		if at < 0 {
			return ""
		}
		word, _, _ := strings.Cut(s[at+len("Entering "):], " ")
		return strings.ToLower(word)
	}
	return d
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func quick(i *Instance) { i.Interval = 100 * time.Millisecond }

// TestKeepalived runs beside keepalived in each way that they can find each other: who has the higher priority is
// master, also after the other one was, and takes over when the other ends.
func TestKeepalived(t *testing.T) {
	six := func(i *Instance) { i.Addrs = addrs("fe80::80", "2001:db8::80") }
	signed := func(i *Instance) { i.Key = &testKey }
	hmacKey := fmt.Sprintf("auth_hmac {\n key 7 hex:%x\n active_key 7\n}", testKey.Bytes)
	for _, c := range []struct {
		name  string
		ours  []func(*Instance)
		peer  []string
		needs string
	}{
		{"version 3", []func(*Instance){quick}, nil, ""},
		{"version 3, RFC 9568's checksum", []func(*Instance){quick, func(i *Instance) { i.Checksum = RFC9568 }},
			[]string{"v3_checksum_as_v2 true"}, "2.4"},
		{"version 2", []func(*Instance){version2}, []string{"version 2", "advert_int 1"}, ""},
		{"version 2, PASS", []func(*Instance){version2, func(i *Instance) { i.Password = "secret12345" }},
			[]string{"version 2", "advert_int 1", "authentication {\n auth_type PASS\n auth_pass secret12345\n}"}, ""},
		{"unicast", []func(*Instance){quick, func(i *Instance) { i.Peers = addrs("10.0.0.2") }},
			[]string{"unicast_src_ip 10.0.0.2", "unicast_peer {\n 10.0.0.1\n}"}, ""},
		{"IPv6", []func(*Instance){quick, six}, []string{"virtual_ipaddress {\n fe80::80/64\n 2001:db8::80/64\n}"}, ""},
		{"IPv6, unicast", []func(*Instance){quick, six, func(i *Instance) { i.Peers = addrs("2001:db8::2") }},
			[]string{"virtual_ipaddress {\n fe80::80/64\n 2001:db8::80/64\n}", "unicast_src_ip 2001:db8::2",
				"unicast_peer {\n 2001:db8::1\n}"}, ""},
		{"HMAC", []func(*Instance){quick, signed}, []string{hmacKey}, "2.4"},
		{"HMAC, unicast", []func(*Instance){quick, signed, func(i *Instance) { i.Peers = addrs("10.0.0.2") }},
			[]string{hmacKey, "unicast_src_ip 10.0.0.2", "unicast_peer {\n 10.0.0.1\n}"}, "2.4"},
		{"HMAC, version 2", []func(*Instance){version2, signed}, []string{hmacKey, "version 2", "advert_int 1"}, "2.4"},
		{"HMAC, IPv6", []func(*Instance){quick, six, signed},
			[]string{hmacKey, "virtual_ipaddress {\n fe80::80/64\n 2001:db8::80/64\n}"}, "2.4"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if c.needs != "" && os.Getenv("VSTUN_KEEPALIVED") == "" {
				t.Skipf("SKIPPED: needs keepalived %s: VSTUN_KEEPALIVED is its path", c.needs)
			}
			l := newLink(t)
			end := l.run(vi(150, c.ours...))
			l.waitRole(Master)
			low := l.keepalived(100, c.peer...)
			low.waitRole("backup")
			l.stays(3*l.router.Status()[0].Instance.Interval, Master, low, "backup")
			l.router.Standby()
			low.waitRole("master")
			l.waitRole(Backup)
			l.router.Activate()
			l.waitRole(Master)
			low.waitRole("backup")
			low.stop()

			high := l.keepalived(200, c.peer...)
			high.waitRole("master")
			l.waitRole(Backup)
			l.stays(3*l.router.Status()[0].Instance.Interval, Backup, high, "master")
			high.kill()
			l.waitRole(Master)
			s := l.router.Status()[0]
			if n := s.Counts.Refused.Sum(); n > 0 || s.Counts.Conflicts > 0 || s.Counts.Failed > 0 {
				t.Errorf("counts %+v", s.Counts)
			}
			end()
			if r := l.router.Status()[0].Role; r != Initialize {
				t.Errorf("after the end: %v", r)
			}
		})
	}
}

// TestKeepalivedEqual checks that the higher address wins over an equal priority, in either direction.
func TestKeepalivedEqual(t *testing.T) {
	l := newLink(t)
	peer := l.keepalived(100)
	peer.waitRole("master")
	l.run(vi(100, quick))
	l.waitRole(Backup)
	// Both masters meet: ours has the lower address.
	l.in(l.bridge, func() { l.connect(0, false) })
	l.waitRole(Master)
	l.in(l.bridge, func() { l.connect(0, true) })
	l.waitRole(Backup)
	l.stays(time.Second, Backup, peer, "master")
}

// TestKeepalivedCut checks a link that is cut, so that there are two masters, and whole again. The better one stays.
func TestKeepalivedCut(t *testing.T) {
	for _, priority := range []int{50, 200} {
		l := newLink(t)
		peer := l.keepalived(priority)
		l.run(vi(100, quick))
		better := priority > 100
		settled := func() {
			t.Helper()
			if better {
				peer.waitRole("master")
				l.waitRole(Backup)
			} else {
				l.waitRole(Master)
				peer.waitRole("backup")
			}
		}
		settled()
		l.in(l.bridge, func() { l.connect(1, false) })
		l.waitRole(Master)
		peer.waitRole("master")
		l.in(l.bridge, func() { l.connect(1, true) })
		settled()
	}
}

// TestKeepalivedStrangers checks configurations that do not fit: two masters, which are found and named.
func TestKeepalivedStrangers(t *testing.T) {
	pass := func(word string) []string {
		return []string{"version 2", "advert_int 1", "authentication {\n auth_type PASS\n auth_pass " + word + "\n}"}
	}
	secret := func(i *Instance) { version2(i); i.Password = "secret" }
	for _, c := range []struct {
		name string
		ours []func(*Instance)
		peer []string
		want Refusal
	}{
		{"another password", []func(*Instance){secret}, pass("other"), BadPassword},
		{"no password", []func(*Instance){secret}, []string{"version 2", "advert_int 1"}, BadAuthType},
		{"another interval", []func(*Instance){version2}, []string{"version 2", "advert_int 2"}, BadInterval},
		{"another version", []func(*Instance){quick}, []string{"version 2", "advert_int 1"}, BadVersion},
		{"multicast against unicast", []func(*Instance){quick},
			[]string{"unicast_src_ip 10.0.0.2", "unicast_peer {\n 10.0.0.1\n}"}, BadCast},
		{"unicast against multicast", []func(*Instance){quick, func(i *Instance) { i.Peers = addrs("10.0.0.2") }}, nil,
			BadCast},
		{"other addresses", []func(*Instance){quick, func(i *Instance) { i.Addrs = addrs("10.0.0.80", "10.0.0.81") }},
			nil, Accepted},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := newLink(t)
			l.run(vi(150, c.ours...))
			peer := l.keepalived(100, c.peer...)
			l.waitRole(Master)
			peer.waitRole("master")
			testkit.Eventually(t, "two masters are found", func() bool {
				s := l.router.Status()[0]
				return s.Rival == addr("10.0.0.2") && s.RivalRefused == c.want && s.Counts.Conflicts == 1
			})
			if !l.events.has(TwoMasters) || c.want == Accepted && !l.events.has(Differs) {
				t.Errorf("events %+v", l.events.all)
			}
			peer.stop()
			testkit.Eventually(t, "one master again", func() bool { return !l.router.Status()[0].Rival.IsValid() })
		})
	}
}

// TestKeepalivedOtherInterval checks that a backup of version 3 learns its master's interval.
func TestKeepalivedOtherInterval(t *testing.T) {
	l := newLink(t)
	peer := l.keepalived(200, "advert_int 0.5")
	l.run(vi(100, quick))
	peer.waitRole("master")
	l.waitRole(Backup)
	l.stays(2*time.Second, Backup, peer, "master")
	if d := l.router.Status()[0].MasterInterval; d != 500*time.Millisecond {
		t.Errorf("interval %v", d)
	}
	peer.kill()
	l.waitRole(Master)
}

// TestKeepalivedReloads checks that 100 reloads with 100 ms between advertisements switch no role.
func TestKeepalivedReloads(t *testing.T) {
	l := newLink(t)
	l.run(vi(150, quick))
	l.waitRole(Master)
	peer := l.keepalived(100)
	peer.waitRole("backup")
	for n := range 100 {
		l.router.Set([]Instance{vi(150+uint8(n%2), quick)})
		l.refreshDevices()
		l.stays(20*time.Millisecond, Master, peer, "backup")
	}
	l.stays(time.Second, Master, peer, "backup")
	if n := l.router.Status()[0].Counts.Elected; n != 1 {
		t.Errorf("master %d times", n)
	}
}

// TestLinkLoss checks that a host without a link has a fault and that it takes part again with the link.
func TestLinkLoss(t *testing.T) {
	l := newLink(t)
	l.run(vi(150, quick))
	l.waitRole(Master)
	peer := l.keepalived(100)
	peer.waitRole("backup")
	down := func(up bool) {
		l.in(l.bridge, func() {
			if up {
				kerneltest.LinkUp(t, "port0")
				return
			}
			kerneltest.Must(t, netlink.LinkSetDown(kerneltest.LinkOf(t, "port0")))
		})
	}
	down(false)
	testkit.Eventually(t, "a fault", func() bool { l.refreshDevices(); return l.router.Status()[0].Role == Fault })
	peer.waitRole("master")
	down(true)
	testkit.Eventually(t, "master again", func() bool {
		l.refreshDevices()
		return l.router.Status()[0].Role == Master
	})
	peer.waitRole("backup")
}

// TestLateRun checks that a start that takes longer than the end of a dead master does not take the role from a master
// whose packets are unread.
func TestLateRun(t *testing.T) {
	l := newLink(t)
	peer := l.keepalived(100)
	peer.waitRole("master")
	l.open(vi(200, quick, nopreempt))
	l.router.SetHeld(true)
	due, _ := l.router.election.Next()
	testkit.Eventually(t, "the end of a dead master", func() bool { return now().Boot > due })
	l.begin()
	testkit.Eventually(t, "the master is heard", func() bool { return l.router.Status()[0].Counts.Received > 4 })
	if n := l.router.Status()[0].Counts.Elected; n > 0 {
		t.Errorf("it took the role %d times", n)
	}
	peer.stop()
	l.waitRole(Master)
}

// TestTTL checks that a packet from another network is refused, by the TTL that the kernel reports.
func TestTTL(t *testing.T) {
	for _, ipv6 := range []bool{false, true} {
		l := newLink(t)
		i := vi(100, quick)
		if ipv6 {
			i = vi(100, quick, func(i *Instance) { i.Addrs = addrs("fe80::80") })
		}
		l.run(i)
		l.waitRole(Master)
		var s *rawSocket
		var index int
		l.in(l.peer, func() {
			var err error
			s, err = openSocket(ipv6)
			kerneltest.Must(t, err)
			index = kerneltest.LinkOf(t, "eth0").Attrs().Index
		})
		defer s.close()
		level, option := syscall.IPPROTO_IP, syscall.IP_MULTICAST_TTL
		src := addr("10.0.0.2")
		if ipv6 {
			level, option, src = syscall.IPPROTO_IPV6, syscall.IPV6_MULTICAST_HOPS, addr("fe80::2")
		}
		send := func(ttl int) {
			t.Helper()
			kerneltest.Must(t, s.conn.SetsockoptInt(level, option, ttl))
			a := Advert{Version: 3, RouterID: 51, Priority: 254, Interval: 100 * time.Millisecond, Addrs: i.Addrs}
			dst := group(ipv6)
			p := Packet{Device: index, Src: src, Dst: dst, Payload: a.Append(nil, src, dst, RFC5798)}
			kerneltest.Must(t, s.send(p))
		}
		send(254)
		testkit.Eventually(t, "refused", func() bool { return l.router.Status()[0].Counts.Refused[BadTTL] == 1 })
		if r := l.router.Status()[0].Role; r != Master {
			t.Fatalf("role %v", r)
		}
		send(255)
		l.waitRole(Backup)
	}
}

// TestSeveral checks several instances on one device, of both families.
func TestSeveral(t *testing.T) {
	l := newLink(t)
	named := func(name string, id uint8, a netip.Addr) Instance {
		return vi(100, quick, func(i *Instance) { i.Name, i.RouterID, i.Addrs = name, id, []netip.Addr{a} })
	}
	l.run(named("a", 51, addr("10.0.0.80")), named("b", 52, addr("10.0.0.81")), named("c", 51, addr("fe80::80")))
	peer := l.keepalived(200)
	peer.waitRole("master")
	testkit.Eventually(t, "one backup, two masters", func() bool {
		r := l.router.Roles()
		return r["a"] == Backup && r["b"] == Master && r["c"] == Master
	})
}

// TestHandOver checks that an end waits for the next master, and no longer.
func TestHandOver(t *testing.T) {
	l := newLink(t)
	l.run(vi(150, quick))
	l.waitRole(Master)
	begin := time.Now()
	l.router.HandOver()
	if took := time.Since(begin); took < 150*time.Millisecond || took > 10*time.Second {
		t.Errorf("without a peer it took %v", took)
	}
	l.router.Activate()
	l.waitRole(Master)
	peer := l.keepalived(100)
	peer.waitRole("backup")
	l.router.HandOver()
	if s := l.router.Status()[0]; s.Role != Backup || len(s.Peers) != 1 || s.Peers[0].Priority != 100 {
		t.Errorf("no other master is heard: %+v", s)
	}
}
