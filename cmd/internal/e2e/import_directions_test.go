package e2e

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// mayImport has the packages of this module that each package may import. Those in cmd may import all. Another package
// fails the test until it has a line here.
var mayImport = map[string][]string{
	"encap/packet/drop":   {},
	"encap/packet/stats":  {"encap/packet/drop"},
	"encap/packet":        {"encap/packet/drop"},
	"encap":               {"encap/packet", "encap/packet/drop"},
	"encap/wire/pollfd":   {},
	"encap/egress":        {"encap", "encap/packet", "encap/packet/drop", "encap/packet/stats"},
	"encap/wire":          {"encap/egress", "encap/packet", "encap/wire/pollfd"},
	"encap/wire/sockdiag": {},
	"encap/query":         {"encap", "encap/packet"},
	"encap/bpf":           {"encap", "encap/packet"},
	"encap/endpoint": {
		"encap", "encap/egress", "encap/packet", "encap/packet/drop", "encap/packet/stats", "encap/query",
	},
	"encap/wireguard": {
		"encap/egress", "encap/packet", "encap/packet/drop", "encap/packet/stats", "encap/wire",
	},
	"tundev":            {"encap/packet", "encap/packet/drop", "encap/wire/pollfd"},
	"tundev/tap":        {"encap/egress", "encap/packet", "encap/packet/drop", "encap/packet/stats", "tundev"},
	"balancer/conntab":  {"encap/packet"},
	"balancer/keep":     {},
	"balancer/method":   {"encap", "encap/egress", "encap/packet"},
	"balancer/maglev":   {},
	"balancer/envelope": {},
	"balancer": {
		"balancer/conntab", "balancer/maglev", "balancer/method", "encap", "encap/packet", "encap/packet/drop",
	},
	"balancer/connsync": {
		"balancer", "balancer/conntab", "balancer/envelope", "balancer/method", "encap/packet",
	},
	"balancer/secondchance": {"balancer/envelope", "balancer/maglev", "encap"},
	"balancer/fastpath": {
		"balancer", "balancer/conntab", "balancer/method", "encap/bpf", "encap/packet",
	},
	"balancer/resolve":        {},
	"balancer/health":         {"balancer/health/command"},
	"balancer/health/command": {},
	"balancer/health/notify":  {"balancer/health/command"},
	"balancer/forward": {
		"balancer", "balancer/conntab", "balancer/method", "encap", "encap/egress", "encap/packet", "encap/packet/drop",
		"encap/packet/stats",
	},
	"routing":                   {"routing/kernel"},
	"routing/query":             {"routing/kernel"},
	"routing/neigh":             {"routing/kernel"},
	"routing/vrrp":              {},
	"routing/announce":          {},
	"routing/announce/bgp":      {"routing/announce"},
	"routing/kernel":            {},
	"routing/kernel/kerneltest": {"routing/kernel", "testdata/testkit"},
}

const capLibrary = "kernel.org/pub/linux/libs/security/libcap/cap"

// onlyBelow has the packages that may import a library, or are below one that may. It does not apply to tests.
var onlyBelow = map[string][]string{
	"github.com/BurntSushi/toml": {"cmd/internal/config"},
	"github.com/spf13/cobra": {"cmd/internal/cli", "cmd/internal/director", "cmd/internal/agent",
		"cmd/internal/doctor", "cmd/internal/bench", "cmd/internal/manual", "cmd/lab"},
	"github.com/miekg/dns": {"balancer/health", "balancer/resolve", "cmd/internal/config"},
	"net/http":             {"cmd", "balancer/health"},
	"github.com/prometheus/client_golang/prometheus":            {"cmd/internal/metrics"},
	"github.com/prometheus/client_golang/prometheus/collectors": {"cmd/internal/metrics"},
	"github.com/prometheus/client_golang/prometheus/promhttp":   {"cmd/internal/metrics"},
	"os/signal":                         {"cmd"},
	"github.com/vishvananda/netlink":    {"routing", "encap/bpf", "cmd/internal/lab"},
	"github.com/osrg/gobgp/v4/api":      {"routing/announce/bgp"},
	"golang.zx2c4.com/wireguard/device": {"encap/wireguard"},
	"golang.zx2c4.com/wireguard/conn":   {"encap/wireguard"},
	"golang.zx2c4.com/wireguard/tun":    {"encap/wireguard"},
	"github.com/cilium/ebpf":            {"encap/bpf"},
	"github.com/cilium/ebpf/asm":        {"encap/bpf"},
	"github.com/cilium/ebpf/features":   {"encap/bpf"},
	"github.com/cilium/ebpf/link":       {"encap/bpf"},
	"github.com/vishvananda/netns":      {"routing", "cmd/internal/lab"},
	"github.com/songgao/water":          {"tundev"},
	"golang.org/x/net/bpf":              {"encap/wire", "routing/neigh", "cmd/internal/lab"},
	capLibrary:                          {"cmd/internal/daemon"},
	"github.com/chromedp/chromedp":      {"cmd/internal/page/pagetest"},
	"github.com/google/nftables":        {"cmd/internal/doctor/nft"},
	"github.com/google/nftables/expr":   {"cmd/internal/doctor/nft"},
	"github.com/google/nftables/xt":     {"cmd/internal/doctor/nft"},
	"github.com/mdlayher/netlink":       {"cmd/internal/doctor/nft"},
	"github.com/mdlayher/packet":        {"routing/neigh"},
	"github.com/mdlayher/socket":        {"routing/neigh", "routing/vrrp"},
	"github.com/prometheus/procfs":      {"cmd/internal/doctor"},
	"github.com/google/gopacket":        {"cmd/internal/capture"},
	"github.com/google/gopacket/layers": {"cmd/internal/capture"},
	"github.com/google/gopacket/pcapgo": {"cmd/internal/capture"},
	"github.com/gdamore/tcell/v2":       {"cmd/internal/cli/top"},
	"C":                                 {},

	"github.com/osrg/gobgp/v4/pkg/apiutil":    {"routing/announce/bgp"},
	"github.com/osrg/gobgp/v4/pkg/packet/bgp": {"routing/announce/bgp"},
	"github.com/osrg/gobgp/v4/pkg/server":     {"routing/announce/bgp"},
	"github.com/coreos/go-systemd/v22/daemon": {"cmd/internal/daemon"},
	"github.com/wneessen/go-mail":             {"balancer/health/notify"},
	"github.com/wneessen/go-mail/smtp":        {"balancer/health/notify"},
	"github.com/coreos/go-systemd/v22/dbus":   {"cmd/internal/unit"},
}

