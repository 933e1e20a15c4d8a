package cli

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Tables fit the terminal. In a table that is too wide, numbers and titles are shortened, and the remark of a row goes
// below it. Then the least important columns are left out. At last addresses and tunnels get lines of their own.

// margin begins a row, chosen the row of the chosen realserver, and below the second line of a row.
const (
	margin = "  -> "
	chosen = "  => "
	below  = "       "
)

// grid is the layout of a table of realservers.
type grid struct {
	width  int // of the terminal; 0: any
	widths []int
	hidden []bool // columns that are left out
	split  bool   // address and tunnel have lines of their own
}

// dispensable is the titles of columns that may be left out, the least important first.
var dispensable = []string{"InBytes", "InPkts", "Conns", "Lower", "Upper", "Forward"}

// shortTitles has the short forms of titles.
var shortTitles = map[string]string{"RemoteAddress": "Address", "ActiveConn": "Active", "InActConn": "InAct"}

// layout finds the layout of rows, and shortens their cells if it must. The first row has the titles. The first two
// columns are address and tunnel, the last one is a remark.
func layout(width int, rows ...[]string) grid {
	titles := slices.Clone(rows[0])
	g := grid{width: width, hidden: make([]bool, len(titles))}
	g.measure(rows)
	if g.fits() {
		return g
	}
	for _, cells := range rows {
		for i, cell := range cells[:len(cells)-1] {
			if title := shortTitles[cell]; title != "" {
				cells[i] = title
			} else if n, err := strconv.ParseUint(cell, 10, 64); err == nil {
				cells[i] = ipvsNumber(n)
			}
		}
	}
	g.measure(rows)
	for _, title := range dispensable {
		if i := slices.Index(titles, title); i >= 0 && !g.fits() {
			g.hidden[i] = true
		}
	}
	if g.split = !g.fits(); g.split {
		g.hidden[1] = false // there is room for it
	}
	return g
}

func (g *grid) measure(rows [][]string) {
	g.widths = make([]int, len(rows[0]))
	for _, cells := range rows {
		for i, cell := range cells {
			g.widths[i] = max(g.widths[i], utf8.RuneCountInString(cell))
		}
	}
}

// fits reports whether the rows fit without their remarks.
func (g *grid) fits() bool {
	n := len(margin)
	for i, w := range g.widths[:len(g.widths)-1] {
		if !g.hidden[i] {
			n += w + 2
		}
	}
	return g.width == 0 || n-2 <= g.width
}

// print writes one row behind a margin.
func (g *grid) print(w io.Writer, margin string, cells []string) {
	line, last := margin, len(cells)-1
	for i, cell := range cells[:last] {
		if g.hidden[i] {
			continue
		}
		if g.split && i < 2 {
			if line += cell + "  "; i == 1 {
				fmt.Fprintln(w, strings.TrimRight(line, " "))
				line = below
			}
			continue
		}
		line += fmt.Sprintf("%-*s", g.widths[i]+2, cell)
	}
	if remark := cells[last]; g.width > 0 && utf8.RuneCountInString(line+remark) > g.width {
		fmt.Fprintln(w, strings.TrimRight(line, " "))
		if remark != "" {
			fmt.Fprintln(w, Wrapped(below+remark, g.width, below))
		}
		return
	}
	fmt.Fprintln(w, strings.TrimRight(line+cells[last], " "))
}

// ipvsNumber returns n as `ipvsadm -Ln --stats` shortens it: "123456", "12345K".
func ipvsNumber(n uint64) string {
	for _, unit := range []string{"", "K", "M", "G", "T", "P"} {
		if n < 100_000 {
			return strconv.FormatUint(n, 10) + unit
		}
		n /= 1000
	}
	return strconv.FormatUint(n, 10) + "E"
}

// Wrapped breaks text between words into lines of at most width characters. All lines but the first begin with indent.
// Width 0 is no bound.
func Wrapped(text string, width int, indent string) string {
	if width == 0 || utf8.RuneCountInString(text) <= width {
		return text
	}
	begin := text[:len(text)-len(strings.TrimLeft(text, " "))]
	line, lines := begin, []string{}
	for _, word := range strings.Fields(text) {
		switch sep := " "; {
		case strings.TrimSpace(line) == "":
			line += word
		case utf8.RuneCountInString(line+sep+word) > width:
			lines = append(lines, line)
			line = indent + word
		default:
			line += sep + word
		}
	}
	return strings.Join(append(lines, line), "\n")
}
