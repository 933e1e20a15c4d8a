package vrrp

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"vstun/routing/kernel/kerneltest"
	"vstun/testdata/testkit"
)

// frrPrograms is where Debian's package frr has its daemons.
const frrPrograms = "/usr/lib/frr"

// frr runs FRR's zebra and vrrpd on the other host, with one virtual router. vrrpd wants a device with the virtual
// MAC address that has the address.
func (l *link) frr(version, priority int, interval time.Duration, virtual string) *daemon {
	l.t.Helper()
	if _, err := os.Stat(frrPrograms + "/vrrpd"); err != nil {
		l.t.Skip("SKIPPED: needs FRR's vrrpd")
	}
	ipv6 := strings.Contains(virtual, ":")
	l.in(l.peer, func() {
		mac := net.HardwareAddr{0, 0, 0x5e, 0, 1, 51}
		bits := 24
		if ipv6 {
			mac[4], bits = 2, 64
		}
		attrs := kerneltest.Named("vrrp51")
		attrs.ParentIndex, attrs.HardwareAddr = kerneltest.LinkOf(l.t, "eth0").Attrs().Index, mac
		kerneltest.Must(l.t, netlink.LinkAdd(&netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE}))
		kerneltest.SetSysctl(l.t, "net/ipv6/conf/vrrp51/addr_gen_mode", "1")
		at, err := netlink.ParseAddr(fmt.Sprintf("%s/%d", virtual, bits))
		kerneltest.Must(l.t, err)
		at.Flags = syscall.IFA_F_NODAD
		kerneltest.Must(l.t, netlink.AddrAdd(kerneltest.LinkOf(l.t, "vrrp51"), at))
		kerneltest.LinkUp(l.t, "vrrp51")
	})
	kind := "ip"
	if ipv6 {
		kind = "ipv6"
	}
	config := fmt.Sprintf("interface eth0\n vrrp 51 version %d\n vrrp 51 priority %d\n"+
		" vrrp 51 advertisement-interval %d\n", version, priority, interval.Milliseconds())
	config += fmt.Sprintf(" vrrp 51 %s %s\n", kind, virtual)
	frr, err := user.Lookup("frr") // the daemons' user, which makes their sockets
	kerneltest.Must(l.t, err)
	uid, _ := strconv.Atoi(frr.Uid)
	// It cannot pass the folder above t.TempDir.
	dir, err := os.MkdirTemp("", "frr")
	kerneltest.Must(l.t, err)
	l.t.Cleanup(func() { _ = os.RemoveAll(dir) })
	kerneltest.Must(l.t, os.Chown(dir, uid, 0))
	file := filepath.Join(dir, "frr.conf")
	kerneltest.Must(l.t, os.WriteFile(file, []byte(config), 0o644))
	kerneltest.Must(l.t, os.WriteFile(filepath.Join(dir, "zebra.conf"), nil, 0o644))
	d := &daemon{l: l}
	api := filepath.Join(dir, "zserv.api")
	common := func(name, conf string) []string {
		return []string{"-f", conf, "-i", filepath.Join(dir, name+".pid"), "-z", api, "--vty_socket", dir,
			"-A", "127.0.0.1", "-P", "0", "--log", "stdout"}
	}
	d.start(filepath.Join(dir, "zebra.log"), frrPrograms+"/zebra", common("zebra", filepath.Join(dir, "zebra.conf"))...)
	testkit.Eventually(l.t, "zebra", func() bool { _, err := os.Stat(api); return err == nil })
	d.start(filepath.Join(dir, "vrrpd.log"), frrPrograms+"/vrrpd", common("vrrpd", file)...)
	d.stop, d.kill = func() { d.end(syscall.SIGTERM) }, func() { d.end(syscall.SIGKILL) }
	l.t.Cleanup(func() {
		d.stop()
		if l.t.Failed() {
			for _, name := range []string{"zebra", "vrrpd"} {
				text, _ := os.ReadFile(filepath.Join(dir, name+".log"))
				l.t.Logf("%s:\n%s", name, text)
			}
			l.logStatus()
		}
	})
	d.role = func() string {
		cmd := exec.Command("vtysh", "--vty_socket", dir, "-d", "vrrpd", "-c", "show vrrp json")
		out, err := cmd.Output()
		var all []struct{ V4, V6 struct{ Status string } }
		if err != nil || json.Unmarshal(out, &all) != nil || len(all) == 0 {
			return ""
		}
		if ipv6 {
			return strings.ToLower(all[0].V6.Status)
		}
		return strings.ToLower(all[0].V4.Status)
	}
	return d
}

// TestFRR runs beside FRR's vrrpd, as its master and as its backup.
func TestFRR(t *testing.T) {
	t.Parallel()
	six := func(i *Instance) { i.Addrs = addrs("fe80::80") }
	for _, c := range []struct {
		name     string
		version  int
		interval time.Duration
		virtual  string
		ours     []func(*Instance)
	}{
		{"version 3", 3, 100 * time.Millisecond, "10.0.0.80", []func(*Instance){quick}},
		{"version 2", 2, time.Second, "10.0.0.80", []func(*Instance){version2}},
		{"IPv6", 3, 100 * time.Millisecond, "fe80::80", []func(*Instance){quick, six}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := newLink(t)
			l.run(vi(150, c.ours...))
			l.waitRole(Master)
			low := l.frr(c.version, 100, c.interval, c.virtual)
			low.waitRole("backup")
			l.stays(3*c.interval, Master, low, "backup")
			l.router.Standby()
			low.waitRole("master")
			l.waitRole(Backup)
			l.router.Activate()
			l.waitRole(Master)
			low.waitRole("backup")
			low.stop()
			l.in(l.peer, func() { kerneltest.Must(t, netlink.LinkDel(kerneltest.LinkOf(t, "vrrp51"))) })

			high := l.frr(c.version, 200, c.interval, c.virtual)
			high.waitRole("master")
			l.waitRole(Backup)
			l.stays(3*c.interval, Backup, high, "master")
			l.in(l.bridge, func() { l.connect(1, false) })
			l.waitRole(Master)
			l.in(l.bridge, func() { l.connect(1, true) })
			l.waitRole(Backup)
			high.kill()
			l.waitRole(Master)
			s := l.router.Status()[0]
			if n := s.Counts.Refused.Sum(); n > 0 || s.Counts.Conflicts > 0 || s.Counts.Failed > 0 {
				t.Errorf("counts %+v", s.Counts)
			}
		})
	}
}

// TestFRREqual checks that the higher address wins over an equal priority.
func TestFRREqual(t *testing.T) {
	t.Parallel()
	l := newLink(t)
	peer := l.frr(3, 100, 100*time.Millisecond, "10.0.0.80")
	peer.waitRole("master")
	l.run(vi(100, quick))
	l.waitRole(Backup)
	l.in(l.bridge, func() { l.connect(0, false) })
	l.waitRole(Master)
	l.in(l.bridge, func() { l.connect(0, true) })
	l.waitRole(Backup)
	l.stays(time.Second, Backup, peer, "master")
}