type goPackage struct {
	ImportPath string
	Imports    []string
}

func list(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "vstun/...")
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var all []goPackage
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		p.ImportPath = strings.TrimPrefix(p.ImportPath, "vstun/")
		all = append(all, p)
	}
}

func TestImportDirections(t *testing.T) {
	all := list(t)
	if len(all) < len(mayImport) {
		t.Fatalf("only %d packages", len(all))
	}
	for _, p := range all {
		allowed, known := mayImport[p.ImportPath]
		inCmd := strings.HasPrefix(p.ImportPath, "cmd/")
		if !known && !inCmd {
			t.Errorf("%s has no import directions: add it to mayImport", p.ImportPath)
		}
		for _, i := range p.Imports {
			if ours, ok := strings.CutPrefix(i, "vstun/"); ok {
				if !inCmd && !slices.Contains(allowed, ours) {
					t.Errorf("%s imports %s, against the import directions", p.ImportPath, ours)
				}
				if inCmd && strings.HasPrefix(ours, "cmd/") && !strings.HasPrefix(ours, "cmd/internal/") {
					t.Errorf("%s imports the program %s", p.ImportPath, ours)
				}
				continue
			}
			if below, limited := onlyBelow[i]; limited && !under(p.ImportPath, below) {
				t.Errorf("%s imports %s, which is only for %v", p.ImportPath, i, below)
			}
		}
	}
}

func under(pkg string, folders []string) bool {
	for _, f := range folders {
		if ok, _ := path.Match(f, pkg); ok || strings.HasPrefix(pkg, f+"/") {
			return true
		}
	}
	return false
}

// TestRealserverWithoutBGP wants no BGP in the agent, which announces nothing.
func TestRealserverWithoutBGP(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "vstun/cmd/realserver").Output()
	if err != nil {
		t.Fatal(err)
	}
	for name := range strings.Lines(string(out)) {
		if strings.HasPrefix(name, "github.com/osrg/gobgp") || strings.HasPrefix(name, "vstun/routing/announce/bgp") {
			t.Errorf("cmd/realserver imports %s", name)
		}
	}
}

// TestTour wants every package in the tour of the code, and no other there.
func TestTour(t *testing.T) {
	text, err := os.ReadFile("../../lab/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "\n### Packages\n")
	table, _, _ = strings.Cut(table, "\nImports go one way")
	names := map[string]bool{}
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) < 2 {
			continue
		}
		for _, m := range regexp.MustCompile("`([a-z0-9/]+)`").FindAllStringSubmatch(cells[1], -1) {
			names[m[1]] = true
		}
	}
	for _, p := range list(t) {
		if !names[p.ImportPath] {
			t.Errorf("%s is not in the tour of cmd/lab/README.md", p.ImportPath)
		}
		delete(names, p.ImportPath)
	}
	delete(names, "testdata/testkit") // which vstun/... does not match
	for name := range names {
		t.Errorf("the tour of cmd/lab/README.md has %s, which is no package", name)
	}
}
