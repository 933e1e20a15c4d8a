package e2e

import (
	"encoding/json"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"vstun/testdata/testkit"
)

// TestIperf transfers in both directions with iperf3. Its control and data connections need the same realserver: there
// is one.
func TestIperf(t *testing.T) {
	t.Run("IPv4", func(t *testing.T) { testIperf(t, false) })
	t.Run("IPv6", func(t *testing.T) { testIperf(t, true) })
}

func testIperf(t *testing.T, ipv6 bool) {
	needTool(t, "iperf3", "iperf3")
	s := newRunningSiteOf(t, ipv6, 1, service{"tcp", "5201", "wrr", []int{1}}, service{"udp", "5201", "wrr", []int{1}})
	// Bound to the VIP: else a UDP server answers from the host's own address.
	server := s.server(s.Webs[0], netip.AddrPortFrom(s.VIP, 5201), exec.Command("iperf3", "-s", "-B", s.VIP.String(),
		"--forceflush"))
	// after each client, the server refuses connections for a moment; the first client was the one that found it up
	const ready = "Server listening"
	listens := 1
	for _, c := range []struct {
		name string
		args []string
	}{
		{"tcp-up", nil},
		{"tcp-up-4", []string{"-P", "4"}},
		{"tcp-down", []string{"-R"}},
		{"udp-up", []string{"-u", "-b", "50M"}},
		{"udp-down", []string{"-u", "-b", "50M", "-R"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for try := 1; ; try++ {
				listens++
				testkit.Eventually(t, "the server listens again", func() bool {
					return strings.Count(server.Output(), ready) >= listens
				})
				r := s.iperf(t, append([]string{"-t", "1"}, c.args...)...)
				t.Logf("%.0f Mbit/s, %.1f%% lost", r.BitsPerSecond/1e6, r.LostPercent)
				if r.Bytes >= 100_000 && r.BitsPerSecond > 0 && r.LostPercent <= 50 {
					break
				}
				// A busy machine may leave a receiver without a CPU.
				if try == 3 {
					t.Fatalf("moved %d bytes, %.1f%% lost", r.Bytes, r.LostPercent)
				}
			}
		})
	}
	if st := s.director.balance(); st.Services[0].Realservers[0].Connections < 9 || len(st.Drops) != 0 {
		t.Errorf("%d connections and drops %v, want at least 9 connections and no drop",
			st.Services[0].Realservers[0].Connections, st.Drops)
	}
}

// transfer is what an iperf3 client reports.
type transfer struct {
	Bytes         int     `json:"bytes"`
	BitsPerSecond float64 `json:"bits_per_second"`
	LostPercent   float64 `json:"lost_percent"`
}

// iperf runs an iperf3 client to the VIP.
func (s *site) iperf(t *testing.T, args ...string) transfer {
	t.Helper()
	got := runFor(t, s.Client, exec.Command("iperf3", append([]string{"-c", s.VIP.String(), "-J"}, args...)...),
		time.Minute)
	var report struct {
		End struct {
			Received transfer `json:"sum_received"` // TCP, counted by the receiver
			Sum      transfer `json:"sum"`          // UDP
		} `json:"end"`
		Error string `json:"error"`
	}
	if err := json.Unmarshal([]byte(got.stdout), &report); err != nil || got.code != 0 {
		t.Fatalf("iperf3: exit status %d, %s%v: %s", got.code, report.Error, err, got.stderr)
	}
	if report.End.Received.Bytes == 0 {
		return report.End.Sum
	}
	return report.End.Received
}
