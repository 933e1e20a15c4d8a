package health

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// serverEnv makes the test program one of the servers that BenchmarkMonitor checks. The server is a process of its own,
// whose processor time does not count.
const serverEnv = "VSTUN_HEALTH_SERVER"

func TestMain(m *testing.M) {
	switch os.Getenv(serverEnv) {
	case "tcp":
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			panic(err)
		}
		fmt.Println(l.Addr())
		for {
			if c, err := l.Accept(); err == nil {
				go func() {
					silence(c)
					_ = c.Close()
				}()
			}
		}
	case "http", "https":
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_,
				_ = w.Write([]byte("fine"))
		}))
		if os.Getenv(serverEnv) == "https" {
			s.StartTLS()
		} else {
			s.Start()
		}
		fmt.Println(s.Listener.Addr())
		select {}
	}
	os.Exit(m.Run())
}

// BenchmarkMonitor: 1,000 realservers, or 100 by https, each checked about once a second. cpu-%/1000 is the share of a
// core that 1,000 checks a second take.
func BenchmarkMonitor(b *testing.B) {
	for _, c := range []struct {
		name  string
		probe Probe
	}{
		{"tcp", TCP{}},
		{"http", HTTP{Path: "/", Status: []StatusRange{{200, 299}}, Body: "fine"}},
		{"https", HTTP{TLS: true, Path: "/", Status: []StatusRange{{200, 299}}}},
	} {
		b.Run(c.name, func(b *testing.B) { benchmarkMonitor(b, c.name, c.probe) })
	}
}

func benchmarkMonitor(b *testing.B, server string, probe Probe) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), serverEnv+"="+server)
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	at := netip.MustParseAddrPort(strings.TrimSpace(line))
	var all []Subject
	n := 1000
	if server == "https" { // its server needs a core for 100 checks a second
		n = 100
	}
	for i := range n {
		all = append(all, Subject{Service: "web",
			Realserver: plain(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})),
			Targets:    []netip.Addr{at.Addr()}, Port: at.Port(),
			Path: Direct{}, Check: &Check{Probe: probe, Interval: time.Second, Timeout: time.Second, Rise: 2, Fall: 3}})
	}
	m := New(func([]Change) {})
	mustSet(b, m, all...)
	run(b, m)
	for deadline := time.Now().Add(time.Minute); weight(m) < len(all); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.Fatal("not all are up after a minute")
		}
	}
	checks := func() (n, failed uint64) {
		for _, s := range m.States() {
			n, failed = n+s.Checks, failed+s.Failures
		}
		return n, failed
	}
	b.ReportAllocs()
	b.ResetTimer()
	from, _ := checks()
	used := cpu(b)
	for {
		if n, _ := checks(); n-from >= uint64(b.N) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	total, failed := checks()
	b.ReportMetric(float64(cpu(b)-used)/float64(total-from)/1e9*1000*100, "cpu-%/1000")
	if failed > 0 {
		b.Logf("%d of %d checks failed", failed, total)
	}
}

// cpu returns the processor time that this process has used.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
