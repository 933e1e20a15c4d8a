package doctor

import (
	"strings"
	"testing"

	"vstun/cmd/internal/api"
)

// TestSilentTables: a director whose tables have stopped is a finding, one that sends them is none.
func TestSilentTables(t *testing.T) {
	for heard, want := range map[float64]string{
		5:  "",
		31: "no tables have come from director 10.0.2.2 for 31 seconds",
	} {
		var res result
		res.secondChance(&api.SecondChance{Directors: []api.TablesDirector{{Address: "10.0.2.2", Heard: heard},
			{Address: "10.0.2.3", Heard: 1}}})
		var got []string
		for _, f := range res.findings {
			got = append(got, f.What)
		}
		if strings.Join(got, "\n") != want {
			t.Errorf("heard %v s ago: %q, want %q", heard, got, want)
		}
	}
}
