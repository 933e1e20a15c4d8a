package page

import (
	"fmt"
	"testing"
	"time"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/page/pagetest"
)

// TestShowsNames: the page shows the names of realservers, and among the notices that one cannot be resolved.
func TestShowsNames(t *testing.T) {
	t.Parallel()
	src := &source{st: small()}
	url, _ := serve(t, New(src.status))
	tab := open(t, url, pagetest.Look{})
	tab.Wait("without names there is no list", "document.getElementById('names').hidden")
	age := 7300.0
	src.change(func(st *api.DirectorStatus) {
		st.Names = []api.Name{
			{Name: "a.example.com", Services: []string{"web"}, Answered: &age,
				Targets: []api.NameTarget{{Addresses: []string{"10.0.11.2", "10.0.11.3"}}}},
			{Name: "b.example.com", Services: []string{"web", "dns"}, Error: "SERVFAIL"},
		}
	})
	waitText(tab, "#names tbody tr:nth-of-type(1)", "b.example.com web, dns no answer yet SERVFAIL")
	waitText(tab, "#names tbody tr:nth-of-type(2)", "a.example.com web 2 addresses 2 h ago")
	waitText(tab, "#notices li:last-of-type", "1 name of realservers cannot be resolved as a whole: see Names")
	src.change(func(st *api.DirectorStatus) { st.Names = nil })
	tab.Wait("without names there is no list any more", "document.getElementById('names').hidden")
}

// TestNamesOf: of many names the page gets a bounded number, those with trouble first.
func TestNamesOf(t *testing.T) {
	s := sample{at: time.Unix(1_700_000_000, 0)}
	var all []api.Name
	for i := range 3 * namesShown {
		all = append(all, api.Name{Name: fmt.Sprint(i)})
	}
	all[200].Error = "SERVFAIL"
	all[201].Refused = []api.NameRefused{{Address: "127.0.0.1", Reason: "it is a loopback address"}}
	got := s.namesOf(all, nil)
	if got.Count != len(all) || len(got.List) != namesShown || got.List[0].Note != "SERVFAIL" ||
		got.List[1].Note != "127.0.0.1 is refused: it is a loopback address" || got.List[2].Name != "0" {
		t.Errorf("%d of %d: %+v", len(got.List), got.Count, got.List[:3])
	}
}
