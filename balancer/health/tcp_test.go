package health

import (
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// outcome is the expected result of a check.
type outcome struct {
	name   string
	probe  Probe
	at     netip.AddrPort
	ok     bool
	reason string // or how it begins, with "…"
}

func (o outcome) test(t *testing.T) {
	t.Run(o.name, func(t *testing.T) {
		t.Parallel()
		timeout := patience
		if strings.Contains(o.reason, "within") || strings.Contains(o.name, "slow") {
			timeout = 300 * time.Millisecond
		}
		begun := time.Now()
		reason, ok := once(t, o.probe, o.at, timeout)
		if took := time.Since(begun); ok && took > patience/2 {
			t.Errorf("it took %v", took)
		}
		begin, open := strings.CutSuffix(o.reason, "…")
		if ok != o.ok || open && !strings.HasPrefix(reason, begin) || !open && reason != o.reason {
			t.Errorf("%v, %q; want %v, %q", ok, reason, o.ok, o.reason)
		}
	})
}

func TestTCP(t *testing.T) {
	garbage := "\x00\xff\x16\x03\r\n\x1b[31m" + strings.Repeat("\xfe", 100)
	for _, o := range []outcome{
		{"open", TCP{}, listen(t, silence), true, "connected"},
		{"closed", TCP{}, closed(t), false, "connection refused"},
		{"no answer", TCP{}, deaf(t), false, "no connection within 300ms"},
		{"greets", TCP{Expect: "^SSH-2"}, listen(t, func(c net.Conn) { _, _ = c.Write([]byte("SSH-2.0-x\r\n")) }), true,
			"answer as expected"},
		{"asked", TCP{Send: "PING\r\n", Expect: `^\+PONG`}, listen(t, says("+PONG\r\n")), true, "answer as expected"},
		{"in pieces", TCP{Expect: "abcdef"}, listen(t, func(c net.Conn) {
			for _, b := range "xxabcdef" {
				_, _ = c.Write([]byte(string(b)))
			}
			silence(c)
		}), true, "answer as expected"},
		{"says something else", TCP{Send: "x", Expect: "^OK"}, listen(t, says("ERR 7\r\n")), false,
			`expect does not match the answer: "ERR 7\r\n"`},
		{"garbage", TCP{Send: "x", Expect: "^OK"}, listen(t, says(garbage)), false,
			"expect does not match the answer: \"\\x00\\xff…"},
		{"closes", TCP{Expect: "OK"}, listen(t, func(net.Conn) {}), false, "connection closed without an answer"},
		{"is silent", TCP{Send: "x", Expect: "OK"}, listen(t, silence), false, "no answer within 300ms"},
		{"has no end", TCP{Send: "x", Expect: "^OK"}, listen(t, says(strings.Repeat("no ", 100_000))), false,
			"expect does not match the first 64 KB of the answer: …"},
		{"resets", TCP{Send: "x", Expect: "OK"}, listen(t, reset), false, "connected, then: connection reset by peer"},
		{"bytes as expected", TCP{Send: "\x00\xff", ExpectHex: "00FF ?? 7? ?0"}, listen(t,
			says("\x00\xff\x80\x7a\x10 and more")), true, "answer as expected"},
		{"bytes in pieces", TCP{ExpectHex: "00 ff 80"}, listen(t, func(c net.Conn) {
			for _, b := range []byte("\x00\xff\x80") {
				_, _ = c.Write([]byte{b})
			}
			silence(c)
		}), true, "answer as expected"},
		{"other bytes", TCP{Send: "x", ExpectHex: "00 ff 8?"}, listen(t, says("\x00\xff\x7a")), false,
			"expect_hex does not match the answer: 00 ff 7a"},
		{"bytes later on", TCP{Send: "x", ExpectHex: "ff"}, listen(t, says("\x00\xff")), false,
			"expect_hex does not match the answer: 00 ff"},
		{"too few bytes", TCP{Send: "x", ExpectHex: "00 ??"}, listen(t, says("\x00")), false,
			"expect_hex does not match the answer: 00"},
	} {
		o.test(t)
	}
}

// reset ends a connection by RST as soon as bytes have arrived.
func reset(c net.Conn) {
	_ = c.(*net.TCPConn).SetLinger(0)
	_, _ = c.Read(make([]byte, 4096))
}

// deaf returns an address where a listening socket's queue is full: a SYN is not answered.
func deaf(t *testing.T) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(os.NewSyscallError("socket", err))
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(os.NewSyscallError("bind", err))
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(os.NewSyscallError("listen", err))
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(os.NewSyscallError("getsockname", err))
	}
	at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(name.(*unix.SockaddrInet4).Port))
	for range 4 {
		c, err := net.DialTimeout("tcp", at.String(), 200*time.Millisecond)
		if err != nil {
			return at
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	t.Fatal("the queue of a listening socket is never full")
	return at
}

func TestReasonsAreOneLine(t *testing.T) {
	for in, want := range map[string]string{
		"a\nb\r\n\x1b[0m": "a b [0m",
		"":                "",
		" x ":             "x",
		"\xff":            "\uFFFD",
	} {
		if got := oneLine(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if got := oneLine(strings.Repeat("é", 1000)); len([]rune(got)) != maxReason+1 {
		t.Errorf("%d characters are left", len([]rune(got)))
	}
}
