package query

import (
	"errors"
	"io/fs"
	"os/exec"
	"testing"

	"vstun/routing/kernel"
	"vstun/testdata/testkit"
)

// TestTracksConnections has tables that need connection tracking of each family, with no connection yet, and tables
// without it.
func TestTracksConnections(t *testing.T) {
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("SKIPPED: needs nft: apt-get install nftables")
	}
	tests := map[string]struct {
		rules []string
		want  bool
	}{
		"none": {nil, false},
		"without tracking": {[]string{"add table ip f",
			"add chain ip f in { type filter hook input priority 0; }", "add rule ip f in ip ttl 1 drop"}, false},
		"IPv4": {[]string{"add table ip f", "add chain ip f in { type filter hook input priority 0; }",
			"add rule ip f in ct state invalid drop"}, true},
		"IPv6": {[]string{"add table ip6 f", "add chain ip6 f in { type filter hook forward priority 0; }",
			"add rule ip6 f in ct state invalid drop"}, true},
		"closed": {[]string{"add table inet f",
			"add chain inet f out { type filter hook output priority 0; policy drop; }"}, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			testkit.NewNamespace(t)
			if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
				t.Fatalf("%v %s", err, out)
			}
			if _, err := kernel.ReadSysctl("net/netfilter/nf_conntrack_count"); errors.Is(err, fs.ErrNotExist) {
				t.Skip("SKIPPED: needs a kernel that tracks connections")
			}
			for _, rule := range tt.rules {
				if out, err := exec.Command("nft", rule).CombinedOutput(); err != nil {
					t.Fatalf("nft %s: %v %s", rule, err, out)
				}
			}
			if got, err := TracksConnections(); got != tt.want || err != nil {
				t.Errorf("%v, %v; want %v", got, err, tt.want)
			}
			if got, err := HasTracked(); got != tt.want || err != nil {
				t.Errorf("behind it: %v, %v; want %v", got, err, tt.want)
			}
		})
	}
}
