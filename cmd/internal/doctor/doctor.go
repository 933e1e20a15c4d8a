// Package doctor finds faults, on this machine and on the path between directors and realservers, that keep the
// programs from doing their job, and the commands that fix them. The program need not run. A run takes seconds, and
// changes nothing.
//
// director.go and realserver.go list what is examined at either end; each other file is one subject.
package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// Severity says how bad a finding is.
type Severity string

const (
	Error   Severity = "error"   // packets are lost
	Warning Severity = "warning" // some are, or will be
	Hint    Severity = "hint"    // worth a look: no finding by itself
)

// Finding is one thing that is wrong.
type Finding struct {
	Severity Severity `json:"severity"`
	Check    string   `json:"check"`           // what was examined, a name of the list in README.md
	Where    string   `json:"where,omitempty"` // the realserver, device or file
	What     string   `json:"what"`
	Why      string   `json:"why,omitempty"` // what it does to the packets
	// possible causes, the likeliest first; several if they look alike from this host
	Causes  []string `json:"causes,omitempty"`
	On      string   `json:"on,omitempty"`      // the host that Fix is for, where it is not this one
	Fix     string   `json:"fix"`               // shell commands; "" where none is known
	Remarks []string `json:"remarks,omitempty"` // what to do beside Fix, or in its place
	Mend    string   `json:"mend"`              // Fix under its former name, until version 0.2
}

// Note is what was examined and is fine, or could not be examined.
type Note struct {
	Check string `json:"check"`
	Text  string `json:"text"`
}

// Report is what was found.
type Report struct {
	Program   string    `json:"program"` // "director" or "realserver"
	Config    string    `json:"config"`  // the file
	Running   bool      `json:"running"`
	Findings  []Finding `json:"findings"`
	Hints     []Finding `json:"hints"`
	Fine      []Note    `json:"fine"`
	Unchecked []Note    `json:"not_checked"`
}

func newReport(program, file string, running bool) *Report {
	return &Report{Program: program, Config: file, Running: running, Findings: []Finding{}, Hints: []Finding{},
		Fine: []Note{}, Unchecked: []Note{}}
}

// count is how many findings are of a severity.
func (r *Report) count(s Severity) (n int) {
	for _, f := range r.Findings {
		if f.Severity == s {
			n++
		}
	}
	return n
}

// exam is one check's page of the report. One goroutine writes it.
type exam struct {
	check     string
	findings  []Finding
	fines     []Note
	unchecked []Note
}

// find notes a finding.
func (e *exam) find(f Finding) {
	f.Check, f.Mend = e.check, f.Fix
	e.findings = append(e.findings, f)
}

// fine notes what was examined and is as it should be.
func (e *exam) fine(format string, args ...any) {
	e.fines = append(e.fines, Note{e.check, fmt.Sprintf(format, args...)})
}

// skip notes what could not be examined, and why.
func (e *exam) skip(format string, args ...any) {
	e.unchecked = append(e.unchecked, Note{e.check, fmt.Sprintf(format, args...)})
}

// failed notes that the kernel could not be asked, and reports whether that is so.
func (e *exam) failed(err error) bool {
	if err != nil {
		e.skip("%v", err)
	}
	return err != nil
}

// obstacles notes the faults that a program itself finds before it starts, a line each. A line ends with the remedy.
// The remedy ends with the command in parentheses, if there is one.
func (e *exam) obstacles(err error) {
	if err == nil {
		return
	}
	for line := range strings.SplitSeq(err.Error(), "\n") {
		f := Finding{Severity: Error, What: line}
		if at := strings.LastIndex(line, ": "); at > 0 {
			f.What, f.Remarks = line[:at], []string{line[at+2:]}
			if todo, command, ok := strings.Cut(strings.TrimSuffix(line[at+2:], ")"), " ("); ok &&
				strings.HasSuffix(line, ")") {
				f.Fix, f.Remarks = command, []string{todo}
			}
		}
		e.find(f)
	}
}

// check is one thing to examine.
type check struct {
	name    string
	examine func(ctx context.Context, e *exam)
}

// run makes checks side by side, and adds what they find to r in their order.
func (r *Report) run(ctx context.Context, checks ...check) {
	pages := make([]exam, len(checks))
	var wait sync.WaitGroup
	for i, c := range checks {
		pages[i].check = c.name
		wait.Go(func() { c.examine(ctx, &pages[i]) })
	}
	wait.Wait()
	for _, p := range pages {
		for _, f := range p.findings {
			if f.Severity == Hint {
				r.Hints = append(r.Hints, f)
			} else {
				r.Findings = append(r.Findings, f)
			}
		}
		r.Fine = append(r.Fine, p.fines...)
		r.Unchecked = append(r.Unchecked, p.unchecked...)
	}
}

// finish puts what is worst first.
func (r *Report) finish() *Report {
	// "error", "warning"
	slices.SortStableFunc(r.Findings, func(a, b Finding) int {
		return strings.Compare(string(a.Severity),
			string(b.Severity))
	})
	return r
}
