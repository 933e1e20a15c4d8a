package doctor

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
)

// print writes r for people: a line for each finding and one with what mends it, and what was examined beside; with verbose all of that.
func (r *Report) print(out io.Writer, verbose bool) error {
	var w bytes.Buffer
	state := "is not running: this is what it would meet"
	if r.Running {
		state = "is running"
	}
	fmt.Fprintf(&w, "%s with %s %s\n", r.Program, r.Config, state)
	if len(r.Findings) == 0 {
		fmt.Fprintf(&w, "nothing found\n")
	}
	all := slices.Concat(r.Findings, r.Hints)
	for i, f := range all {
		alike := func(g Finding) bool {
			return g.Severity == f.Severity && g.Check == f.Check && g.What == f.What && g.Why == f.Why
		}
		if before := countOf(all[:i], alike); before >= mostAlike && !verbose {
			continue
		} else if more := countOf(all[i:], alike) - 1; before == mostAlike-1 && more > 0 && !verbose {
			f.Where += fmt.Sprintf(", and %d more (-v names them)", more)
		}
		fmt.Fprintf(&w, "%s: %s: %s\n", f.Severity, f.Check, f.sentence())
		if f.Mend != "" {
			fmt.Fprintf(&w, "    -> %s\n", f.Mend)
		}
	}
	if verbose {
		for _, n := range r.Fine {
			fmt.Fprintf(&w, "fine: %s: %s\n", n.Check, n.Text)
		}
	} else if fine := r.fineChecks(); len(fine) > 0 {
		fmt.Fprintf(&w, "fine: %s (-v says more)\n", strings.Join(fine, ", "))
	}
	for _, n := range r.Unchecked {
		fmt.Fprintf(&w, "not checked: %s: %s\n", n.Check, n.Text)
	}
	_, err := w.WriteTo(out)
	return err
}

// mostAlike is how many findings that say the same of several places are printed.
const mostAlike = 5

func countOf(all []Finding, is func(Finding) bool) (n int) {
	for _, f := range all {
		if is(f) {
			n++
		}
	}
	return n
}

// sentence is where, what and why.
func (f *Finding) sentence() string {
	parts := []string{f.Where, f.What, f.Why}
	return strings.Join(slices.DeleteFunc(parts, func(p string) bool { return p == "" }), ": ")
}

// fineChecks names the checks that found nothing wrong.
func (r *Report) fineChecks() (names []string) {
	for _, n := range r.Fine {
		if !slices.Contains(names, n.Check) && !slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Check == n.Check }) {
			names = append(names, n.Check)
		}
	}
	return names
}
