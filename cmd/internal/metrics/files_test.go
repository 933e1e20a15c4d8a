package metrics

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The files beside the units.
const (
	alertsFile    = "../../director/vstun-alerts.yml"
	dashboardFile = "../../director/vstun-dashboard.json"
)

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// promtool runs promtool.
func promtool(t *testing.T, stdin string, args ...string) {
	t.Helper()
	path, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("SKIPPED: needs promtool: apt-get install prometheus (or make deps)")
	}
	cmd := exec.Command(path, args...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// write writes a file for promtool.
func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestPromtool lets Prometheus's own tool check the answers.
func TestPromtool(t *testing.T) {
	for _, h := range handlers() {
		promtool(t, ask(t, h), "check", "metrics")
	}
}

// TestAlerts: each alert fires on its condition, and no alert fires without one.
func TestAlerts(t *testing.T) {
	rules, err := filepath.Abs(alertsFile)
	if err != nil {
		t.Fatal(err)
	}
	cases := read(t, "testdata/alerts_test.yml")
	for _, m := range regexp.MustCompile(`alert: (\w+)`).FindAllStringSubmatch(read(t, rules), -1) {
		if !strings.Contains(cases, `alertname="`+m[1]+`"`) {
			t.Errorf("no case raises %s", m[1])
		}
	}
	promtool(t, "", "check", "rules", rules)
	promtool(t, "", "test", "rules", write(t, "test.yml", strings.Replace(cases, "[RULES]", "["+rules+"]", 1)))
}

// TestDashboard lets Prometheus parse each query of the dashboard.
func TestDashboard(t *testing.T) {
	var d struct {
		Panels []struct {
			ID      int
			Type    string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(read(t, dashboardFile)), &d); err != nil {
		t.Fatal(err)
	}
	ids, queries := map[int]bool{}, 0
	rules := "groups:\n  - name: dashboard\n    rules:\n"
	for _, p := range d.Panels {
		if ids[p.ID] || p.GridPos.W == 0 || p.GridPos.X+p.GridPos.W > 24 || (p.Type == "row") != (len(p.Targets) == 0) {
			t.Errorf("panel %+v", p)
		}
		ids[p.ID] = true
		for _, target := range p.Targets {
			queries++
			expr := strings.NewReplacer("$__rate_interval", "5m", "$director", ".*", "$agent", ".*", "$service",
				".*").Replace(target.Expr)
			rules += fmt.Sprintf("      - record: dashboard:query%d\n        expr: %q\n", queries, expr)
		}
	}
	if queries < 20 {
		t.Errorf("only %d queries", queries)
	}
	promtool(t, "", "check", "rules", write(t, "dashboard.yml", rules))
}

// TestFilesNameMetrics: every metric and label in the dashboard and in the alerts exists.
func TestFilesNameMetrics(t *testing.T) {
	var all strings.Builder
	for _, h := range handlers() {
		all.WriteString(ask(t, h))
	}
	labels := map[string]bool{"instance": true, "job": true} // Prometheus's own
	for _, m := range regexp.MustCompile(`[{,](\w+)="`).FindAllStringSubmatch(all.String(), -1) {
		labels[m[1]] = true
	}
	for _, file := range []string{alertsFile, dashboardFile} {
		text := strings.ReplaceAll(read(t, file), `\"`, `"`)
		names := regexp.MustCompile(`\b(vstun|process)_\w+`).FindAllString(text, -1)
		if len(names) < 10 {
			t.Errorf("%s: only %d metrics", file, len(names))
		}
		for _, name := range names {
			if !regexp.MustCompile(`(?m)^` + name + `(\{| )`).MatchString(all.String()) {
				t.Errorf("%s: there is no metric %s", file, name)
			}
		}
		for _, m := range regexp.MustCompile(`[{,](\w+)=~?"`).FindAllStringSubmatch(text, -1) {
			if !labels[m[1]] {
				t.Errorf("%s: there is no label %s", file, m[1])
			}
		}
		for _, m := range regexp.MustCompile(`\breason=~?"([^"]*)"`).FindAllStringSubmatch(text, -1) {
			for reason := range strings.SplitSeq(m[1], "|") {
				if !strings.Contains(all.String(), `reason="`+reason+`"`) {
					t.Errorf("%s: there is no reason %s", file, reason)
				}
			}
		}
	}
}
