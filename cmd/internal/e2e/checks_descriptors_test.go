package e2e

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"vstun/testdata/testkit"
)

// TestChecksBeyondDescriptors: 2,000 checks hang, and the director has a limit of 1,024 descriptors. It still answers,
// waiting checks count against no realserver, and the realserver that works is checked. Start, check and doctor report
// the descriptors that the checks have and need.
func TestChecksBeyondDescriptors(t *testing.T) {
	t.Parallel()
	needTool(t, "nginx", "nginx-light")
	const hanging, limit = 2000, 1024
	s := newSite(t, 1, nil)
	s.swallow(s.Router, netip.MustParsePrefix("10.99.0.0/16")) // packets to it vanish
	s.startAgents("")
	s.nginx(s.Webs[0])
	s.director = s.prepare(s.Director, "director")
	text := s.checkedTOML("", `type = "http", interval = "1s", timeout = "1s"`) +
		fmt.Sprintf("[[service]]\nname = \"hanging\"\nvip = %q\nprotocol = \"tcp\"\nport = 81\n", s.VIP) +
		"check = { type = \"tcp\", via = \"direct\", interval = \"2s\", timeout = \"2s\", fall = 2, initial = " +
		"\"up\" }\n"
	for i := range hanging {
		text += fmt.Sprintf("[[service.realserver]]\naddress = \"10.99.%d.%d\"\n", i>>8, i&255)
	}
	s.director.configure(s.fileWith(text))
	limited := func(arguments ...string) *exec.Cmd {
		script := fmt.Sprintf(`ulimit -n %d; exec "$0" "$@"`, limit)
		return exec.Command("sh", append([]string{"-c", script, programPath("director")},
			append(arguments, "-c", s.director.config)...)...)
	}
	tells := func(what, text string) {
		t.Helper()
		for _, part := range []string{fmt.Sprint(hanging + 1), fmt.Sprintf("limit of %d leaves ", limit),
			"LimitNOFILE"} {
			if !strings.Contains(text, part) {
				t.Errorf("%s does not have %q:\n%s", what, part, text)
			}
		}
	}

	s.director.startAs(limited("run"))
	tells("the start", s.director.Output()) // before changes of health fill the kept part of the log
	testkit.Within(t, "the realserver that works is up", 6*soon, func() bool {
		return s.director.balance().Services[0].Realservers[0].Health == "up" // each poll needs the control socket
	})
	testkit.Within(t, "most of those that hang are down", 6*soon, func() bool {
		down := 0
		for _, r := range s.director.balance().Services[1].Realservers {
			if strings.HasPrefix(r.Check.Reason, "not checked,") {
				t.Fatalf("realserver %s: %s", r.Address, r.Check.Reason)
			}
			if r.Health == "down" {
				down++
			}
		}
		return down > hanging/2
	})
	if got := s.ask("status"); got.code != 0 {
		t.Errorf("status: exit status %d: %s", got.code, got.stderr)
	}
	if n := s.director.descriptors(); n > limit-100 {
		t.Errorf("the director has %d descriptors open, want some left of %d", n, limit)
	}
	if svc := s.director.balance().Services[0]; svc.Realservers[0].Health != "up" {
		t.Errorf("the realserver that works is %s: %s", svc.Realservers[0].Health, svc.Realservers[0].Check.Reason)
	}

	out := s.director.Output()
	if strings.Contains(out, "Accept error") {
		t.Errorf("the director could not accept connections:\n%s", out)
	}
	got := run(t, s.Director, limited("check"))
	if tells("check", got.stderr); got.code != 0 {
		t.Errorf("check: exit status %d: %s", got.code, got.stderr)
	}
	// The doctor does not probe the realservers that hang: it asks the running director.
	s.director.configure(s.fileWith(s.checkedTOML("", `type = "http"`)))
	for _, f := range s.director.examineBy(limited("doctor", "--json")).Findings {
		if f.Check == "descriptors" {
			tells("doctor", f.What+strings.Join(f.Remarks, " "))
			return
		}
	}
	t.Error("the doctor does not name the limit")
}
