package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"vstun/balancer/keep"
	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// readByKilled bounds the datagrams that a killed director had read and not sent: on a busy machine its worker may have
// been waiting for a CPU.
const readByKilled = 16

// mustArrive ends the flow. All of its datagrams must arrive, each once, but for those that killed directors had read.
func (f *flow) mustArrive(t *testing.T, arrived func() uint64, kills int) {
	t.Helper()
	f.stop()
	for end := time.Now().Add(soon); arrived() < f.sent.Load() && time.Now().Before(end); time.Sleep(tick) {
	}
	n, sent := arrived(), f.sent.Load()
	if n != sent {
		t.Logf("%d datagrams arrive, and %d were sent, in %d kills", n, sent, kills)
	}
	if n > sent || n+uint64(kills*readByKilled) < sent {
		t.Errorf("%d datagrams arrive, and %d were sent", n, sent)
	}
}

// mustCatchUp waits until the director has sent what waited for its start: while it does, it reads whole batches. It
// was killed a number of times before.
func (f *flow) mustCatchUp(t *testing.T, arrived func() uint64, kills int) {
	t.Helper()
	testkit.Within(t, "what waited has arrived", soon, func() bool {
		n := arrived()
		return f.sent.Load() <= n+uint64((kills+1)*readByKilled)
	})
}

const directorUnit = "vstun-director.service"

// unitSite is a site whose director is a unit of a booted systemd.
type unitSite struct {
	*site
	systemd *booted
}

// newUnitSite builds the hosts and installs the director's program and unit on its host.
func newUnitSite(t *testing.T, m method, webs int) *unitSite {
	t.Helper()
	s := newSiteBy(t, m, webs, nil)
	u := &unitSite{site: s, systemd: bootOn(t, s.Director)}
	t.Cleanup(func() {
		if t.Failed() {
			journal, _ := u.systemd.try("journalctl", "--no-pager", "-n", "80", "-o", "short-precise")
			t.Log(journal)
		}
	})
	program, err := os.ReadFile(programPath("director"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(unitFile("director"))
	if err != nil {
		t.Fatal(err)
	}
	u.systemd.write("/usr/local/bin/director", string(program))
	u.systemd.run("chmod", "755", "/usr/local/bin/director")
	u.systemd.write("/etc/systemd/system/"+directorUnit, string(text))
	u.systemd.run("systemctl", "daemon-reload")
	return u
}

// configure writes the director's configuration. more is keys of [director]. Each datagram to port 53 of the VIP is
// scheduled by itself.
func (u *unitSite) configure(more string) {
	u.t.Helper()
	var all []string
	for i := range u.Webs {
		all = append(all, u.realserver(i, "53"))
	}
	u.systemd.write("/etc/vstun/director.toml", fmt.Sprintf(`[director]
%s
[[service]]
name = "count"
vip = %q
protocol = "udp"
port = 53
scheduler = "rr"
one_packet = true
%s
realserver = [ %s ]
`, more, u.VIP, u.method.keys(), strings.Join(all, ", ")))
}

// mustBeAnew waits until the unit is active with another process than pid.
func (u *unitSite) mustBeAnew(pid string) {
	u.t.Helper()
	testkit.Within(u.t, "the director is started anew", 3*soon, func() bool {
		now := u.systemd.properties(directorUnit, "MainPID", "ActiveState")
		return now["MainPID"] != pid && now["MainPID"] != "0" && now["ActiveState"] == "active"
	})
}

// watchNetwork returns a function that returns the kernel's messages about routes, rules and devices of the director's
// host since then.
func (u *unitSite) watchNetwork() func() []string {
	u.t.Helper()
	var sub *nl.NetlinkSocket
	if err := u.Director.Do(func() (err error) {
		sub, err = nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR,
			unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_ROUTE,
			unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_IPV6_NETCONF)
		return err
	}); err != nil {
		u.t.Fatal(err)
	}
	u.t.Cleanup(sub.Close)
	if err := errors.Join(sub.SetReceiveBufferSize(4<<20, true),
		sub.SetReceiveTimeout(&unix.Timeval{Usec: 1})); err != nil {
		u.t.Fatal(err)
	}
	return func() (all []string) {
		for {
			messages, _, err := sub.Receive()
			if errors.Is(err, unix.EAGAIN) {
				return all
			}
			if err != nil {
				u.t.Fatal(err)
			}
			for _, m := range messages {
				all = append(all, fmt.Sprintf("type %d: %x", m.Header.Type, m.Data))
			}
		}
	}
}

// flow is a steady flow of datagrams from the client to the VIP.
type flow struct {
	sent atomic.Uint64
	stop func() // ends it; may be called twice
}

// startFlow sends a datagram every period.
func (s *site) startFlow(port uint16, period time.Duration) *flow {
	s.t.Helper()
	f, c, done := &flow{}, s.dial("udp", port), make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		ticker := time.NewTicker(period)
		defer ticker.Stop()
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
			}
			if _, err := c.Write([]byte("count me")); err != nil { // such as ECONNREFUSED: the VIP was unreachable
				s.t.Errorf("datagram %d: %v", f.sent.Load(), err)
			}
			f.sent.Add(1)
		}
	})
	f.stop = sync.OnceFunc(func() {
		close(done)
		running.Wait()
	})
	s.t.Cleanup(f.stop)
	return f
}

