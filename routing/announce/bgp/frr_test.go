package bgp

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vstun/routing/announce"
	"vstun/routing/kernel/kerneltest"
	"vstun/testdata/testkit"
)

// frr is FRR's zebra, bfdd and bgpd on the other host of a link.
type frr struct {
	*bird
	dir string
	all []*exec.Cmd
}

// newFRR makes the link and the other host. run runs FRR there.
func newFRR(t *testing.T) *frr {
	t.Helper()
	if _, err := os.Stat("/usr/lib/frr/bgpd"); err != nil {
		t.Skip("SKIPPED: needs FRR")
	}
	return &frr{bird: newBird(t)}
}

// run runs FRR with a session with this host, and BFD.
func (f *frr) run() {
	f.t.Helper()
	account, err := user.Lookup("frr") // the daemons' user, which makes their sockets
	kerneltest.Must(f.t, err)
	uid, _ := strconv.Atoi(account.Uid)
	f.dir, err = os.MkdirTemp("", "frr") // it cannot pass the folder above t.TempDir
	kerneltest.Must(f.t, err)
	dir := f.dir
	f.t.Cleanup(func() { _ = os.RemoveAll(dir) })
	kerneltest.Must(f.t, os.Chown(dir, uid, 0))
	peer := f.addr(1, false)
	for name, config := range map[string]string{"zebra": "", "bfdd": "",
		"bgpd": fmt.Sprintf("router bgp %d\n bgp router-id %v\n no bgp ebgp-requires-policy\n neighbor %v remote-as "+
			"%d\n neighbor %v timers 3 9\n neighbor %v timers connect 1\n neighbor %v bfd 3 500 500\n", routerAS,
			f.addr(2, false), peer, ownAS, peer, peer, peer)} {
		kerneltest.Must(f.t, os.WriteFile(dir+"/"+name+".conf", []byte(config), 0o644))
	}
	for _, name := range []string{"zebra", "bfdd", "bgpd"} {
		args := []string{"-f", dir + "/" + name + ".conf", "-i", dir + "/" + name + ".pid", "-z", dir + "/zserv.api",
			"--vty_socket", dir, "-A", "127.0.0.1", "-P", "0", "--log", "stdout"}
		if name == "bfdd" {
			args = append(args, "--bfdctl", dir+"/bfdd.sock")
		}
		cmd := exec.Command("/usr/lib/frr/"+name, args...)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		f.in(func() { kerneltest.Must(f.t, cmd.Start()) })
		f.all = append(f.all, cmd)
		testkit.Eventually(f.t, name+" runs", func() bool {
			_, err := os.Stat(dir + "/" + name + ".vty")
			return err == nil
		})
	}
	f.t.Cleanup(func() { f.end(syscall.SIGTERM) })
}

// end ends FRR.
func (f *frr) end(signal syscall.Signal) {
	for _, cmd := range f.all {
		_ = cmd.Process.Signal(signal)
		_ = cmd.Process.Signal(syscall.SIGCONT)
	}
	for _, cmd := range f.all {
		_ = cmd.Wait()
	}
	f.all = nil
}

// vtysh runs commands.
func (f *frr) vtysh(commands ...string) string {
	args := []string{"--vty_socket", f.dir}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	out, err := exec.Command("vtysh", args...).CombinedOutput()
	if err != nil {
		f.t.Errorf("vtysh %q: %v\n%s", commands, err, out)
	}
	return strings.TrimSpace(string(out))
}

// bfdOff switches BFD of the session off, by its administrative state.
func (f *frr) bfdOff() {
	f.t.Helper()
	f.vtysh("configure terminal", "bfd", "profile off", "shutdown")
	f.vtysh("configure terminal", fmt.Sprintf("router bgp %d", routerAS),
		fmt.Sprintf("neighbor %v bfd profile off", f.addr(1, false)))
}

// signal sends all daemons a signal.
func (f *frr) signal(signal syscall.Signal) {
	f.t.Helper()
	for _, cmd := range f.all {
		kerneltest.Must(f.t, cmd.Process.Signal(signal))
	}
}

// TestLastingSessions: BIRD and FRR are lost at the same time, by a kill and without a word, get another interval of
// BFD, and FRR switches its BFD off. Each has one more session afterwards, which lasts. BFD may end sessions of a
// machine that lets programs wait for longer than its 1.5 s: then all is done again, twice at most.
func TestLastingSessions(t *testing.T) {
	for range 3 {
		var ended []string
		if !t.Run("", func(t *testing.T) { ended = lastingSessions(t) }) || len(ended) == 0 {
			return
		}
		t.Log(strings.Join(ended, "; "))
	}
	t.Error("sessions ended that should last")
}

// lastingSessions is TestLastingSessions, and returns which sessions ended that should last.
func lastingSessions(t *testing.T) (ended []string) {
	f, b := newFRR(t), newBird(t)
	run := func() {
		f.run()
		b.run(routerAS, ownAS, false, "bfd yes;")
	}
	with := func(interval time.Duration) (peers []announce.Peer) {
		for _, r := range []*bird{f.bird, b} {
			peers = append(peers, r.peer(routerAS, false, func(p *announce.Peer) {
				p.HoldTime, p.BFD = 240*time.Second, announce.BFD{Interval: interval, Multiplier: 3}
			}))
		}
		return peers
	}
	run()
	s, _ := speak(t, with(500*time.Millisecond)...)
	sessions := func(what string, ok func(announce.Session) bool) {
		t.Helper()
		testkit.Eventually(t, what, func() bool {
			return !slices.ContainsFunc(s.Status().Sessions, func(v announce.Session) bool { return !ok(v) })
		})
	}
	last := func(what string, ups, downs uint64) {
		t.Helper()
		sessions("sessions that last "+what, func(v announce.Session) bool {
			return v.State == announce.Established && v.Since > 2*time.Second && v.BFD == "up"
		})
		for i, v := range s.Status().Sessions {
			if v.Ups != ups || v.Downs != downs {
				ended = append(ended, fmt.Sprintf("%s: session %d: %d ups and %d downs, want %d and %d", what, i, v.Ups,
					v.Downs, ups, downs))
			}
		}
	}
	lost := func(v announce.Session) bool { return v.State == announce.Down }

	last("at first", 1, 0)
	b.end(syscall.SIGKILL)
	f.end(syscall.SIGKILL)
	sessions("no sessions", lost)
	run()
	last("after a kill", 2, 1)

	f.signal(syscall.SIGSTOP)
	kerneltest.Must(t, b.cmd.Process.Signal(syscall.SIGSTOP))
	sessions("BFD to end the sessions", lost)
	f.signal(syscall.SIGCONT)
	kerneltest.Must(t, b.cmd.Process.Signal(syscall.SIGCONT))
	last("after a silence", 3, 2)

	kerneltest.Must(t, s.Set(config(with(600*time.Millisecond)...)))
	last("with another interval", 4, 2)
	downs := s.Status().Sessions[0].Downs
	f.bfdOff()
	testkit.Eventually(t, "the end of FRR's session", func() bool { return s.Status().Sessions[0].Downs > downs })
	testkit.Eventually(t, "a session without BFD that lasts", func() bool {
		v := s.Status().Sessions[0]
		return v.State == announce.Established && v.Since > 2*time.Second && v.BFD == "down"
	})
	if v := s.Status().Sessions[0]; v.Downs != downs+1 {
		ended = append(ended, fmt.Sprintf("without BFD at FRR: %+v", v))
	}
	return ended
}
