package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vstun/testdata/testkit"
)

// TestFirstStateIsTold: the command of [notify] runs once for the first known state of each service and realserver: at
// the start, up or down, with initial = "up", without a check, and for those that a reload adds.
func TestFirstStateIsTold(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, nil)
	s.startAgents("")
	s.nginx(s.Webs[0])
	file := filepath.Join(s.dir, "told")
	head := fmt.Sprintf("[notify]\ncommand = [\"/bin/sh\", \"-c\", 'echo \"$@\" >>%s', \"sh\"]\n", file)
	more := func(name string, port int, check string) string {
		const format = "[[service]]\nname = %q\nvip = %q\nprotocol = \"tcp\"\nport = %d\n%s\nrealserver = [ { " +
			"address = %q } ]\n"
		return fmt.Sprintf(format, name, s.VIP, port, check, s.Webs[0].Addr)
	}
	tcp := func(port int, initial string) string {
		const steady = `interval = "10s", timeout = "10s", rise = 1, fall = 1` // holds on a busy machine, too
		return fmt.Sprintf(`check = { type = "tcp", port = %d, initial = %q, %s }`, port, initial, steady)
	}
	toml := head + more("good", 8001, tcp(80, "down")) + more("bad", 8002, tcp(9, "down")) +
		more("good-up", 8003, tcp(80, "up")) +
		more("bad-up", 8004, tcp(9, "up")) + more("unchecked", 8005, "")
	const at = "10.0.11.2"
	want := []string{
		"realserver good " + at + " unknown up connected", "service good - unknown up weight 1 is up, quorum 1",
		"realserver bad " + at + " unknown down connection refused", "service bad - unknown down weight 0 is up, " +
			"quorum 1",
		"realserver good-up " + at + " unknown up connected", "service good-up - unknown up weight 1 is up, quorum 1",
		"realserver bad-up " + at + " unknown down connection refused", "service bad-up - unknown down weight 0 is " +
			"up, quorum 1",
		"realserver unchecked " + at + " unknown up no check",
		"service unchecked - unknown up weight 1 is up, quorum 1",
	}
	told := func() []string {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil
		}
		return slices.Sorted(strings.Lines(strings.ReplaceAll(string(text), "\r", "")))
	}
	all := func() bool {
		lines := told()
		return !slices.ContainsFunc(want, func(line string) bool { return !slices.Contains(lines, line+"\n") })
	}
	s.startDirectorWith(toml)
	testkit.Within(t, "there are events of the first states", 2*soon, all)

	toml += more("later", 8006, tcp(80, "down")) + more("later-bad", 8007, tcp(9, "up")) + more("later-unchecked", 8008,
		"")
	want = append(want, "realserver later "+at+" unknown up connected", "service later - unknown up weight 1 is up, "+
		"quorum 1",
		"realserver later-bad "+at+" unknown down connection refused", "service later-bad - unknown down weight 0 "+
			"is up, quorum 1",
		"realserver later-unchecked "+at+" unknown up no check", "service later-unchecked - unknown up weight 1 is "+
			"up, quorum 1")
	s.reloadWith(toml)
	testkit.Within(t, "there are events of the first states of the reload's additions", 2*soon, all)
	s.reloadWith(strings.Replace(toml, "8008", "8009", 1))
	s.director.stop()
	if lines := told(); len(lines) != len(want) {
		t.Errorf("%d events, want %d: %q", len(lines), len(want), lines)
	}
	if log := s.director.Output(); !strings.Contains(log, `msg="service down" service=bad`) ||
		strings.Contains(log, "service=unchecked") {
		t.Errorf("the log names what checks have found, and no more:\n%s", log)
	}
}

// TestComingUp: status, explain and doctor report that the checks of a realserver succeed, but not often enough yet.
func TestComingUp(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, nil)
	s.startAgents("")
	s.nginx(s.Webs[0])
	s.startDirectorWith(s.checkedTOML("", `type = "http", interval = "10s", timeout = "10s", rise = 1000`))
	const want = "of 1000 successes (HTTP status 200)"
	testkit.Within(t, "a check succeeds", soon, func() bool {
		return strings.Contains(s.director.balance().Services[0].Realservers[0].Check.Reason, want)
	})
	r := s.director.balance().Services[0].Realservers[0]
	if reason := fmt.Sprintf("coming up: %d %s", r.Check.Streak, want); r.Health != "down" || r.Check.Reason != reason {
		t.Errorf("status has %s, %+v, want reason %q", r.Health, r.Check, reason)
	}
	for _, command := range [][]string{{"status"}, {"explain", "192.0.2.7:4711", s.at(80)}, {"doctor"}} {
		got := s.ask(command...)
		if text := got.stdout; !strings.Contains(text, "coming up: ") || !strings.Contains(text, want) ||
			strings.Contains(text, "check fails") || strings.Contains(text, "it is down: http") {
			t.Errorf("%v prints\n%s%s", command, got.stdout, got.stderr)
		}
	}
}

// TestReloadAddsRealservers: no check of realservers that a reload adds is made before the director has added them.
func TestReloadAddsRealservers(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2, nil)
	s.startAgents("")
	for _, web := range s.Webs {
		s.namedEcho(web, 80)
	}
	// Hundreds of dead realservers make the reload slow, and the first check is due at once.
	toml := func(webs, dead int) string {
		text := fmt.Sprintf("[[service]]\nname = \"web\"\nvip = %q\nprotocol = \"tcp\"\nport = 80\n", s.VIP) +
			"check = { type = \"tcp\", interval = \"30s\", timeout = \"5s\", rise = 1 }\n"
		for _, web := range s.Webs[:webs] {
			text += fmt.Sprintf("[[service.realserver]]\naddress = %q\n", web.Addr)
		}
		for i := range dead {
			text += fmt.Sprintf("[[service.realserver]]\naddress = \"10.99.%d.%d\"\ncheck = { via = \"direct\" }\n",
				i/200, 1+i%200)
		}
		return text
	}
	s.startDirectorWith(toml(1, 0))
	for round := range 5 {
		s.reloadWith(toml(1, 0))
		s.reloadWith(toml(2, 500))
		testkit.Within(t, "the new realserver is up", 2*soon, func() bool {
			r := s.director.balance().Services[0].Realservers[1]
			if reason := r.Check.Reason; strings.Contains(reason, "fault") || strings.Contains(reason,
				"no route to realserver") {
				t.Fatalf("round %d: after a reload: %s", round, reason)
			}
			return r.Health == "up"
		})
	}
}
