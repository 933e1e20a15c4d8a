package bpf

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/encap/packet"
	"vstun/testdata/testkit"
)

// counter is another program on a device. It counts the packets that it sees.
type counter struct {
	program *ebpf.Program
	seen    *ebpf.Map
}

// newCounter makes a counter whose packets get the action.
func newCounter(t *testing.T, action int32) counter {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	must(t, err)
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, m.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.Mov.Imm(asm.R1, 1),
		asm.AddAtomic.Mem(asm.R0, asm.R1, asm.DWord, 0),
		asm.Mov.Imm(asm.R0, action).WithSymbol("out"),
		asm.Return(),
	}})
	must(t, err)
	t.Cleanup(func() { p.Close(); m.Close() })
	return counter{p, m}
}

func (c counter) count(t *testing.T) (n uint64) {
	t.Helper()
	must(t, c.seen.Lookup(uint32(0), &n))
	return n
}

// attached attaches both programs, and makes a connection whose packets they take.
func attached(t *testing.T, n *network, noTCX bool) (*Director, *Realserver, *upload) {
	t.Helper()
	d, r := newTestDirector(t), newTestRealserver(t)
	d.hooks.noTCX, r.hooks.noTCX = noTCX, noTCX
	must(t, errors.Join(d.Attach(n.d0), d.Attach(n.d0)))
	enter(t, n.realserver)
	must(t, r.Attach(n.r0))
	enter(t, n.director)
	_, tcx := d.hooks.devices[n.d0].(*tcxHook)
	if want := map[bool]string{true: "TCX", false: "clsact"}[tcx]; d.Hook() != want || r.Hook() != want {
		t.Errorf("hooks %q and %q, want %q", d.Hook(), r.Hook(), want)
	}
	c := tunnels(false)[0]
	rules, _ := rulesOf(decapsulator(c))
	rules.Device, rules.LocalAddrs = n.tun, realservers[:]
	must(t, r.Set(rules))
	u := n.dial(t, false)
	ref, err := d.Add(n.path(t, &c.Destination, tunnelPath(t, c, false)))
	must(t, err)
	_, err = d.Set([]Flow{{Flow: u.flow, Path: ref}})
	must(t, err)
	return d, r, u
}

// forwarded is the number of packets that the director's program has sent on.
func forwarded(t *testing.T, d *Director) (sum uint64) {
	t.Helper()
	must(t, d.Read(func(_ packet.Flow, s State, _ bool) { n, _ := s.Count.Since(0); sum += n }))
	return sum
}

const some = 1 << 20 // bytes of an upload

// TestTCX: another TCX program sees the packets first, wherever it was attached, and a tc filter sees those that are
// left. Detach and Close take the programs off: the kernel forwards again.
func TestTCX(t *testing.T) {
	needRoot(t)
	n := newNetwork(t)
	before, filter := newCounter(t, next), newCounter(t, next)
	l, err := link.AttachTCX(link.TCXOptions{Interface: n.d0, Program: before.program, Attach: ebpf.AttachTCXIngress})
	if errors.Is(err, ebpf.ErrNotSupported) {
		t.Skip("SKIPPED: needs TCX (Linux 6.6)")
	}
	must(t, err)
	defer l.Close()
	other := hooks{noTCX: true}
	other.init("other", filter.program, leasesOf(t), clockOf(t))
	must(t, other.attach(n.d0))
	defer other.close()
	d, _, u := attached(t, n, false)
	u.send(t, some)
	count := forwarded(t, d)
	if count == 0 || before.count(t) < count {
		t.Errorf("%d packets forwarded, %d seen by the program before", count, before.count(t))
	}
	if seen := filter.count(t); seen == 0 || seen >= before.count(t) {
		t.Errorf("the filter behind has seen %d packets of %d", seen, before.count(t))
	}
	must(t, errors.Join(d.Detach(n.d0), d.Detach(n.d0)))
	u.send(t, some)
	if now := forwarded(t, d); now != count {
		t.Errorf("%d packets forwarded without a device", now-count)
	}
	must(t, d.Attach(n.d0))
	u.send(t, some)
	if now := forwarded(t, d); now == count {
		t.Error("no packet forwarded after the program was attached again")
	}
	must(t, d.Close())
	u.send(t, some)
}

