package health

import "fmt"

// damper weighs results: one that contradicts what it takes a realserver for has no effect before it comes several
// times in a row.
type damper struct {
	up     bool
	known  bool // a result has confirmed up, or several have changed it; else up is the initial state
	streak int  // results in a row that contradict up
}

// add takes a result and says whether up has changed.
func (d *damper) add(ok bool, rise, fall int) bool {
	if ok == d.up {
		d.known, d.streak = true, 0
		return false
	}
	d.streak++
	if d.up && d.streak < fall || !d.up && d.streak < rise {
		return false
	}
	d.up, d.known, d.streak = ok, true, 0
	return true
}

// progress returns the reason of the last result, with the number of results in a row that contradict up, if not 0.
func (d *damper) progress(reason string, rise, fall int) string {
	switch {
	case d.streak == 0:
		return reason
	case d.up:
		return fmt.Sprintf("%d of %d failures (%s)", d.streak, fall, reason)
	}
	return fmt.Sprintf("coming up: %d of %d successes (%s)", d.streak, rise, reason)
}
