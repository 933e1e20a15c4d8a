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
	for _, f := range slices.Concat(r.Findings, r.Hints) {
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
