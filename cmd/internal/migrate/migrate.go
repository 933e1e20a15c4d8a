// Package migrate makes a director.toml of another balancer's configuration: keepalived's, or IPVS's own, as ipvsadm-save prints it.
//
// Both are read into the same services, see service.go, and written by write.go. Nothing is left out silently: each
// line that has no counterpart, or does something else here, is a Note that says what to do, and stands in the file
// as a comment, too. The file is one that the director takes if it has a service.
package migrate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Import is what became of a configuration.
type Import struct {
	TOML     []byte // director.toml
	Services int    // in it; 0: TOML is no configuration
	Marks    int    // services of firewall marks, which are comments in it that wait for their VIPs
	Notes    []Note // in the order of the source, those of included files behind it
}

// Note says of a line what has no counterpart, and what to do.
type Note struct {
	Place
	Text string
	of   *service // whose comment it becomes; nil: the file's
}

func (n Note) String() string { return n.Place.String() + ": " + n.Text }

// Place is a line of the source. Lines count from 1.
type Place struct {
	File string
	Line int
}

func (p Place) String() string { return fmt.Sprintf("%s:%d", p.File, p.Line) }

// fault is the error of a source that can't be understood at all.
func (p Place) fault(format string, args ...any) error {
	return fmt.Errorf("%s: %s", p, fmt.Sprintf(format, args...))
}

// plan is what is known of the new configuration while the old one is read.
type plan struct {
	program    string   // that made the source: "keepalived" or "ipvsadm"
	schedulers []string // that the director has
	services   []*service
	marks      []*service // whose VIPs and ports only firewall marks know
	timeouts   timeouts
	scripts    []script
	notes      []Note
	said       map[Note]bool
}

// note names what has no counterpart in a line.
func (p *plan) note(at Place, format string, args ...any) { p.noteOf(nil, at, format, args...) }

// noteOf is note about something of a service.
func (p *plan) noteOf(s *service, at Place, format string, args ...any) {
	n := Note{Place: at, Text: printable(fmt.Sprintf(format, args...))}
	if p.said[n] {
		return // a group of several ports is read once for each
	}
	if p.said == nil {
		p.said = map[Note]bool{}
	}
	p.said[n] = true
	n.of = s
	p.notes = append(p.notes, n)
}

// finish makes what was read consistent, and writes it.
func (p *plan) finish(source string) *Import {
	p.settle()
	notify := p.dispatcher()
	kept := map[*service]bool{nil: true}
	for _, s := range slices.Concat(p.services, p.marks) {
		kept[s] = true
	}
	for i, n := range p.notes {
		if !kept[n.of] {
			p.notes[i].of = nil // the service has been left out
		}
	}
	files := map[string]int{} // in the order in which they came
	for _, n := range p.notes {
		if _, known := files[n.File]; !known {
			files[n.File] = len(files)
		}
	}
	slices.SortStableFunc(p.notes, func(a, b Note) int { return cmp.Or(files[a.File]-files[b.File], a.Line-b.Line) })
	return &Import{TOML: p.write(source, notify), Services: len(p.services), Marks: len(p.marks), Notes: p.notes}
}

// printable keeps what a source may hold out of messages and comments, which are one line.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\uFFFD' {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
}
