package director

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vstun/cmd/internal/config"
	"vstun/testdata/testkit"
)

// TestEventsInOrder: of realservers that fail together, their own events precede the event of their service.
func TestEventsInOrder(t *testing.T) {
	flag := filepath.Join(t.TempDir(), "fail")
	cfg := running()
	cfg.Services = cfg.Services[:1]
	s := &cfg.Services[0]
	r := s.Realservers[0]
	s.Realservers, s.Quorum = nil, 1
	const n = 40
	for i := range n {
		r.Address, r.Weight = netip.AddrFrom4([4]byte{10, 0, 11, byte(i + 1)}), 1
		s.Realservers = append(s.Realservers, r)
	}
	withChecks(s, config.Check{Type: "exec", Direct: true, Up: true,
		Command: []string{"/bin/sh", "-c", "while [ ! -e " + flag + " ]; do sleep 0.02; done; exit 1"}})
	o := operate(t, cfg, nil)
	o.told.take()
	if err := os.WriteFile(flag, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var lines []string
	testkit.Eventually(t, "all are down", func() bool {
		for _, l := range o.told.take() {
			if strings.Contains(l, "down") {
				lines = append(lines, l)
			}
		}
		return len(lines) > n
	})
	isService := func(l string) bool { return !strings.Contains(l, "10.0.11.") }
	at := slices.IndexFunc(lines, isService)
	t.Logf("the event of the service is at place %d of %d", at, len(lines))
	if at < n/2 {
		t.Errorf("the service's event is at place %d of %d:\n%s", at, len(lines), strings.Join(lines, "\n"))
	}
}
