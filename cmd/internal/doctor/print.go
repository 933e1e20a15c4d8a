package doctor

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"

	"vstun/cmd/internal/cli"
	"vstun/cmd/internal/words"
)

// mostAlike is the maximum number of places, and of commands, that are printed for one finding.
const mostAlike = 5

// Prefixes of a finding's lines, of their continuations, and of its commands.
const (
	indent  = "    "
	further = "      "
	command = indent + "-> "
)

// print writes r as text, one fact a line, in lines of at most width characters; 0 means no bound. Findings that differ
// only in their places are printed once. With verbose it lists all those places, and the checks that found no fault.
func (r *Report) print(out io.Writer, width int, verbose bool) error {
	var w bytes.Buffer
	line := func(text string) {
		if !strings.HasPrefix(text, command) { // a command stays in one line, to be copied
			text = cli.Wrapped(text, width, further)
		}
		fmt.Fprintln(&w, text)
	}
	state := "is not running"
	if r.Running {
		state = "is running"
	}
	line(fmt.Sprintf("%s with %s %s", r.Program, r.Config, state))
	line(r.summary())
	for _, group := range alike(slices.Concat(r.Findings, r.Hints)) {
		fmt.Fprintln(&w)
		printGroup(line, group, verbose)
	}
	if len(r.Findings)+len(r.Hints) > 0 {
		fmt.Fprintln(&w)
	}
	if verbose {
		for _, n := range r.Fine {
			line(fmt.Sprintf("fine: %s: %s", n.Check, n.Text))
		}
	} else if fine := r.fineChecks(); len(fine) > 0 {
		line(fmt.Sprintf("fine: %s (-v shows more)", strings.Join(fine, ", ")))
	}
	for _, n := range r.Unchecked {
		line(fmt.Sprintf("not checked: %s: %s", n.Check, n.Text))
	}
	_, err := w.WriteTo(out)
	return err
}

// alike groups findings that differ only in place and commands, in the order of the first of each.
func alike(all []Finding) (groups [][]Finding) {
	same := func(a, b *Finding) bool {
		return a.Severity == b.Severity && a.Check == b.Check && a.What == b.What && a.Why == b.Why &&
			slices.Equal(a.Causes, b.Causes) && slices.Equal(a.Remarks, b.Remarks)
	}
	for _, f := range all {
		at := slices.IndexFunc(groups, func(g []Finding) bool { return same(&g[0], &f) })
		if at < 0 {
			at = len(groups)
			groups = append(groups, nil)
		}
		groups[at] = append(groups[at], f)
	}
	return groups
}

// printGroup prints one group of alike.
func printGroup(line func(string), group []Finding, verbose bool) {
	f := &group[0]
	most := mostAlike
	if verbose {
		most = len(group)
	}
	title := fmt.Sprintf("%s: %s", f.Severity, f.Check)
	if len(group) == 1 {
		title = strings.TrimSuffix(title+": "+within(f.Check, f.Where), ": ")
	}
	line(title)
	if len(group) > 1 {
		for _, f := range group[:min(most, len(group))] {
			line(indent + "at " + f.Where)
		}
		if more := len(group) - most; more > 0 {
			line(fmt.Sprintf("%sat %d more (-v lists them)", indent, more))
		}
	}
	line(indent + f.What)
	if f.Why != "" {
		line(indent + f.Why)
	}
	for _, cause := range f.Causes {
		prefix := "cause: "
		if len(f.Causes) > 1 {
			prefix = "possible cause: "
		}
		line(indent + prefix + cause)
	}
	commands := fixes(group)
	for _, c := range commands[:min(most, len(commands))] {
		line(command + c)
	}
	if more := len(commands) - most; more > 0 {
		line(fmt.Sprintf("%s%d more commands (-v lists them)", indent, more))
	}
	for _, remark := range f.Remarks {
		line(indent + "note: " + remark)
	}
}

// within returns a place without the name of its check, which is before it in the title.
func within(check, where string) string {
	if rest, ok := strings.CutPrefix(where, check); ok && (rest == "" || rest[0] == ' ') {
		return strings.TrimSpace(rest)
	}
	return where
}

// fixes returns the commands of a group, each once, with the hosts to run it on.
func fixes(group []Finding) (commands []string) {
	hosts := map[string][]string{}
	var order []string
	for _, f := range group {
		if f.Fix == "" {
			continue
		}
		if hosts[f.Fix] == nil {
			order = append(order, f.Fix)
			hosts[f.Fix] = []string{}
		}
		if f.On != "" && !slices.Contains(hosts[f.Fix], f.On) {
			hosts[f.Fix] = append(hosts[f.Fix], f.On)
		}
	}
	for _, fix := range order {
		if on := hosts[fix]; len(on) > 0 {
			fix = fmt.Sprintf("on %s: %s", brief(on), fix)
		}
		commands = append(commands, fix)
	}
	return commands
}

// summary counts the findings.
func (r *Report) summary() string {
	var parts []string
	for _, s := range []Severity{Error, Warning} {
		if n := r.count(s); n > 0 {
			parts = append(parts, words.Count(n, string(s)))
		}
	}
	if parts == nil {
		return "nothing found"
	}
	return strings.Join(parts, ", ")
}

// fineChecks returns the names of the checks that found no fault.
func (r *Report) fineChecks() (names []string) {
	for _, n := range r.Fine {
		if !slices.Contains(names, n.Check) && !slices.ContainsFunc(r.Findings,
			func(f Finding) bool { return f.Check == n.Check }) {
			names = append(names, n.Check)
		}
	}
	return names
}
