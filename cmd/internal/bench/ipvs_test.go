package bench

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"

	"vstun/testdata/testkit"
)

// TestInteropKernelPaths measures what the kernel forwards, on one CPU if there is no other. make interop runs it in a
// guest that has IPVS.
func TestInteropKernelPaths(t *testing.T) {
	if os.Getenv("VSTUN_E2E_KERNEL") == "" {
		testkit.NeedFull(t, "without IPVS in the kernel")
	}
	o := someCPUs(t, "kernel")
	o.Kernel = true
	r := measured(t, o)
	t.Logf("skipped: %q, notes: %q", r.Skipped, r.Notes)
	ratios := map[string]float64{}
	for _, row := range r.Ratios {
		if ratios[row.Name] = row.Median; row.Median <= 0 || row.Bar != nil {
			t.Errorf("%s: %v, bar %v", row.Name, row.Median, row.Bar)
		}
	}
	skipped := strings.Join(r.Skipped, "\n")
	_, err := exec.LookPath("iperf3")
	for _, path := range []string{pathIPVS, "fast path"} {
		lacks := strings.Contains(skipped, path+": ")
		if lacks && path == pathIPVS && os.Getenv("VSTUN_E2E_KERNEL") == "must" {
			t.Errorf("skipped: %s", skipped)
		}
		const plain = " : plain forwarding"
		rows := []string{"packets a second, " + path + plain + ", 1 flow",
			"packets a second, " + path + plain + ", 100 flows", "round trip, median, " + path + plain}
		if err == nil {
			rows = append(rows, "TCP upload, "+path+plain)
		}
		for _, row := range rows {
			if got := ratios[row] > 0; got == lacks {
				t.Errorf("%s: %v; skipped: %q", row, ratios[row], skipped)
			}
		}
	}
}

// TestKernelOrAgainst checks that comparisons exclude each other.
func TestKernelOrAgainst(t *testing.T) {
	o := someCPUs(t, "both")
	o.Kernel, o.Against = true, o.Bin
	err := Run(t.Context(), &bytes.Buffer{}, o)
	if err == nil || !strings.Contains(err.Error(), "--kernel, --against and --wireguard") {
		t.Errorf("got %v", err)
	}
}