// TestTCXLater: a TCX program that is attached later sees the packets first all the same. Two programs that both want
// to be last do not take turns.
func TestTCXLater(t *testing.T) {
	needRoot(t)
	n := newNetwork(t)
	d, _, u := attached(t, n, false)
	if _, ok := d.hooks.devices[n.d0].(*tcxHook); !ok {
		t.Skip("SKIPPED: needs TCX (Linux 6.6)")
	}
	later := newCounter(t, next)
	l, err := link.AttachTCX(link.TCXOptions{Interface: n.d0, Program: later.program, Attach: ebpf.AttachTCXIngress})
	must(t, err)
	defer l.Close()
	d.hooks.follow()
	before := later.count(t)
	u.send(t, some)
	if count := forwarded(t, d); count == 0 || later.count(t)-before < count {
		t.Errorf("%d packets forwarded, %d seen by the program before", count, later.count(t)-before)
	}
	var other hooks
	other.init("other", newCounter(t, next).program, leasesOf(t), clockOf(t))
	must(t, other.attach(n.d0))
	defer other.close()
	for range 3 {
		other.follow()
		d.hooks.follow()
	}
	order, err := tcxPrograms(n.d0)
	must(t, err)
	other.follow()
	d.hooks.follow()
	if now, err := tcxPrograms(n.d0); err != nil || len(now) != 3 || !slices.Equal(now, order) ||
		now[2] != d.hooks.id {
		t.Errorf("%v, then %v, %v; want 3 and %d the last", order, now, err, d.hooks.id)
	}
	must(t, d.Detach(n.d0))
	if now, err := tcxPrograms(n.d0); err != nil || len(now) != 2 {
		t.Errorf("%v, %v; want 2", now, err)
	}
}

// leasesOf returns a map like the programs' leases.
func leasesOf(t *testing.T) *ebpf.Map {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	must(t, err)
	t.Cleanup(func() { m.Close() })
	return m
}

// clockOf returns the programs' clock.
func clockOf(t *testing.T) clock { return newTestDirector(t).clock }

// now is the time of a clock.
func now(t *testing.T, c clock) uint32 {
	t.Helper()
	time, err := c.now()
	must(t, err)
	return time
}

// TestClock: the programs' clock goes as fast as the kernel's.
func TestClock(t *testing.T) {
	c := clockOf(t)
	begin, first := time.Now(), now(t, c)
	testkit.Within(t, "200 ms", testkit.Patience, func() bool { return time.Since(begin) > 200*time.Millisecond })
	passed := since(first, now(t, c))
	if took := time.Since(begin); passed < 200*time.Millisecond-2*jiffy || passed > took+2*jiffy {
		t.Errorf("%v pass while the programs' clock goes on by %v, in steps of %v", took, passed, jiffy)
	}
	if since(5, 3) != 0 || since(1<<32-1, 1) != 2*jiffy {
		t.Error("wrong times around 0")
	}
}

// TestClsact: without TCX the programs are attached by tc filters. They leave no trace, and another program's filters
// and qdisc stay.
func TestClsact(t *testing.T) {
	needRoot(t)
	n := newNetwork(t)
	d, r, u := attached(t, n, true)
	u.send(t, some)
	count := forwarded(t, d)
	if count == 0 {
		t.Error("no packet forwarded")
	}
	qdiscs := func(device int) (all []string) {
		l, err := netlink.LinkByIndex(device)
		must(t, err)
		list, err := netlink.QdiscList(l)
		must(t, err)
		for _, q := range list {
			all = append(all, q.Type())
		}
		return all
	}
	if q := strings.Join(qdiscs(n.d0), " "); !strings.Contains(q, "clsact") {
		t.Errorf("qdiscs %s", q)
	}
	must(t, d.Detach(n.d0))
	if q := strings.Join(qdiscs(n.d0), " "); strings.Contains(q, "clsact") {
		t.Errorf("qdiscs %s after Detach", q)
	}
	u.send(t, some)
	if forwarded(t, d) != count {
		t.Error("packets forwarded without a device")
	}
	// A filter that an earlier process has left is replaced. Another program's filter in its place is an error.
	stale := hooks{noTCX: true}
	stale.init(d.hooks.name, newCounter(t, next).program, leasesOf(t), clockOf(t))
	must(t, stale.attach(n.d0))
	must(t, d.Attach(n.d0))
	u.send(t, some)
	if forwarded(t, d) == count {
		t.Error("no packet forwarded in place of an earlier process's filter")
	}
	must(t, errors.Join(d.Detach(n.d0), stale.close()))
	if q := strings.Join(qdiscs(n.d0), " "); strings.Contains(q, "clsact") {
		t.Errorf("qdiscs %s after an earlier process's filter", q)
	}
	other := hooks{noTCX: true}
	other.init("other", newCounter(t, next).program, leasesOf(t), clockOf(t))
	must(t, other.attach(n.d0))
	if err := d.Attach(n.d0); err == nil || strings.Contains(err.Error(), "\n") {
		t.Errorf("in place of another program's filter: %v", err)
	}
	must(t, other.close())
	// The device of the realserver goes with its filter.
	enter(t, n.realserver)
	l, err := netlink.LinkByIndex(n.r0)
	must(t, err)
	must(t, netlink.LinkDel(l))
	must(t, r.Detach(n.r0))
}