// TestRestartLosesNothing: restarts by systemd, and its restarts of a director that was killed, lose no packet of a
// steady flow, and change nothing on the host. A stop puts the host back as it was.
func TestRestartLosesNothing(t *testing.T) {
	t.Parallel()
	for _, m := range []method{tun, dr, nat} {
		t.Run(string(m), func(t *testing.T) {
			t.Parallel()
			testRestart(t, m)
		})
	}
}

func testRestart(t *testing.T, m method) {
	u := newUnitSite(t, m, 2)
	b := u.systemd
	u.startAgents("")
	u.configure("")
	before := observe(t, u.Director)
	b.run("systemctl", "start", directorUnit)
	up := observe(t, u.Director)
	if cmp.Equal(before, up) {
		t.Fatal("the director changes nothing: the comparison is blind")
	}
	for _, web := range u.Webs { // else the client gets ICMP port unreachable
		u.listenUDP(web, fmt.Sprintf(":%d", u.realPort(53)))
	}
	for _, how := range []string{"restart", "kill"} {
		arrived := u.countRequests()
		f := u.startFlow(53, 2*time.Millisecond)
		testkit.Within(t, "the flow arrives", soon, func() bool { return arrived() > 0 })
		kills := 0
		for range 3 {
			events := u.watchNetwork()
			pid := b.property(directorUnit, "MainPID")
			if how == "kill" {
				f.mustCatchUp(t, arrived, kills)
				kills++
				b.run("kill", "-KILL", pid)
			} else {
				b.run("systemctl", "restart", directorUnit)
			}
			u.mustBeAnew(pid)
			if diff := cmp.Diff(up, observe(t, u.Director)); diff != "" {
				t.Errorf("%s: the host is not as it was (-before +now):\n%s", how, diff)
			}
			if all := events(); len(all) > 0 {
				t.Errorf("%s: the kernel reports changes: %q", how, all)
			}
		}
		f.mustArrive(t, arrived, kills)
	}
	b.run("systemctl", "stop", directorUnit)
	u.mustBeAsBefore("after systemctl stop", before)
}

