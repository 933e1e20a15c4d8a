package e2e

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

// mayImport is the house's directions: which packages of this module each package may import; "cmd/…" may import all. A
// package that is not here fails the test: give it its place.
var mayImport = map[string][]string{
	"encap/packet/drop":  {},
	"encap/packet/stats": {"encap/packet/drop"},
	"encap/packet":       {"encap/packet/drop"},
	"encap":              {"encap/packet", "encap/packet/drop"},
	"encap/wire/pollfd":  {},
	"encap/egress":       {"encap", "encap/packet", "encap/packet/drop", "encap/packet/stats"},
	"encap/wire":         {"encap/egress", "encap/packet", "encap/wire/pollfd"},
	"encap/query":        {"encap", "encap/packet"},
	"encap/endpoint": {
		"encap", "encap/egress", "encap/packet", "encap/packet/drop", "encap/packet/stats", "encap/query",
	},
	"tundev":                  {"encap/packet", "encap/packet/drop", "encap/wire/pollfd"},
	"balancer/conntab":        {"encap/packet"},
	"balancer/method":         {"encap", "encap/egress", "encap/packet"},
	"balancer":                {"balancer/conntab", "balancer/method", "encap/packet", "encap/packet/drop"},
	"balancer/health":         {"balancer/health/command"},
	"balancer/health/command": {},
	"balancer/health/notify":  {"balancer/health/command"},
	"balancer/forward": {
		"balancer", "balancer/conntab", "encap", "encap/egress", "encap/packet", "encap/packet/drop",
		"encap/packet/stats",
	},
	"routing": {},
}

const capLibrary = "kernel.org/pub/linux/libs/security/libcap/cap"

// onlyBelow says which packages may import a library, tests apart.
var onlyBelow = map[string][]string{
	"github.com/BurntSushi/toml":                     {"cmd/internal/config"},
	"github.com/spf13/cobra":                         {"cmd"},
	"github.com/miekg/dns":                           {"balancer/health", "cmd/internal/config"},
	"net/http":                                       {"cmd", "balancer/health"},
	"github.com/prometheus/client_golang/prometheus": {"cmd/internal/metrics"},
	"github.com/prometheus/client_golang/prometheus/collectors": {"cmd/internal/metrics"},
	"github.com/prometheus/client_golang/prometheus/promhttp":   {"cmd/internal/metrics"},
	"os/signal":                         {"cmd"},
	"github.com/vishvananda/netlink":    {"routing", "cmd/internal/lab"},
	"github.com/vishvananda/netns":      {"routing", "cmd/internal/lab"},
	"github.com/songgao/water":          {"tundev"},
	"golang.org/x/net/bpf":              {"encap/wire", "cmd/internal/lab"},
	capLibrary:                          {"cmd/internal/daemon"},
	"github.com/chromedp/chromedp":      {"cmd/internal/page/pagetest"},
	"github.com/google/nftables":        {"cmd/internal/doctor"},
	"github.com/google/nftables/expr":   {"cmd/internal/doctor"},
	"github.com/google/nftables/xt":     {"cmd/internal/doctor"},
	"github.com/mdlayher/netlink":       {"cmd/internal/doctor"},
	"github.com/google/gopacket":        {"cmd/internal/capture"},
	"github.com/google/gopacket/layers": {"cmd/internal/capture"},
	"github.com/google/gopacket/pcapgo": {"cmd/internal/capture"},
	"github.com/gdamore/tcell/v2":       {"cmd/internal/top"},
	"C":                                 {},
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
			t.Errorf("%s has no place in the house: add it to mayImport", p.ImportPath)
		}
		for _, i := range p.Imports {
			if ours, ok := strings.CutPrefix(i, "vstun/"); ok {
				if !inCmd && !slices.Contains(allowed, ours) {
					t.Errorf("%s imports %s, against the directions of the house", p.ImportPath, ours)
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
