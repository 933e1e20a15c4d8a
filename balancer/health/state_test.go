package health

import (
	"math/rand/v2"
	"testing"
)

// TestCounter: '+' and '-' are results, 'U' and 'D' the state after each.
func TestCounter(t *testing.T) {
	for _, c := range []struct {
		name          string
		up            bool
		rise, fall    int
		results, want string
	}{
		{"comes up after two", false, 2, 3, "++", "DU"},
		{"failures begin anew", false, 2, 3, "+-+-++", "DDDDDU"},
		{"goes down after three", true, 2, 3, "---", "UUD"},
		{"successes begin anew", true, 2, 3, "--+--+---", "UUUUUUUUD"},
		{"at once", false, 1, 1, "+-+", "UDU"},
		{"both ways", true, 2, 2, "--++--", "UDDUUD"},
	} {
		d := counter{up: c.up}
		got := ""
		for _, r := range c.results {
			was := d.up
			if d.add(r == '+', c.rise, c.fall) != (was != d.up) {
				t.Errorf("%s: a change is not told", c.name)
			}
			if d.up {
				got += "U"
			} else {
				got += "D"
			}
		}
		if got != c.want {
			t.Errorf("%s: %s gives %s, want %s", c.name, c.results, got, c.want)
		}
	}
}

// TestCounterIsKnown: the state is known once a result has confirmed it, or enough results have changed it. The reason
// gives the number of results that contradict the state.
func TestCounterIsKnown(t *testing.T) {
	for _, c := range []struct {
		up      bool
		results string
		known   bool
		reason  string
	}{
		{false, "", false, "R"},
		{true, "", false, "R"},
		{false, "-", true, "R"},
		{true, "+", true, "R"},
		{false, "+", false, "coming up: 1 of 3 successes (R)"},
		{false, "++", false, "coming up: 2 of 3 successes (R)"},
		{false, "+++", true, "R"},
		{false, "++-", true, "R"},
		{false, "-+", true, "coming up: 1 of 3 successes (R)"},
		{true, "-", false, "1 of 2 failures (R)"},
		{true, "--", true, "R"},
		{true, "-+", true, "R"},
		{true, "--+", true, "coming up: 1 of 3 successes (R)"},
	} {
		d := counter{up: c.up}
		for _, r := range c.results {
			d.add(r == '+', 3, 2)
		}
		if got := d.progress("R", 3, 2); d.known != c.known || got != c.reason {
			t.Errorf("up %v, %q: known is %v, reason %q; want %v, %q", c.up, c.results, d.known, got, c.known, c.reason)
		}
	}
}

// TestCounterModel compares the counter with the plain rule: up if the last rise results are successes, down if the
// last fall results are failures, otherwise unchanged.
func TestCounterModel(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		rise, fall := 1+r.IntN(4), 1+r.IntN(4)
		d := counter{up: r.IntN(2) == 0}
		model := d.up
		var all []bool
		for range 50 {
			ok := r.IntN(3) > 0
			all = append(all, ok)
			d.add(ok, rise, fall)
			if last(all, rise, true) {
				model = true
			}
			if last(all, fall, false) {
				model = false
			}
			if d.up != model {
				t.Fatalf("rise %d, fall %d, %v: up is %v", rise, fall, all, d.up)
			}
		}
	}
}

func last(all []bool, n int, is bool) bool {
	if len(all) < n {
		return false
	}
	for _, r := range all[len(all)-n:] {
		if r != is {
			return false
		}
	}
	return true
}
