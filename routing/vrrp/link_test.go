package vrrp

import (
	"context"
	"fmt"
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
	if fault := l.change(d, r, peer, peerRole); fault != "" {
		l.t.Fatal(fault)
	}
}

// change returns the first change of the roles within d, "" for none.
func (l *link) change(d time.Duration, r Role, peer *daemon, peerRole string) string {
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if is := l.router.Status()[0]; is.Role != r {
			return fmt.Sprintf("ours is %v (%s), want %v", is.Role, is.Reason, r)
		}
		if is := peer.role(); is != peerRole {
			return fmt.Sprintf("the peer is %s, want %s", is, peerRole)
		}
	}
	return ""
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
