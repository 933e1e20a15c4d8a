package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vstun/testdata/testkit"
)

// victimEnv makes the test binary build a lab of that prefix and wait to be killed.
const victimEnv = "VSTUN_LAB_TEST_VICTIM"

func TestMain(m *testing.M) {
	if prefix := os.Getenv(victimEnv); prefix != "" {
		victim(prefix)
	}
	os.Exit(m.Run())
}

func victim(prefix string) {
	l, err := New(Spec{Prefix: prefix, Webs: 1})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	p, err := l.Client.Start(exec.Command("sleep", "600"))
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("child", p.Pid())
	select {}
}

func prefix(name string) string { return fmt.Sprintf("labtest%d-%s", os.Getpid(), name) }

// newLab builds a lab with two web servers that ends with the test, and checks that it leaves no namespace.
func newLab(t *testing.T, name string) *Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make network namespaces")
	}
	l, err := New(Spec{Prefix: prefix(name), Webs: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if left := namespaces(t, prefix(name)); len(left) > 0 {
			t.Errorf("Close left %v", left)
		}
	})
	return l
}

func namespaces(t *testing.T, prefix string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(namespaceDir, prefix+"-*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// answer serves one TCP connection: it sends the name of the host and the address that it sees.
func answer(t *testing.T, h *Host) {
	t.Helper()
	ln, err := h.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(c, "%s %s", h.Name, c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap())
			c.Close()
		}
	}()
}

func ask(h *Host, to netip.Addr) (string, error) {
	c, err := h.Dial("tcp", netip.AddrPortFrom(to, 80).String())
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return "", err
	}
	b, err := io.ReadAll(c)
	return string(b), err
}

func TestEveryHostReachesEveryOther(t *testing.T) {
	l := newLab(t, "reach")
	behind := append([]*Host{l.Client, l.Director}, l.Webs...)
	for _, h := range behind {
		answer(t, h)
	}
	for _, from := range behind {
		for _, to := range behind {
			for _, way := range [][2]netip.Addr{{from.Addr, to.Addr}, {from.Addr6, to.Addr6}} {
				got, err := ask(from, way[1])
				if want := to.Name + " " + way[0].String(); err != nil || got != want {
					t.Errorf("%s to %s: %q, %v; want %q", from.Name, way[1], got, err, want)
				}
			}
		}
	}
}

// The lab's purpose: packets to the VIP reach the director, and the router forwards replies from the VIP that come from
// a web server's link.
func TestVIP(t *testing.T) {
	l := newLab(t, "vip")
	t.Run("IPv4", func(t *testing.T) { passesVIP(t, l, l.VIP, l.Client.Addr) })
	t.Run("IPv6", func(t *testing.T) { passesVIP(t, l, l.VIP6, l.Client.Addr6) })
}

func passesVIP(t *testing.T, l *Lab, vip, client netip.Addr) {
	arrived, err := l.Director.Count("eth0", Filter{Destination: vip, Protocol: unix.IPPROTO_UDP, Direction: In})
	if err != nil {
		t.Fatal(err)
	}
	defer arrived.Close()
	c, err := l.Client.Dial("udp", netip.AddrPortFrom(vip, 53).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "one packet at the director", func() bool { return packets(t, arrived) == 1 })

	web := l.Webs[0]
	if err := web.Own(vip); err != nil {
		t.Fatal(err)
	}
	reply, err := web.ListenPacket("udp", netip.AddrPortFrom(vip, 53).String())
	if err != nil {
		t.Fatal(err)
	}
	defer reply.Close()
	if _, err := reply.WriteTo([]byte("world"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(client,
		c.LocalAddr().(*net.UDPAddr).AddrPort().Port()))); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	if n, err := c.Read(buf); err != nil || string(buf[:n]) != "world" {
		t.Errorf("client read %q, %v", buf[:n], err)
	}
}

func TestDoIsolates(t *testing.T) {
	l := newLab(t, "do")
	before, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	inode := func() (string, error) { return os.Readlink("/proc/thread-self/ns/net") }
	seen := map[string]string{before: "caller"}
	for _, h := range append([]*Host{l.Client, l.Router, l.Director}, l.Webs...) {
		var got string
		if err := h.Do(func() (err error) { got, err = inode(); return err }); err != nil {
			t.Fatal(err)
		}
		if other, ok := seen[got]; ok {
			t.Errorf("%s is in the namespace of %s", h.Name, other)
		}
		seen[got] = h.Name
	}
	// No thread that Go will use again is in a namespace of the lab: many goroutines at once see only the caller's
	// namespace.
	results := make(chan string, 64)
	for range cap(results) {
		go func() {
			got, err := inode()
			if err != nil {
				got = err.Error()
			}
			results <- got
		}()
	}
	for range cap(results) {
		if got := <-results; got != before {
			t.Errorf("a goroutine outside Do is in %s (%s), want %s", got, seen[got], before)
		}
	}
	if got, err := os.Readlink("/proc/self/ns/net"); err != nil || got != before {
		t.Errorf("main thread is in %s, %v", got, err)
	}

	sentinel := errors.New("sentinel")
	if err := l.Client.Do(func() error { return sentinel }); err != sentinel {
		t.Errorf("Do returned %v, want the function's error", err)
	}
	if _, err := l.Client.Dial("tcp", "localhost:80"); err == nil || !strings.Contains(err.Error(), "names") {
		t.Errorf("Dial of a name: %v", err)
	}
}