// TestUnitPutsHostBack: however the unit ends, the host is as before, unless the unit starts again.
func TestUnitPutsHostBack(t *testing.T) {
	t.Parallel()
	u := newUnitSite(t, tun, 1)
	b := u.systemd
	u.configure("")
	before := observe(t, u.Director)
	start := func() (pid string) {
		t.Helper()
		b.run("systemctl", "start", directorUnit)
		return b.property(directorUnit, "MainPID")
	}
	mustFail := func() {
		t.Helper()
		testkit.Within(t, "the unit has failed", soon, func() bool {
			return b.property(directorUnit, "ActiveState") == "failed"
		})
	}

	start()
	if out, err := b.try("director", "undo"); err == nil || !strings.Contains(out, "a director runs (process ") {
		t.Errorf("undo while a director runs: %q, %v", out, err)
	}
	b.run("systemctl", "restart", directorUnit)
	b.run("systemctl", "stop", directorUnit)
	u.mustBeAsBefore("after a restart and a stop", before)
	if out := b.run("director", "undo"); !strings.Contains(out, "nothing to undo") {
		t.Errorf("undo after a stop: %q", out)
	}

	// A program that has been taken over makes root's undo write to a file of root.
	b.run("sh", "-c", `cd /run/vstun && echo x >director.journal && echo mine >/etc/victim && chmod 600 /etc/victim &&
		ln -s /etc/victim director.journal.lock && [ $(stat -c %u .) != 0 ]`)
	if out, err := b.try("director", "undo"); err == nil || !strings.Contains(out, "permission denied") {
		t.Errorf("undo with a link to another's file: %q, %v", out, err)
	}
	if text := b.run("cat", "/etc/victim"); text != "mine\n" {
		t.Errorf("undo has written to a file of root: %q", text)
	}
	b.run("sh", "-c", "rm /run/vstun/director.journal /run/vstun/director.journal.lock")

	// The next start fails for a reason that no restart mends.
	for name, text := range map[string]string{"a faulty key": "queues = \"x\"", "no TOML": "queues = ["} {
		pid := start()
		u.configure(text)
		b.run("kill", "-KILL", pid)
		mustFail()
		u.mustBeAsBefore("after a kill and a start with "+name, before)
		b.run("systemctl", "reset-failed", directorUnit)
		u.configure("")
	}

	// The next start fails again and again: it has adopted the devices by then.
	pid := start()
	u.configure("metrics = \"198.51.100.1:9464\"") // no address of this host
	b.run("kill", "-KILL", pid)
	begin := time.Now()
	testkit.Within(t, "two starts have failed, and the program runs again", 3*soon, func() bool {
		now := b.properties(directorUnit, "NRestarts", "SubState", "MainPID")
		n, err := strconv.Atoi(now["NRestarts"])
		return err == nil && n >= 3 && now["SubState"] == "start" &&
			now["MainPID"] != "0" // a stop before would run no ExecStopPost=
	})
	if took := time.Since(begin); took < 2*time.Second {
		t.Errorf("two starts have failed within %v: it starts too often", took)
	}
	b.run("systemctl", "stop", directorUnit)
	u.mustBeAsBefore("after failed starts and a stop", before)
	u.configure("")

	// The administrator does not want restarts.
	b.write("/run/systemd/system/"+directorUnit+".d/test.conf", "[Service]\nRestart=no\n")
	b.run("systemctl", "daemon-reload")
	pid = start()
	b.run("kill", "-KILL", pid)
	mustFail()
	u.mustBeAsBefore("after a kill without a restart", before)
}

// TestUnitWithoutItsFile: the host is as before also if the configuration file is gone, does not say any more where the
// journal is, or names another control socket.
func TestUnitWithoutItsFile(t *testing.T) {
	slowWithRace(t)
	t.Parallel()
	u := newUnitSite(t, tun, 1)
	b := u.systemd
	const other = "control = \"/run/vstun/other.sock\""
	u.configure("")
	before := observe(t, u.Director)
	for _, kill := range []bool{false, true} {
		for name, c := range map[string]struct {
			keys, next string // of [director]
			removed    bool
		}{
			"no file":                      {removed: true},
			"no TOML":                      {keys: other, next: "queues = ["},
			"another control socket":       {next: other},
			"the default control socket":   {keys: other},
			"another control socket again": {keys: other, next: "control = \"/run/vstun/third.sock\""},
		} {
			when := fmt.Sprintf("after a restart with %s, kill -9 %v,", name, kill)
			u.configure(c.keys)
			b.run("systemctl", "start", directorUnit)
			pid := b.property(directorUnit, "MainPID")
			if u.configure(c.next); c.removed {
				b.run("rm", "/etc/vstun/director.toml")
			}
			if kill {
				b.run("kill", "-KILL", pid)
			} else {
				_, _ = b.try("systemctl", "restart", directorUnit) // fails with a file that is no TOML
			}
			if strings.Contains(name, "control socket") {
				u.mustBeAnew(pid)
			} else {
				testkit.Within(t, "the unit has ended", soon, func() bool {
					return slices.Contains([]string{"inactive", "failed"}, b.property(directorUnit, "ActiveState"))
				})
				u.mustBeAsBefore(when, before)
			}
			b.run("systemctl", "stop", directorUnit)
			u.mustBeAsBefore(when+" and a stop", before)
			_, _ = b.try("systemctl", "reset-failed", directorUnit) // nothing may have failed
		}
	}
}