// TestClsactQueue: a device without a queue keeps the length of its queue.
func TestClsactQueue(t *testing.T) {
	needRoot(t)
	n := newNetwork(t)
	device := func() netlink.Link {
		l, err := netlink.LinkByIndex(n.d0)
		must(t, err)
		return l
	}
	for _, length := range []int{0, 77} {
		must(t, netlink.LinkSetTxQLen(device(), length))
		h := hooks{noTCX: true}
		h.init("queue", newCounter(t, next).program, leasesOf(t), clockOf(t))
		must(t, h.attach(n.d0))
		with := device().Attrs().TxQLen
		must(t, h.close())
		if after := device().Attrs().TxQLen; with != length || after != length {
			t.Errorf("txqueuelen %d is %d with the program, and %d after it", length, with, after)
		}
	}
}

// TestLease: a program that has outlived its process takes no packet.
func TestLease(t *testing.T) {
	d, r := newTestDirector(t), newTestRealserver(t)
	c := tunnels(false)[0]
	rules, _ := rulesOf(decapsulator(c))
	must(t, r.Set(rules))
	s := request(false, packet.ProtoTCP)
	add(t, d, tunnelPath(t, c, false), s, Flow{})
	for _, of := range []struct {
		left   int32 // ticks
		action int
	}{{int32(leaseTime / jiffy), redirect}, {-1, next}, {1 << 20, redirect}} {
		lease := leaseRecord{1, now(t, d.clock) + uint32(of.left)}
		must(t, errors.Join(d.objects.Leases.Put(uint32(0), &lease), r.objects.Leases.Put(uint32(0), &lease)))
		if action, _ := run(t, d.objects.Director, frame(s.bytes())); action != of.action {
			t.Errorf("%d ticks left: the director's action is %d", of.left, action)
		}
		if action, _ := run(t, r.objects.Realserver, frame(wrapped(t, c, s.bytes()))); action != of.action {
			t.Errorf("%d ticks left: the realserver's action is %d", of.left, action)
		}
	}
}

// TestRenew: the lease of an attached tc filter is renewed before it ends.
func TestRenew(t *testing.T) {
	needRoot(t)
	n := newNetwork(t)
	d, _, _ := attached(t, n, true)
	read := func() (l leaseRecord) {
		must(t, d.objects.Leases.Lookup(uint32(0), &l))
		return l
	}
	first := read()
	if left := since(now(t, d.clock), first.Until); first.Limited != 1 || left <= 0 || left > leaseTime+time.Second {
		t.Errorf("lease %+v, %v left", first, left)
	}
	testkit.Eventually(t, "another lease", func() bool { return read().Until != first.Until })
}

// TestAttachErrors: errors are one line that says what was attached to what.
func TestAttachErrors(t *testing.T) {
	needRoot(t)
	n := newNetwork(t)
	d := newTestDirector(t)
	enter(t, n.realserver)
	for device, want := range map[int]string{n.tun: "tun0: it is no Ethernet device", 999: "device 999"} {
		if err := d.Attach(device); err == nil || !strings.Contains(err.Error(), want) ||
			strings.Contains(err.Error(), "\n") {
			t.Errorf("device %d: %v", device, err)
		}
	}
	if err := explainLoad("director", unix.EPERM); !strings.Contains(err.Error(), "CAP_BPF") &&
		!strings.Contains(err.Error(), "locked down") {
		t.Error(err)
	}
	if err := explainLoad("director", ebpf.ErrNotSupported); !strings.Contains(err.Error(), oldest) {
		t.Error(err)
	}
	if _, err := LoadDirector(DirectorConfig{}); err == nil {
		t.Error("maps of no entries are made")
	}
}

