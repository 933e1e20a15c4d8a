package lab

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vstun/testdata/testkit"
)

// The router routes packets from the client for an address to the director, and packets from the director to web1.
func TestRoutes(t *testing.T) {
	l := newLab(t, "route")
	t.Run("IPv4", func(t *testing.T) {
		makesDetour(t, l, netip.MustParseAddr("198.51.100.90"), "net.ipv4.ip_forward",
			func(h *Host) netip.Addr { return h.Addr })
	})
	t.Run("IPv6", func(t *testing.T) {
		makesDetour(t, l, netip.MustParseAddr("2001:db8:100::90"), "net.ipv6.conf.all.forwarding",
			func(h *Host) netip.Addr { return h.Addr6 })
	})
}

func makesDetour(t *testing.T, l *Lab, addr netip.Addr, forwarding string, of func(*Host) netip.Addr) {
	web := l.Webs[0]
	for what, step := range map[string]func() error{
		"forward":   func() error { return l.Director.Sysctl(forwarding, "1") },
		"own":       func() error { return web.Own(addr) },
		"route":     func() error { return l.Router.Route(addr, of(l.Director)) },
		"back":      func() error { return l.Router.RouteFrom("director", addr, of(web)) },
		"same rule": func() error { return l.Router.RouteFrom("director", addr.Next(), of(web)) },
	} {
		if err := step(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	passed, err := l.Director.Count("eth0", Filter{Destination: addr, Protocol: unix.IPPROTO_TCP, Direction: In})
	if err != nil {
		t.Fatal(err)
	}
	defer passed.Close()
	answer(t, web)
	if got, err := ask(l.Client, addr); err != nil || got != "web1 "+of(l.Client).String() {
		t.Errorf("%q, %v", got, err)
	}
	if packets(t, passed) == 0 {
		t.Error("nothing passed the director")
	}
	if err := l.Router.RouteFrom("director", addr, of(web)); err == nil || !strings.Contains(err.Error(), "router") {
		t.Errorf("the same route again: %v", err)
	}
}

func TestSinkIsCountedAndSilent(t *testing.T) {
	const sent = 50
	l := newLab(t, "sink")
	web, addr := l.Webs[0], netip.MustParseAddr("10.0.11.9")
	if err := l.Router.Sink("web1", addr); err != nil {
		t.Fatal(err)
	}
	answers, err := web.Count("eth0", Filter{Source: web.Addr})
	if err != nil {
		t.Fatal(err)
	}
	defer answers.Close()
	before, err := web.Received("eth0")
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Client.Dial("udp", netip.AddrPortFrom(addr, 9).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range sent {
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	testkit.Eventually(t, "all packets at web1", func() bool {
		now, err := web.Received("eth0")
		return err == nil && now >= before+sent
	})
	if n := packets(t, answers); n != 0 {
		t.Errorf("web1 sent %d packets", n)
	}
	if _, err := web.Received("eth9"); err == nil {
		t.Error("frames received by a link that does not exist: no error")
	}
}

func TestMAC(t *testing.T) {
	l := newLab(t, "mac")
	near, err := l.Client.MAC("eth0")
	if err != nil || len(near) != 6 {
		t.Fatalf("%v, %v", near, err)
	}
	far, err := l.Router.MAC("client")
	if err != nil || far.String() == near.String() {
		t.Errorf("both ends of a link have %v, %v", far, err)
	}
	for _, mac := range []net.HardwareAddr{near, far} {
		if mac.String() == UnknownMAC().String() {
			t.Errorf("%v is a host's", mac)
		}
	}
}

func TestStartOn(t *testing.T) {
	l := newLab(t, "cpu")
	var own unix.CPUSet
	if err := unix.SchedGetaffinity(0, &own); err != nil {
		t.Fatal(err)
	}
	last := 0
	for cpu := range len(own) * 64 {
		if own.IsSet(cpu) {
			last = cpu
		}
	}
	allowed := func(p *Process) string {
		t.Helper()
		if err := p.Wait(); err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(p.Output(), "Cpus_allowed_list:")
		line, _, _ := strings.Cut(rest, "\n")
		return strings.TrimSpace(line)
	}
	p, err := l.Client.StartOn(last, exec.Command("cat", "/proc/self/status"))
	if err != nil {
		t.Fatal(err)
	}
	if got := allowed(p); got != fmt.Sprint(last) {
		t.Errorf("it may run on CPUs %q, want %d", got, last)
	}
	// The thread that forked has its CPUs back.
	if p, err = l.Client.Start(exec.Command("cat", "/proc/self/status")); err != nil {
		t.Fatal(err)
	}
	if got := allowed(p); own.Count() > 1 && got == fmt.Sprint(last) {
		t.Errorf("the next process is bound as well, to %q", got)
	}
	if _, err := l.Client.StartOn(1023, exec.Command("true")); err == nil {
		t.Error("a process on a CPU that does not exist: no error")
	}
}

// With Segmented the link carries packets of the MTU, and with GRO the host merges them again.
func TestLinkOffloads(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to make network namespaces")
	}
	const size = 8 << 20
	for _, c := range []struct {
		name            string
		link            Link
		atMost, atLeast float64 // bytes in a frame, on the average, as packet sockets see them
	}{
		{name: "GSO packets", link: Link{}, atLeast: 3000, atMost: 65536},
		{name: "segments", link: Link{Segmented: true}, atLeast: 0, atMost: 1500},
		{name: "gathered", link: Link{Segmented: true, GRO: 50 * time.Microsecond}, atLeast: 1501, atMost: 65536},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, err := New(Spec{Prefix: prefix("offload"), Webs: 1, Links: map[string]Link{"web1": c.link}})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			web := l.Webs[0]
			seen, err := web.Count("eth0", Filter{Destination: web.Addr, Protocol: unix.IPPROTO_TCP, Direction: In})
			if err != nil {
				t.Fatal(err)
			}
			defer seen.Close()
			ln, err := web.Listen("tcp", ":80")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			got := make(chan int64, 1)
			go func() {
				c, err := ln.Accept()
				if err != nil {
					got <- -1
					return
				}
				defer c.Close()
				n, _ := io.Copy(io.Discard, c)
				got <- n
			}()
			conn, err := l.Client.Dial("tcp", netip.AddrPortFrom(web.Addr, 80).String())
			if err != nil {
				t.Fatal(err)
			}
			_, err = conn.Write(make([]byte, size))
			conn.Close()
			if n := <-got; err != nil || n != size {
				t.Fatalf("%d of %d bytes came through, %v", n, size, err)
			}
			average := size / float64(packets(t, seen))
			if average < c.atLeast || average > c.atMost {
				t.Errorf("%.0f bytes in a frame, want %.0f to %.0f", average, c.atLeast, c.atMost)
			}
		})
	}
	for _, gro := range []time.Duration{-1, time.Minute} {
		if _, err := plan(Spec{Prefix: "x", Webs: 1, Links: map[string]Link{"web1": {GRO: gro}}}); err == nil {
			t.Errorf("GRO %v: no error", gro)
		}
	}
}
