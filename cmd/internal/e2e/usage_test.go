package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// usage runs a program on this host, where no director or agent runs, and returns exit status, standard output and
// standard error.
func usage(t *testing.T, program string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command(programPath(program), args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// TestUsage: the error about a command line is one line, in the words of other errors, with a suggestion.
func TestUsage(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ line, want string }{
		{"director statuss", `director: there is no command "statuss": did you mean status? See director --help`},
		{"director frobnicate", `director: there is no command "frobnicate": see director --help`},
		{"realserver chekc", `realserver: there is no command "chekc": did you mean check? See realserver --help`},
		{"director status --jsno",
			`director: there is no flag --jsno: did you mean --json? See director status --help`},
		{"director status --colour", `director: there is no flag --colour: see director status --help`},
		{"director status -x", `director: there is no flag -x: see director status --help`},
		{"director status --socket", `director: --socket has no value: want one: see director status --help`},
		{"director status web", `director: "web" is an argument, and director status takes none: see director ` +
			`status --help`},
		{"director explain 192.0.2.7", `director: 1 argument, where CLIENT[:PORT] VIP:PORT is wanted: see director ` +
			`explain --help`},
		{"director drain web", `director: 1 argument, where SERVICE REALSERVER or --all REALSERVER is wanted: see ` +
			`director drain --help`},
		{"director drain web 10.0.11.2 --wait --timeout 5", `director: --timeout "5" is not a duration: want one ` +
			`such as 5s: see director drain --help`},
		{"director set web 10.0.11.2", `director: --weight is missing: want --weight N, 0 (drains it) to 65535`},
		{"director capture", `director: --write is missing: want -w FILE, or -w - into a pipe`},
		{"director profile hep", `director: "hep" is unknown: did you mean heap? See director profile --help`},
		{"director profile --seconds x", `director: --seconds "x" is not a number: see director profile --help`},
		{"director top --sort pss", `director: --sort "pss" is unknown: did you mean pps?`},
		{"director connections --state ESTABLISHT", `director: --state "ESTABLISHT" is no state: did you mean ` +
			`ESTABLISHED?`},
		{"director explain 192.0.2.7 198.51.100.80:80 --protocol tpc", `director: --protocol "tpc" is no protocol: ` +
			`did you mean tcp?`},
		{"director import keepalive x", `director: import "keepalive": unknown: did you mean keepalived?`},
		{"director check a.toml -c b.toml", `director: a.toml and --config b.toml are two files: want one of them`},
		{"director check a.toml b.toml", `director: 2 arguments, where [FILE] is wanted: see director check --help`},
	} {
		args := strings.Fields(c.line)
		code, stdout, stderr := usage(t, args[0], args[1:]...)
		if code != 2 || stdout != "" || stderr != c.want+"\n" {
			t.Errorf("%s: exit status %d, %q, want 2 and %q", c.line, code, stdout+stderr, c.want)
		}
	}
	for _, program := range []string{"director", "realserver"} {
		_, want, _ := usage(t, program, "version")
		if code, got, stderr := usage(t, program, "--version"); code != 0 || got != want || !strings.HasPrefix(got,
			program+" ") {
			t.Errorf("%s --version: exit status %d, %q, want %q", program, code, got+stderr, want)
		}
	}
}

// TestCheckOfFile: `check FILE` is `check -c FILE`; a warning is on standard error, and no failure.
func TestCheckOfFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const service = "[[service]]\nname = \"web\"\nvip = \"198.51.100.80\"\nprotocol = \"tcp\"\nport = 80\n"
	fine := write("fine.toml", service+"realserver = [{ address = \"10.0.11.2\" }]\n")
	odd := write("odd.toml", service+"scheduler_flags = [\"sh-port\"]\n")
	bad := write("bad.toml", service+"realserver = [{ address = \"10.0.11.2\", weight = -1 }]\n")
	agent := write("agent.toml", "[realserver]\nvips = [\"198.51.100.80\"]\ndirectors = [\"10.0.2.2\"]\n")
	for _, c := range []struct {
		program, file  string
		code           int
		stdout, stderr string
	}{
		{"director", fine, 0, fine + ": fine: 1 service\n", ""},
		{"director", odd, 0, odd + ": fine: 1 service, 2 warnings\n", "director: warning: " + odd +
			":6: service \"web\": scheduler_flags: scheduler wlc has no flags and ignores them: leave them out, or " +
			"use sh or mh\n" +
			"director: warning: " + odd + ":1: service \"web\": realserver: missing: the service refuses all " +
			"clients: want [[service.realserver]] tables\n"},
		{"director", bad, 2, "", "director: " + bad + ":6: service \"web\": realserver \"10.0.11.2\": weight: -1 is " +
			"out of range: want 0 (drains it) to 65535\n"},
		{"realserver", agent, 0, agent + ": fine: 198.51.100.80\n", ""},
	} {
		for _, args := range [][]string{{"check", c.file}, {"check", "-c", c.file}} {
			if code, stdout, stderr := usage(t, c.program, args...); code != c.code || stdout != c.stdout ||
				stderr != c.stderr {
				t.Errorf("%s %v: exit status %d, %q, %q; want %d, %q, %q", c.program, args, code, stdout, stderr,
					c.code, c.stdout, c.stderr)
			}
		}
	}
}

