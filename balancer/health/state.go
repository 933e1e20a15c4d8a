package health

// damper weighs results: one that contradicts what it takes a realserver for has no effect before it comes several times in a row.
type damper struct {
	up     bool
	streak int // results in a row that contradict up
}

// add takes a result and says whether up has changed.
func (d *damper) add(ok bool, rise, fall int) bool {
	if ok == d.up {
		d.streak = 0
		return false
	}
	d.streak++
	if d.up && d.streak < fall || !d.up && d.streak < rise {
		return false
	}
	d.up, d.streak = ok, 0
	return true
}
