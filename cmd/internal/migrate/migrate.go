// Package migrate makes a director.toml of another balancer's configuration: keepalived's, or IPVS's own, as
// ipvsadm-save prints it.
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
	return fmt.Errorf("%s: %s", p, shorten(fmt.Sprintf(format, args...)))
}

// plan is what is known of the new configuration while the old one is read.
type plan struct {
	program   string // that made the source: "keepalived" or "ipvsadm"
	services  []*service
	marks     []*service // whose VIPs and ports only firewall marks know
	timeouts  timeouts
	scripts   []script
	notes     []Note
	said      map[Note]bool
	noted     int   // notes, with those that are there twice
	noteBytes int   // of notes
	more      bool  // there are more notes than are shown
	work      int   // done for groups, see spend
	tooMuch   error // of spend
}

// Bounds of the notes of an import.
const (
	maxNotes     = 10_000
	maxNoted     = 1_000_000 // with those that are there twice
	maxNoteBytes = 4 << 20   // of all notes
	maxNote      = 4 << 10   // bytes of one
)

// maxWork bounds what groups of addresses make of their virtual_servers' blocks: in bytes of blocks that are read once
// more, of which an address counts as addressWork.
const (
	maxWork     = 64 << 20
	addressWork = 64
)

// spend reports whether n more bytes of work are within maxWork. If not, tooMuch names the line.
func (p *plan) spend(at Place, n int) bool {
	p.work += n
	if p.work > maxWork && p.tooMuch == nil {
		p.tooMuch = at.fault("%v", errManyAddresses)
	}
	return p.tooMuch == nil
}

// note names what has no counterpart in a line.
func (p *plan) note(at Place, format string, args ...any) { p.noteOf(nil, at, format, args...) }

// noteOf is note about something of a service.
func (p *plan) noteOf(s *service, at Place, format string, args ...any) {
	if p.more {
		return
	}
	n := Note{Place: at, Text: shorten(printable(fmt.Sprintf(format, args...)))}
	p.noted++
	if p.said[n] && p.noted < maxNoted {
		return // a group of several ports is read once for each
	}
	if p.said == nil {
		p.said = map[Note]bool{}
	}
	p.said[n] = true
	n.of = s
	p.noteBytes += len(n.Text)
	if len(p.notes) == maxNotes || p.noteBytes > maxNoteBytes || p.noted == maxNoted {
		p.more = true
		n = Note{Place: at, Text: "more notes, not shown: mend what the others name, and import again"}
	}
	p.notes = append(p.notes, n)
}

// shorten cuts a text that is longer than a note may be.
func shorten(text string) string {
	if len(text) <= maxNote {
		return text
	}
	return strings.ToValidUTF8(text[:maxNote], "") + "…"
}

// finish makes what was read consistent, and writes it. A file that the director would not read is an error.
func (p *plan) finish(source string) (*Import, error) {
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
	toml := p.write(source, notify)
	if len(toml) > maxFile {
		return nil, Place{source, 1}.fault("becomes a configuration larger than the %d MiB that the director reads: "+
			"import less, and shorten the payloads of checks", maxFile>>20)
	}
	return &Import{TOML: toml, Services: len(p.services), Marks: len(p.marks), Notes: p.notes}, nil
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
