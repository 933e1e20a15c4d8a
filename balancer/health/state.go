package health

import "fmt"

// counter implements rise and fall: the state flips only after rise (fall) consecutive contrary results.
type counter struct {
	up     bool
	known  bool // a result has confirmed up, or enough have changed it; else up is the initial state
	streak int  // consecutive results that contradict up
}

// add adds a result and reports whether up has changed.
func (c *counter) add(ok bool, rise, fall int) bool {
	if ok == c.up {
		c.known, c.streak = true, 0
		return false
	}
	c.streak++
	if c.up && c.streak < fall || !c.up && c.streak < rise {
		return false
	}
	c.up, c.known, c.streak = ok, true, 0
	return true
}

// progress returns the reason of the last result, with the number of consecutive results that contradict up, if not 0.
func (c *counter) progress(reason string, rise, fall int) string {
	switch {
	case c.streak == 0:
		return reason
	case c.up:
		return fmt.Sprintf("%d of %d failures (%s)", c.streak, fall, reason)
	}
	return fmt.Sprintf("coming up: %d of %d successes (%s)", c.streak, rise, reason)
}
