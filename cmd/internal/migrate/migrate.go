// Package migrate makes a director.toml from another balancer's configuration: keepalived's, or kernel IPVS's in the
// format of ipvsadm-save.
//
// Both sources are read into the same services (service.go), which write.go writes. Nothing is omitted silently: each
// line without an exact counterpart has a Note with a remedy, which is also a comment in the file. The director accepts
// the file if it has a service.
package migrate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Import is the result of an import.
type Import struct {
	TOML     []byte // director.toml
	Services int    // number of services in TOML; 0: TOML is no configuration
	Marks    int    // number of firewall marks' services, which are comments without VIPs in TOML
	Notes    []Note // in the order of the source, then of included files
}

// Note is a remark on a line of the source: it names the part without a counterpart, and a remedy.
type Note struct {
	Place
	Text string
	of   *service  // the note is a comment of this service
	on   *instance // the note is a comment of this instance; both nil: of the file
}

func (n Note) String() string { return n.Place.String() + ": " + n.Text }

// Place is a line of the source. Lines count from 1.
type Place struct {
	File string
	Line int
}

func (p Place) String() string { return fmt.Sprintf("%s:%d", p.File, p.Line) }

// fault returns the error of a source that can't be imported.
func (p Place) fault(format string, args ...any) error {
	return fmt.Errorf("%s: %s", p, shorten(fmt.Sprintf(format, args...)))
}

// plan is the new configuration during the import.
type plan struct {
	program   string // of the source: "keepalived" or "ipvsadm"
	services  []*service
	marks     []*service // services of firewall marks, without VIPs and ports
	timeouts  timeouts
	scripts   []script
	instances []*instance // of VRRP
	vrrp      vrrpGlobals
	sync      syncDaemon
	mail      mail
	notes     []Note
	said      map[Note]bool
	noted     int   // notes, repeated ones included
	noteBytes int   // total size of notes
	more      bool  // there are too many notes
	work      int   // work for groups so far, see spend
	tooMuch   error // set by spend
}

// Bounds of the notes of an import.
const (
	maxNotes     = 10_000
	maxNoted     = 1_000_000 // repeated ones included
	maxNoteBytes = 4 << 20   // of all notes
	maxNote      = 4 << 10   // bytes of one
)

// maxWork bounds the work for groups of addresses, in bytes of virtual_server blocks that are read again. An address
// counts as addressWork bytes.
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

// note adds a Note on a line.
func (p *plan) note(at Place, format string, args ...any) { p.noteOf(nil, at, format, args...) }

// noteOf adds a Note on a line of a service.
func (p *plan) noteOf(s *service, at Place, format string, args ...any) {
	p.addNote(Note{of: s, Place: at}, format, args)
}

// noteOn adds a Note on a line of an instance of VRRP, nil for one of no instance.
func (p *plan) noteOn(v *instance, at Place, format string, args ...any) {
	p.addNote(Note{on: v, Place: at}, format, args)
}

func (p *plan) addNote(whole Note, format string, args []any) {
	if p.more {
		return
	}
	n := Note{Place: whole.Place, Text: shorten(printable(fmt.Sprintf(format, args...)))}
	p.noted++
	if p.said[n] && p.noted < maxNoted {
		return // a group of several ports is read once for each
	}
	if p.said == nil {
		p.said = map[Note]bool{}
	}
	p.said[n] = true
	n.of, n.on = whole.of, whole.on
	p.noteBytes += len(n.Text)
	if len(p.notes) == maxNotes || p.noteBytes > maxNoteBytes || p.noted == maxNoted {
		p.more = true
		n = Note{Place: whole.Place, Text: "more notes, not shown: fix what the others name, and import again"}
	}
	p.notes = append(p.notes, n)
}

// shorten cuts a text that is too long for a note.
func shorten(text string) string {
	if len(text) <= maxNote {
		return text
	}
	return strings.ToValidUTF8(text[:maxNote], "") + "…"
}

// finish makes the plan consistent and writes it. It returns an error if the file is too large for the director.
func (p *plan) finish(source string) (*Import, error) {
	p.settle()
	p.settleVRRP()
	script, mail := p.dispatcher(), p.mailKeys()
	kept := map[*service]bool{nil: true}
	for _, s := range slices.Concat(p.services, p.marks) {
		kept[s] = true
	}
	keptInstances := map[*instance]bool{}
	for _, v := range p.instances {
		keptInstances[v] = true
	}
	for i, n := range p.notes { // about what has been left out
		if !kept[n.of] {
			p.notes[i].of = nil
		}
		if !keptInstances[n.on] {
			p.notes[i].on = nil
		}
	}
	files := map[string]int{} // → position in the order of their first notes
	for _, n := range p.notes {
		if _, known := files[n.File]; !known {
			files[n.File] = len(files)
		}
	}
	slices.SortStableFunc(p.notes, func(a, b Note) int { return cmp.Or(files[a.File]-files[b.File], a.Line-b.Line) })
	toml := p.write(source, script, mail)
	if len(toml) > maxFile {
		return nil, Place{source, 1}.fault("becomes a configuration larger than the %d MiB that the director reads: "+
			"import less, and shorten the payloads of checks", maxFile>>20)
	}
	return &Import{TOML: toml, Services: len(p.services), Marks: len(p.marks), Notes: p.notes}, nil
}

// printable replaces control characters, so that messages and comments stay one line.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\uFFFD' {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
}
