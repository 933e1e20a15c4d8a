package e2e

import (
	"testing"

	"vstun/cmd/internal/config"
)

// TestFastPathVariable: the variable puts the fast path off in configurations of every form, and no other key changes.
// A test's own key has precedence.
func TestFastPathVariable(t *testing.T) {
	const service = "[[service]]\nname = \"web\"\nvip = \"198.51.100.80\"\nprotocol = \"tcp\"\nport = 80\n"
	const agent = "vips = \"198.51.100.80\"\ndirectors = \"10.0.2.2\"\n"
	for _, c := range []struct {
		name, program, text string
		named               bool
	}{
		{"table", "director", "[director]\nqueues = 3\n" + service, false},
		{"table behind a comment", "director", "# comment\n[connections]\nmax = 4096\n[director]\nqueues = 3\n" +
			service, false},
		{"dotted keys", "director", "director.queues = 3\n" + service, false},
		{"own key", "director", "[director]\nqueues = 3\nfast_path = \"auto\"\n" + service, true},
		{"table", "realserver", "[realserver]\nqueues = 3\n" + agent, false},
		{"own key", "realserver", "[realserver]\nqueues = 3\nfast_path = \"auto\"\n" + agent, true},
	} {
		for _, variable := range []string{"", "off", "director", "realserver"} {
			t.Setenv(fastPathEnv, variable)
			if err := checkFastPathEnv(); err != nil {
				t.Error(err)
			}
			parsed, err := parseConfig(c.program, withFastPath(c.program, c.text))
			if err != nil {
				t.Fatalf("%s, %s: %v", c.program, c.name, err)
			}
			off, queues := false, 0
			switch p := parsed.(type) {
			case *config.Director:
				off, queues = p.FastPath.Off, p.Queues
			case *config.Realserver:
				off, queues = p.FastPath.Off, p.Queues
			}
			if want := !c.named && (variable == "off" || variable == c.program); off != want || queues != 3 {
				t.Errorf("%s=%s, %s, %s: off %v, want %v; %d queues, want 3", fastPathEnv, variable, c.program, c.name,
					off, want, queues)
			}
		}
	}
	t.Setenv(fastPathEnv, "on")
	if checkFastPathEnv() == nil {
		t.Errorf("%s=on is no error", fastPathEnv)
	}
}
