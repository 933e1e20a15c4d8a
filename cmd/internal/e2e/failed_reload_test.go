package e2e

import (
	"strings"
	"testing"
)

// TestFailedReloadKeepsHealth: a reload that comes to nothing leaves the checks alone, also those of realservers that it would have removed: nobody loses what is
// known of him, and no client notices.
func TestFailedReloadKeepsHealth(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2, nil)
	s.startChecked("", `type = "http", interval = "1h", timeout = "5s", rise = 1, fall = 1`)
	was := s.director.balance().Services[0]
	s.director.configure(s.written("director.metrics = \"192.0.2.99:9464\"\n" + strings.Replace(s.checkedTOML("", `type = "http", interval = "1h", timeout = "5s", rise = 5, fall = 1`),
		"[[service.realserver]]\naddress = \""+s.Webs[1].Addr.String()+"\"\n", "", 1)))
	if got := s.ask("reload"); got.code != 1 || !strings.Contains(got.stderr, "192.0.2.99") {
		t.Fatalf("a reload with an address that is not there: %+v", got)
	}
	is := s.director.balance().Services[0]
	for i, r := range is.Realservers {
		if r.Health != "up" || r.Check.Since < was.Realservers[i].Check.Since || r.Check.Last < was.Realservers[i].Check.Last {
			t.Errorf("after a reload that failed %s is %s: %+v; before it was %+v", r.Address, r.Health, r.Check, was.Realservers[i].Check)
		}
	}
}
