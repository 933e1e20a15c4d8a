// Package doctor finds faults that keep the programs from working, on this machine and on the path between directors
// and realservers. It names commands that fix them. The program need not run. A run takes seconds and changes nothing.
//
// director.go and realserver.go list the checks of either end. Each other file has one subject. README.md lists the
// findings.
package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// Severity is the severity of a finding.
type Severity string

const (
	Error   Severity = "error"   // packets are lost
	Warning Severity = "warning" // some packets are lost, or will be
	Hint    Severity = "hint"    // worth a look; does not count as a finding
)

// Finding is one fault.
type Finding struct {
	Severity Severity `json:"severity"`
	Check    string   `json:"check"`           // the check that found it: a heading of README.md
	Where    string   `json:"where,omitempty"` // the realserver, device or file concerned
	What     string   `json:"what"`
	Why      string   `json:"why,omitempty"` // its effect on packets
	// Causes are the possible causes, the likeliest first. Several causes may look alike from this host.
	Causes  []string `json:"causes,omitempty"`
	On      string   `json:"on,omitempty"`      // the host to run Fix on; "": this host
	Fix     string   `json:"fix"`               // shell commands; "" if none is known
	Remarks []string `json:"remarks,omitempty"` // what to do besides Fix, or instead
	Mend    string   `json:"mend"`              // Fix under its old name, for readers of version 0.1's JSON
}

// Note is about a check that found no fault, or that was not possible.
type Note struct {
	Check string `json:"check"`
	Text  string `json:"text"`
}

// Report is the result of all checks.
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

// count returns the number of findings of a severity.
func (r *Report) count(s Severity) (n int) {
	for _, f := range r.Findings {
		if f.Severity == s {
			n++
		}
	}
	return n
}

// result is the result of one check. One goroutine writes it.
type result struct {
	check     string
	findings  []Finding
	fines     []Note
	unchecked []Note
}

// find records a finding.
func (res *result) find(f Finding) {
	f.Check, f.Mend = res.check, f.Fix
	res.findings = append(res.findings, f)
}

// fine records a fact that is no fault.
func (res *result) fine(format string, args ...any) {
	res.fines = append(res.fines, Note{res.check, fmt.Sprintf(format, args...)})
}

// skip records that a fact could not be examined, and why.
func (res *result) skip(format string, args ...any) {
	res.unchecked = append(res.unchecked, Note{res.check, fmt.Sprintf(format, args...)})
}

// failed records that a question to the kernel failed, and reports whether it did.
func (res *result) failed(err error) bool {
	if err != nil {
		res.skip("%v", err)
	}
	return err != nil
}

// obstacles records the faults that prevent a program's start, a line each. A line ends with the remedy. The remedy
// ends with a command in parentheses, if there is one.
func (res *result) obstacles(err error) {
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
		res.find(f)
	}
}

// check is one check with its name.
type check struct {
	name    string
	examine func(ctx context.Context, res *result)
}

// run makes checks at the same time and adds their results to r in the order of checks.
func (r *Report) run(ctx context.Context, checks ...check) {
	results := make([]result, len(checks))
	var wait sync.WaitGroup
	for i, c := range checks {
		results[i].check = c.name
		wait.Go(func() { c.examine(ctx, &results[i]) })
	}
	wait.Wait()
	for _, res := range results {
		for _, f := range res.findings {
			if f.Severity == Hint {
				r.Hints = append(r.Hints, f)
			} else {
				r.Findings = append(r.Findings, f)
			}
		}
		r.Fine = append(r.Fine, res.fines...)
		r.Unchecked = append(r.Unchecked, res.unchecked...)
	}
}

// finish sorts the findings: errors before warnings, which is their alphabetical order.
func (r *Report) finish() *Report {
	slices.SortStableFunc(r.Findings, func(a, b Finding) int {
		return strings.Compare(string(a.Severity), string(b.Severity))
	})
	return r
}
