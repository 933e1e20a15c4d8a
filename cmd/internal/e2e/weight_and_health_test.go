package e2e

import (
	"fmt"
	"testing"

	"vstun/testdata/testkit"
)

// TestWeightAndHealth: an operator's weight stays while realservers fail and recover, and a failed realserver stays
// down whatever weight an operator sets.
func TestWeightAndHealth(t *testing.T) {
	t.Parallel()
	s := newSite(t, 3, nil)
	servers := s.startChecked("", `type = "http", `+quick)
	set := func(realserver, weight string) {
		t.Helper()
		if got := s.ask("set", "web", realserver, "--weight", weight); got.code != 0 {
			t.Fatalf("set: exit status %d: %s", got.code, got.stderr)
		}
	}
	mustHave := func(when string, weights, effective [3]int) {
		t.Helper()
		// the result of a check is in status a moment earlier
		testkit.Within(t, fmt.Sprintf("%s: weights %v, in effect %v", when, weights, effective), soon, func() bool {
			var is, inEffect [3]int
			for i, r := range s.director.balance().Services[0].Realservers {
				is[i], inEffect[i] = r.Weight, r.Effective
			}
			return is == weights && inEffect == effective
		})
	}
	set(s.Webs[0].Addr.String(), "0")
	mustHave("one drains", [3]int{0, 1, 1}, [3]int{0, 1, 1})
	if err := servers[1].Stop(); err != nil {
		t.Fatal(err)
	}
	s.awaitHealth("up down up")
	mustHave("another fails", [3]int{0, 1, 1}, [3]int{0, 0, 1})
	set(s.Webs[1].Addr.String(), "7")
	mustHave("what has failed gets a weight", [3]int{0, 7, 1}, [3]int{0, 0, 1})
	for range 5 {
		if got, err := fetch(s.browser(), "http://"+s.at(80)+"/"); err != nil || got != "web3" {
			t.Errorf("answered by %q, %v; want web3", got, err)
		}
	}
	servers[1] = s.nginxProcess(s.Webs[1])
	s.awaitHealth("up up up")
	mustHave("it is back", [3]int{0, 7, 1}, [3]int{0, 7, 1})
}