// TestUnitThatEndsAtOnce: systemd tries about once a second to start a program that ends at once, and one for which
// there is no /dev/net/tun. That program says so.
func TestUnitThatEndsAtOnce(t *testing.T) {
	slowWithRace(t)
	t.Parallel()
	for name, keys := range map[string]string{
		"end":    "ExecStart=\nExecStart=/bin/false\n",
		"no TUN": "BindPaths=\nBindPaths=-/dev/not-there\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUnitSite(t, tun, 1)
			b := u.systemd
			u.configure("")
			b.write("/run/systemd/system/"+directorUnit+".d/test.conf", "[Service]\n"+keys)
			b.run("systemctl", "daemon-reload")
			begin := time.Now()
			_, _ = b.try("systemctl", "start", directorUnit) // it fails
			restarts := 0
			testkit.Within(t, "the unit has been started again three times", 3*soon, func() bool {
				n, err := strconv.Atoi(b.property(directorUnit, "NRestarts"))
				restarts = n
				return err == nil && n >= 3
			})
			if took := time.Since(begin); took < time.Duration(restarts)*900*time.Millisecond {
				t.Errorf("%d starts in %v", restarts, took)
			}
			b.run("systemctl", "stop", directorUnit)
			log := b.run("journalctl", "--no-pager", "-o", "cat", "-u", directorUnit)
			if name == "no TUN" && !strings.Contains(log, "modprobe tun") {
				t.Errorf("the log is\n%s", log)
			}
		})
	}
}