// TestWithoutRights: without capabilities, loading fails with one line. Maps that were loaded before can be written.
// The test has a process of its own: the library finds out some properties of the kernel once, with capabilities.
func TestWithoutRights(t *testing.T) {
	needRoot(t)
	const env = "VSTUN_BPF_WITHOUT_RIGHTS"
	if os.Getenv(env) == "" {
		c := exec.Command("/proc/self/exe", "-test.run", "^TestWithoutRights$", "-test.v")
		c.Env = append(os.Environ(), env+"=1")
		if out, err := c.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS") {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	d := newTestDirector(t)
	t.Run("without capabilities", func(t *testing.T) {
		runtime.LockOSThread() // the thread ends with the test's goroutine
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		none := [2]unix.CapUserData{}
		must(t, unix.Capset(&header, &none[0]))
		if _, err := LoadDirector(DirectorConfig{Flows4: 8, Flows6: 8, Paths: 1}); err == nil ||
			strings.Contains(err.Error(), "\n") || !strings.HasPrefix(err.Error(), "load the director's BPF program") {
			t.Errorf("loaded without capabilities: %v", err)
		} else {
			t.Log(err)
		}
		s := request(false, packet.ProtoTCP)
		ref, err := d.Add(tunnelPath(t, tunnels(false)[0], false))
		must(t, err)
		_, err = d.Set([]Flow{{Flow: s.flow(), Path: ref}})
		must(t, err)
		must(t, d.Read(func(packet.Flow, State, bool) {}))
		must(t, d.Delete([]packet.Flow{s.flow()}, nil))
		must(t, d.Remove(ref))
	})
}

// TestKilled: programs and maps end with their process, also when it is killed.
func TestKilled(t *testing.T) {
	needRoot(t)
	const env = "VSTUN_BPF_DEVICE"
	if device := os.Getenv(env); device != "" { // the process that is killed
		index, err := strconv.Atoi(device)
		must(t, err)
		d := newTestDirector(t)
		must(t, d.Attach(index))
		fmt.Println("attached")
		select {}
	}
	n := newNetwork(t)
	programs := func() int {
		r, err := link.QueryPrograms(link.QueryOptions{Target: n.d0, Attach: ebpf.AttachTCXIngress})
		if errors.Is(err, ebpf.ErrNotSupported) {
			t.Skip("SKIPPED: needs TCX (Linux 6.6)")
		}
		must(t, err)
		return len(r.Programs)
	}
	if programs() != 0 {
		t.Fatal("the device has a program already")
	}
	c := exec.Command("/proc/self/exe", "-test.run", "^TestKilled$")
	c.Env = append(os.Environ(), fmt.Sprintf("%s=%d", env, n.d0))
	out, err := c.StdoutPipe()
	must(t, err)
	must(t, c.Start()) // in this thread's namespace
	line := make(chan string, 1)
	go func() {
		text, _ := bufio.NewReader(out).ReadString('\n')
		line <- text
	}()
	said := testkit.Receive(t, "the process attaches its program", line)
	attached := programs()
	must(t, c.Process.Kill())
	_ = c.Wait() // killed
	if said != "attached\n" || attached != 1 {
		t.Errorf("%d programs: %q", attached, said)
	}
	testkit.Eventually(t, "no program", func() bool { return programs() == 0 })
}

// TestDeviceMTU: a packet that the path's device cannot take is left, whatever MTU the path has.
func TestDeviceMTU(t *testing.T) {
	needRoot(t)
	n := newNetwork(t)
	d := newTestDirector(t)
	s := request(false, packet.ProtoTCP)
	c := tunnels(false)[0]
	p := tunnelPath(t, c, false)
	p.Device, p.MTU = n.d1, 9000
	add(t, d, p, s, Flow{})
	l, err := netlink.LinkByIndex(n.d1)
	must(t, err)
	for _, mtu := range []int{1500, 1400, 2000} {
		must(t, netlink.LinkSetMTU(l, mtu))
		for headers, action := range map[int]int{60: redirect, 59: next} {
			s.payload = mtu - headers
			if got, _ := run(t, d.objects.Director, frame(s.bytes())); got != action {
				t.Errorf("%d bytes in a tunnel over a device with MTU %d: action %d", s.payload+60, mtu, got)
			}
		}
	}
	must(t, netlink.LinkDel(l))
	if got, _ := run(t, d.objects.Director, frame(s.bytes())); got != next {
		t.Errorf("without the device: action %d", got)
	}
}
