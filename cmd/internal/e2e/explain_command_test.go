package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"vstun/cmd/internal/api"
)

// explain runs `director explain` for a flow.
func (s *site) explain(client, vip string, flags ...string) (e api.Explanation) {
	s.t.Helper()
	if err := json.Unmarshal([]byte(s.must(append([]string{"explain", client, vip, "--json"}, flags...)...)),
		&e); err != nil {
		s.t.Fatal(err)
	}
	return e
}

// TestExplain compares the answers of explain with the realservers that the flows reach.
func TestExplain(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2, nil)
	s.startWith(drainTOML("", web1+`, { address = "10.0.12.2", upper = 1000 }`))
	for i := range 6 { // rr: the one and the other
		client := netip.AddrPortFrom(s.Client.Addr, uint16(20000+i))
		foreseen := s.explain(client.String(), s.at(80))
		if again := s.explain(client.String(), s.at(80)); foreseen.Connection != nil ||
			again.Realserver != foreseen.Realserver || foreseen.Drop != "" {
			t.Fatalf("asked twice: %+v, %+v", foreseen, again)
		}
		_, server := s.whoAnswers(client, s.at(80))
		if want := map[string]string{"web1": "10.0.11.2", "web2": "10.0.12.2"}[server]; foreseen.Realserver != want ||
			foreseen.Scheduler != "rr" || foreseen.Service != "web" {
			t.Errorf("%s is foreseen, and %s answers: %+v", foreseen.Realserver, server, foreseen)
		}
		if is := s.explain(client.String(), s.at(80)); is.Connection == nil || is.Connection.State != "ESTABLISHED" ||
			is.Realserver != foreseen.Realserver ||
			is.Connection.Packets < 3 || is.Connection.Expires < 800 {
			t.Errorf("with a connection: %+v", is)
		}
	}
	if n := s.director.balance().Connections.Count; n != 6 {
		t.Errorf("%d connections, want the 6 that were opened", n)
	}
	s.must("drain", "web", "10.0.11.2")
	e := s.explain("192.0.2.7:4711", s.at(80))
	if e.Realserver != "10.0.12.2" || len(e.Candidates) != 2 || e.Candidates[0].PassedOver != "weight 0" ||
		*e.Candidates[0].Configured != 1 || e.Candidates[1].PassedOver != "" ||
		e.Candidates[1].Link == "" || e.Candidates[1].InnerMTU != 1480 || e.Candidates[1].Source != "10.0.2.2" ||
		!e.Candidates[1].Reachable {
		t.Errorf("with one drained: %+v", e)
	}
	text := s.must("explain", "192.0.2.7:4711", s.at(80))
	for _, want := range []string{"tcp 192.0.2.7:4711 -> 198.51.100.80:80\nconnection: none\nservice: web, " +
		"scheduler rr\ngoes to 10.0.12.2\n  because rr gives it to a new connection: the next in turn\n",
		"passed over: weight 0", "=> 10.0.12.2", "<= 1480"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
	if e := s.explain("192.0.2.7", s.at(80)); e.Realserver != "10.0.12.2" || e.ClientPort != 0 || e.Connection != nil {
		t.Errorf("without a port: %+v", e)
	}
	if text := s.must("explain", "192.0.2.7", s.at(80)); !strings.HasPrefix(text,
		"tcp 192.0.2.7 -> 198.51.100.80:80\nconnection: a new one, from any port\n") {
		t.Errorf("without a port:\n%s", text)
	}
	s.must("set", "web", "10.0.12.2", "--weight", "0")
	if e := s.explain("192.0.2.7:4711", s.at(80)); e.Realserver != "" || e.Drop != "no_realserver" {
		t.Errorf("with both drained: %+v", e)
	}
	for vip, want := range map[string]string{"198.51.100.80:81": "no service has tcp port 81 of the VIP",
		"198.51.100.90:80": "no service has the VIP 198.51.100.90: did you mean 198.51.100.80?"} {
		if e := s.explain("192.0.2.7:4711", vip); e.Drop != "no_service" || e.Why != want ||
			fmt.Sprint(e.Near) != "[tcp 198.51.100.80 port 80 (web)]" {
			t.Errorf("%s: %+v", vip, e)
		}
	}
	for _, wrong := range []string{"192.0.2.7 198.51.100.80", "[2001:db8::7]:1 198.51.100.80:80",
		"192.0.2.7:1 198.51.100.80:80 --protocol icmp", "192.0.2.7:1"} {
		if got := s.ask(append([]string{"explain"}, strings.Fields(wrong)...)...); got.code != 2 ||
			strings.Count(got.stderr, "\n") != 1 {
			t.Errorf("explain %s: exit status %d, want 2 and a line: %s", wrong, got.code, got.stderr)
		}
	}
}