// TestStoredDevicesDiffer: a start with another device, other queues or other offloads gives the stored ones up. With
// another control socket, the journal is undone before.
func TestStoredDevicesDiffer(t *testing.T) {
	slowWithRace(t)
	t.Parallel()
	u := newUnitSite(t, tun, 1)
	b := u.systemd
	u.configure("queues = 2")
	before := observe(t, u.Director)
	b.run("systemctl", "start", directorUnit)
	for _, c := range []struct{ keys, reason string }{
		{"queues = 3", "it has 2 queues, want 3"},
		{"queues = 3\noffload = \"off\"", "it has been opened with offload on, want off"},
		{"queues = 3\ntun = \"vs7\"", "it is called vs0, want vs7"},
		{"queues = 2\ncontrol = \"/run/vstun/other.sock\"", ""},
	} {
		u.configure(c.keys)
		b.run("systemctl", "restart", directorUnit)
		pid := b.property(directorUnit, "MainPID")
		journal := func() string { return b.run("journalctl", "--no-pager", "-o", "cat", "_PID="+pid) }
		if c.reason != "" {
			testkit.Within(t, "the log has "+c.reason, soon, func() bool {
				return strings.Contains(journal(), "given up") && strings.Contains(journal(), c.reason)
			})
		}
		b.run("systemctl", "restart", directorUnit)
		pid = b.property(directorUnit, "MainPID")
		testkit.Within(t, "the new devices are adopted", soon, func() bool {
			return strings.Contains(journal(), "took over the devices")
		})
	}
	// Another program removes a device, of which systemd still has descriptors.
	pid := b.property(directorUnit, "MainPID")
	if err := u.Director.Do(func() error {
		link, err := netlink.LinkByName("vs0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	}); err != nil {
		t.Fatal(err)
	}
	u.mustBeAnew(pid)
	testkit.Within(t, "the log has the reason", soon, func() bool {
		log := b.run("journalctl", "--no-pager", "-o", "cat", "-u", directorUnit)
		return strings.Contains(log, "reason=\"it has been removed\"")
	})
	b.run("systemctl", "stop", directorUnit)
	u.mustBeAsBefore("at the end", before)
}

// countRequests counts the datagrams to the web servers, or the tunnel packets with them.
func (s *site) countRequests() func() uint64 {
	s.t.Helper()
	var all []func() uint64
	for _, web := range s.Webs {
		f := lab.Filter{Destination: web.Addr, Protocol: unix.IPPROTO_UDP, Direction: lab.In}
		switch s.method {
		case "", tun:
			f.Protocol = unix.IPPROTO_IPIP
			if web.Addr.Is6() {
				f.Protocol = unix.IPPROTO_IPV6
			}
		case dr:
			f.Destination = s.VIP
		}
		all = append(all, s.count(web, "eth0", f))
	}
	return func() (n uint64) {
		for _, count := range all {
			n += count()
		}
		return n
	}
}

// mustBeAsBefore waits until the director's host is as before. systemd closes the descriptors that it has stored soon
// after the unit is inactive.
func (u *unitSite) mustBeAsBefore(when string, before hostState) {
	u.t.Helper()
	var now hostState
	for end := time.Now().Add(soon); time.Now().Before(end); time.Sleep(tick) {
		if now = observe(u.t, u.Director); cmp.Equal(before, now) {
			break
		}
	}
	if diff := cmp.Diff(before, now); diff != "" {
		u.t.Errorf("%s the host is not as it was (-before +now):\n%s", when, diff)
	}
	dir := fmt.Sprintf("/proc/%d/root/run/vstun", u.systemd.pid)
	for _, of := range []string{"/*journal*", "/*.table*"} {
		left, err := filepath.Glob(dir + of)
		if err != nil || len(left) > 0 {
			u.t.Errorf("%s: %q are left, %v", when, left, err)
		}
	}
}

// TestHandoverOnLAN: a VIP on the LAN, and a TAP device, lose no packet while one process follows another. The MAC
// addresses stay. The command undo puts the host back.
func TestHandoverOnLAN(t *testing.T) {
	t.Parallel()
	inUDP := strings.NewReplacer(`"tcp"`, `"udp"`, "port = 80", "port = 53\none_packet = true")
	for name, build := range map[string]func(t *testing.T, ipv6 bool) (s *site, toml string){
		"tap": func(t *testing.T, ipv6 bool) (*site, string) {
			s := newTAPSite(t, ipv6, 2, false, nil)
			s.startAgents("")
			return s, s.tapTOML("", "", s.VIP)
		},
		"lan": func(t *testing.T, ipv6 bool) (*site, string) {
			s := newLAN(t, ipv6)
			s.director = s.prepare(s.Director, "director")
			return s, s.lanTOML("", s.VIP)
		},
	} {
		t.Run(name, func(t *testing.T) {
			testkit.Families(t, func(t *testing.T, ipv6 bool) {
				s, toml := build(t, ipv6)
				for _, web := range s.Webs {
					s.listenUDP(web, ":53")
				}
				store := newDescriptorStore(t)
				s.director = s.prepare(s.Director, "director")
				s.director.configure(inUDP.Replace(toml))
				before := observe(t, s.Director)
				store.start(s.director)
				up, owners := observe(t, s.Director), s.owners(s.Insider, s.VIP)
				arrived := s.countRequests()
				f := s.startFlow(53, 2*time.Millisecond)
				testkit.Within(t, "the flow arrives", soon, func() bool { return arrived() > 0 })
				for i, end := range []func(){s.director.kill, s.director.stop, s.director.kill} {
					f.mustCatchUp(t, arrived, min(i, 1))
					end()
					store.start(s.director)
					when := fmt.Sprintf("after restart %d", i)
					mustBe(t, when, map[string]hostState{"": up}, map[string]hostState{"": observe(t, s.Director)})
					if now := s.owners(s.Insider, s.VIP); !slices.Equal(owners, now) || len(now) != 1 {
						t.Errorf("%s a probe for the VIP is answered by %v, before by %v", when, now, owners)
					}
					if log := s.director.Output(); !strings.Contains(log, "took over the devices") {
						t.Errorf("%s the log is\n%s", when, log)
					}
				}
				f.mustArrive(t, arrived, 2)
				s.director.stop()
				table := keep.Path(s.director.socket, ".table")
				if _, err := os.Stat(table); err != nil {
					t.Error(err)
				}
				if got := s.ask("undo"); got.code != 0 || got.stdout != "removed the connection table\n" ||
					!strings.Contains(got.stderr, "undid what a predecessor left") {
					t.Errorf("undo: %+v", got)
				}
				if _, err := os.Stat(table); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("after undo: %v", err)
				}
				store.release()
				mustBecome(t, "after undo", before, s.Director)
				mustBeEmpty(t, "after undo", filepath.Dir(s.director.socket))
			})
		})
	}
}