// TestCompletion: flags with fixed values offer them, other arguments than files offer no files, and no description has
// a backtick.
func TestCompletion(t *testing.T) {
	t.Parallel()
	const noFiles, files, filter = ":4", ":0", ":8"
	for _, c := range []struct {
		args []string
		want []string // all of the lines, but for descriptions; the last one is the directive
	}{
		{[]string{"top", "--sort", ""}, []string{"configuration", "bit/s", "pps", "cps", "active", "name", noFiles}},
		{[]string{"explain", "--protocol", ""}, []string{"tcp", "udp", "sctp", noFiles}},
		{[]string{"profile", ""}, []string{"cpu", "heap", "allocs", "goroutine", "mutex", "block", "trace", noFiles}},
		{[]string{"import", ""}, []string{"keepalived", "ipvsadm", noFiles}},
		{[]string{"import", "keepalived", ""}, []string{files}},
		{[]string{"status", ""}, []string{noFiles}},
		{[]string{"capture", "--count", ""}, []string{noFiles}},
		{[]string{"capture", "-w", ""}, []string{files}},
		{[]string{"check", ""}, []string{"toml", filter}},
		{[]string{"status", "-c", ""}, []string{"toml", filter}},
	} {
		_, stdout, _ := usage(t, "director", append([]string{"__completeNoDesc"}, c.args...)...)
		if got := strings.Fields(stdout); strings.Join(got, " ") != strings.Join(c.want, " ") {
			t.Errorf("%v: %q, want %q", c.args, got, c.want)
		}
	}
	if _, stdout, _ := usage(t, "director", "__completeNoDesc", "connections", "--state", ""); !strings.Contains(stdout,
		"ESTABLISHED\n") || !strings.Contains(stdout, "TEMPLATE\n") {
		t.Errorf("states: %q", stdout)
	}
	for _, command := range []string{"set", "drain", "capture", "connections", "explain", "top", "status", "import",
		"run"} {
		_, stdout, _ := usage(t, "director", "__complete", command, "--")
		if strings.Contains(stdout, "`") || !strings.Contains(stdout, "--help\t") || strings.Count(stdout, "\n") < 3 {
			t.Errorf("flags of %s:\n%s", command, stdout)
		}
	}
}

// TestSecondStart: the second start of a program names the running one with its process and socket, not their journal.
func TestSecondStart(t *testing.T) {
	t.Parallel()
	s := newRunningSite(t, 1, service{"tcp", "80", "wrr", []int{1}})
	for p, what := range map[*program]string{s.director: "a director", s.agents[0]: "an agent"} {
		pid := 0
		if p == s.director {
			pid = p.balance().Pid
		} else {
			pid = p.intake().Pid
		}
		got := run(t, p.host, exec.Command(programPath(p.name), "run", "-c", p.config))
		want := fmt.Sprintf("%s: %s runs already (process %d, control socket %s): stop it, or set another path "+
			"as control\n", p.name, what, pid, p.socket)
		if got.code != 1 || got.stderr != want {
			t.Errorf("exit status %d, %s; want 1 and %s", got.code, got.stderr, want)
		}
	}
}