func TestLinkMTU(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to make network namespaces")
	}
	l, err := New(Spec{Prefix: prefix("mtu"), Webs: 1, Links: map[string]Link{"web1": {MTU: 9000}}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, end := range []struct {
		h    *Host
		link string
		want int
	}{{l.Webs[0], "eth0", 9000}, {l.Router, "web1", 9000}, {l.Client, "eth0", 1500}, {l.Router, "client", 1500}} {
		err := end.h.Do(func() error {
			dev, err := net.InterfaceByName(end.link)
			if err == nil && dev.MTU != end.want {
				err = fmt.Errorf("MTU %d, want %d", dev.MTU, end.want)
			}
			return err
		})
		if err != nil {
			t.Errorf("%s %s: %v", end.h.Name, end.link, err)
		}
	}
}

// IPv6 is off on links of less than 1,280 bytes.
func TestSmallMTU(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to make network namespaces")
	}
	l, err := New(Spec{Prefix: prefix("small"), Webs: 2, Links: map[string]Link{"web1": {MTU: 1279},
		"web2": {MTU: 1280}}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for i, six := range []bool{false, true} {
		web := l.Webs[i]
		answer(t, web)
		if got, err := ask(l.Client, web.Addr); err != nil || got != web.Name+" 10.0.1.2" {
			t.Errorf("%s: %q, %v", web.Addr, got, err)
		}
		if web.Addr6.IsValid() != six {
			t.Errorf("%s has the address %s", web.Name, web.Addr6)
		}
		if !six {
			continue
		}
		if got, err := ask(l.Client, web.Addr6); err != nil || got != web.Name+" fd00:0:1::2" {
			t.Errorf("%s: %q, %v", web.Addr6, got, err)
		}
	}
}

func TestTwoLabs(t *testing.T) {
	a, b := newLab(t, "a"), newLab(t, "b")
	for _, l := range []*Lab{a, b} {
		answer(t, l.Webs[1])
		if got, err := ask(l.Client, l.Webs[1].Addr); err != nil || got != "web2 10.0.1.2" {
			t.Errorf("%s: %q, %v", l.Client.Namespace, got, err)
		}
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if got, err := ask(b.Client, b.Webs[1].Addr); err != nil || got != "web2 10.0.1.2" {
		t.Errorf("second lab, after the first was closed: %q, %v", got, err)
	}
	if err := a.Client.Do(func() error { return nil }); err == nil {
		t.Error("Do in a closed lab succeeded")
	}
}

func TestPrefixInUse(t *testing.T) {
	l := newLab(t, "same")
	_, err := New(Spec{Prefix: prefix("same"), Webs: 2})
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) {
		t.Errorf("second lab of the prefix: %v, want an error that names process %d", err, os.Getpid())
	}
	answer(t, l.Webs[0])
	if got, err := ask(l.Client, l.Webs[0].Addr); err != nil || got != "web1 10.0.1.2" {
		t.Errorf("the first lab, after the second was refused: %q, %v", got, err)
	}
}

func TestNewAfterDeadLab(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to make network namespaces")
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), victimEnv+"="+prefix("dead"))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	child, err2 := strconv.Atoi(strings.TrimPrefix(strings.TrimSpace(line), "child "))
	if err := errors.Join(err, err2); err != nil {
		t.Fatalf("the lab that was to die said %q: %v", line, err)
	}
	if left := namespaces(t, prefix("dead")); len(left) != 4 {
		t.Errorf("the dead lab left %v, want 4 namespaces for this test to mean anything", left)
	}
	testkit.Eventually(t, "the dead lab's child is dead", func() bool { return !alive(child) })

	l := newLab(t, "dead")
	answer(t, l.Webs[1])
	if got, err := ask(l.Client, l.Webs[1].Addr); err != nil || got != "web2 10.0.1.2" {
		t.Errorf("%q, %v", got, err)
	}
}

// alive reports whether a process runs; a zombie does not.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	return fields[0] != "Z" && fields[0] != "X"
}

func TestSpecErrors(t *testing.T) {
	for _, c := range []struct {
		spec Spec
		want string
	}{
		{Spec{}, "prefix"},
		{Spec{Prefix: "../x"}, "prefix"},
		{Spec{Prefix: "x", Webs: -1}, "web servers"},
		{Spec{Prefix: "x", Webs: 246}, "web servers"},
		{Spec{Prefix: "x", Webs: 61, Network: LAN}, "web servers"},
		{Spec{Prefix: "x", Network: 3}, "network"},
		{Spec{Prefix: "x", Network: NAT, Links: map[string]Link{"switch": {}}}, "switch"},
		{Spec{Prefix: "x", Webs: 1, Links: map[string]Link{"web2": {}}}, "web2"},
		{Spec{Prefix: "x", Webs: 1, Links: map[string]Link{"router": {}}}, "router"},
		{Spec{Prefix: "x", Webs: 1, Links: map[string]Link{"web1": {MTU: 67}}}, "MTU 67"},
	} {
		if _, err := plan(c.spec); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want an error with %q", c.spec, err, c.want)
		}
	}
}
