package top

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/words"
)

// view is the last two statuses of a director. Its methods make the lines to show.
type view struct {
	order    int // of orders
	was, is  *api.DirectorStatus
	at       time.Time // of is
	passed   time.Duration
	previous map[realserver]*api.Realserver // of was
}

// realserver is the identity of a realserver in a service.
type realserver struct{ service, address string }

// orders is the names of the orders of services and realservers. The first is the configuration's order.
var orders = []string{"configuration", "bit/s", "pps", "cps", "active", "name"}

func orderOf(name string) (int, bool) {
	i := slices.Index(orders, name)
	return max(i, 0), i >= 0
}

// take adds a status.
func (v *view) take(at time.Time, st *api.DirectorStatus) {
	v.was, v.passed = v.is, at.Sub(v.at)
	v.is, v.at = st, at
	if v.was != nil && (v.was.Pid != st.Pid || v.was.Uptime > st.Uptime) {
		v.was = nil // another director: it has no rates yet
	}
	v.previous = map[realserver]*api.Realserver{}
	if v.was == nil {
		return
	}
	for i := range v.was.Services {
		s := &v.was.Services[i]
		for j := range s.Realservers {
			v.previous[realserver{s.Name, s.Realservers[j].Name()}] = &s.Realservers[j]
		}
	}
}

// per returns a counter's rate per second, or 0 without a previous status.
func (v *view) per(was, is uint64) float64 {
	if v.was == nil || is < was || v.passed <= 0 {
		return 0
	}
	return float64(is-was) / v.passed.Seconds()
}

// row is a service or one of its realservers.
type row struct {
	Service    string  `json:"service"`
	Realserver string  `json:"realserver,omitempty"` // none: all of the service
	Health     string  `json:"health,omitempty"`
	Weight     int     `json:"weight"`
	Active     int     `json:"active"`
	Inactive   int     `json:"inactive"`
	Conns      float64 `json:"connections_per_second"`
	Packets    float64 `json:"packets_per_second"`
	Bits       float64 `json:"bits_per_second"`

	name   string // for the table
	reason string // of bad health
}

// service is the row of a service, and the rows of its realservers.
type service struct {
	row
	realservers []row
}

// services returns all services, in v's order.
func (v *view) services() (all []service) {
	for i := range v.is.Services {
		s := &v.is.Services[i]
		out := service{row: row{Service: s.Name, Health: s.Health, name: s.Title()}}
		if s.Sorry {
			out.Health = "sorry"
		}
		for j := range s.Realservers {
			r := &s.Realservers[j]
			now := row{Service: s.Name, Realserver: r.Name(), Health: r.Health, Weight: r.Weight, Active: r.Active,
				Inactive: r.Inactive, name: r.Name()}
			if was := v.previous[realserver{s.Name, r.Name()}]; was != nil {
				now.Conns, now.Packets = v.per(was.Connections, r.Connections), v.per(was.Forwarded.Packets,
					r.Forwarded.Packets)
				now.Bits = 8 * v.per(was.Forwarded.Bytes, r.Forwarded.Bytes)
			}
			now.reason = r.Trouble()
			out.Weight += r.Weight
			out.Active += now.Active
			out.Inactive += now.Inactive
			out.Conns += now.Conns
			out.Packets += now.Packets
			out.Bits += now.Bits
			out.realservers = append(out.realservers, now)
		}
		slices.SortStableFunc(out.realservers, v.compare)
		all = append(all, out)
	}
	slices.SortStableFunc(all, func(a, b service) int { return v.compare(a.row, b.row) })
	return all
}

func (v *view) compare(a, b row) int {
	switch orders[v.order] {
	case "bit/s":
		return cmp.Compare(b.Bits, a.Bits)
	case "pps":
		return cmp.Compare(b.Packets, a.Packets)
	case "cps":
		return cmp.Compare(b.Conns, a.Conns)
	case "active":
		return cmp.Compare(b.Active, a.Active)
	case "name":
		return cmp.Compare(a.name, b.name)
	}
	return 0
}

// rates returns all rows, for --json.
func (v *view) rates() (all []row) {
	for _, s := range v.services() {
		all = append(append(all, s.row), s.realservers...)
	}
	return all
}

// style is how a line looks.
type style int

const (
	usual style = iota
	strong
	faint
	alarm
	title
)

type line struct {
	text  string
	style style
}

// lines returns all lines, for a terminal of that width; 0: any.
func (v *view) lines(width int) []line {
	out := v.head(width)
	return append(out, v.table(width)...)
}

// headLines is the number of lines of head.
const headLines = 5

// head returns the lines above the table.
func (v *view) head(width int) []line {
	st := v.is
	var was api.DirectorStatus
	if v.was != nil {
		was = *v.was
	}
	drops, dropStyle := v.drops(was.Drops), usual
	if drops != "" {
		dropStyle = alarm
		drops = "dropped a second: " + drops
	} else {
		drops = fmt.Sprintf("dropped: nothing now, %s since the start", short(float64(sum(st.Drops))))
	}
	table := fmt.Sprintf("connections %d of %d, half-open %d", st.Connections.Count, st.Connections.Max,
		st.Connections.HalfOpen)
	if n := st.Leaving.Connections; n > 0 {
		table += fmt.Sprintf(", of realservers that have left %d", n)
	}
	return []line{
		{cut(fmt.Sprintf("director %s, up %v, %s with %s", st.Version, (time.Duration(st.Uptime)*time.Second).String(),
			st.TUN, words.Count(st.Queues, "queue")), width), strong},
		{cut(fmt.Sprintf("in %s pps, %s bit/s; out %s pps, %s bit/s", short(v.per(was.In.Packets, st.In.Packets)),
			short(8*v.per(was.In.Bytes, st.In.Bytes)),
			short(v.per(was.Out.Packets, st.Out.Packets)), short(8*v.per(was.Out.Bytes, st.Out.Bytes))), width), usual},
		{cut(table, width), usual},
		{cut(drops, width), dropStyle},
		{},
	}
}

// drops returns the rates of the drop reasons that occur, the most frequent first.
func (v *view) drops(was map[string]uint64) string {
	type reason struct {
		name string
		rate float64
	}
	var all []reason
	for _, name := range slices.Sorted(maps.Keys(v.is.Drops)) {
		if rate := v.per(was[name], v.is.Drops[name]); rate > 0 {
			all = append(all, reason{name, rate})
		}
	}
	slices.SortStableFunc(all, func(a, b reason) int { return cmp.Compare(b.rate, a.rate) })
	var words []string
	for _, r := range all {
		words = append(words, r.name+" "+short(r.rate))
	}
	return strings.Join(words, ", ")
}

func sum(all map[string]uint64) (n uint64) {
	for _, d := range all {
		n += d
	}
	return n
}

// column is a column of the table, beside the name.
type column struct {
	title string
	width int
	cell  func(r *row) string
}

// columns is all columns. A narrow terminal has the first ones only.
var columns = []column{
	{"HEALTH", 9, func(r *row) string { return r.Health }},
	{"WEIGHT", 6, func(r *row) string { return fmt.Sprint(r.Weight) }},
	{"ACTIVE", 6, func(r *row) string { return short(float64(r.Active)) }},
	{"BIT/S", 6, func(r *row) string { return short(r.Bits) }},
	{"PPS", 6, func(r *row) string { return short(r.Packets) }},
	{"CPS", 6, func(r *row) string { return short(r.Conns) }},
	{"INACT", 6, func(r *row) string { return short(float64(r.Inactive)) }},
}

// table returns the titles, services and realservers.
func (v *view) table(width int) []line {
	services := v.services()
	longest := len("SERVICE")
	for i := range services {
		longest = max(longest, utf8.RuneCountInString(services[i].name))
		for j := range services[i].realservers {
			longest = max(longest, indent+utf8.RuneCountInString(services[i].realservers[j].name))
		}
	}
	shown, name := fit(width, longest)
	out := []line{{write("SERVICE", name, shown, func(c *column) string { return c.title }), title}}
	for i := range services {
		s := &services[i]
		style := strong
		if s.Health == "down" || s.Health == "sorry" {
			style = alarm
		}
		out = append(out, line{write(s.name, name, shown, func(c *column) string { return c.cell(&s.row) }), style})
		for j := range s.realservers {
			r := &s.realservers[j]
			style := usual
			switch {
			case r.Health == "down":
				style = alarm
			case r.Weight == 0:
				style = faint
			}
			text := write(strings.Repeat(" ", indent)+r.name, name, shown, func(c *column) string { return c.cell(r) })
			if all := text + "  " + r.reason; r.reason != "" && (width == 0 || utf8.RuneCountInString(all) <= width) {
				out = append(out, line{all, style})
				continue
			}
			if out = append(out, line{cut(text, width), style}); r.reason != "" {
				out = append(out, line{cut(strings.Repeat(" ", 2*indent)+r.reason, width), style})
			}
		}
	}
	if len(services) == 0 {
		out = append(out, line{cut("no service", width), usual})
	}
	return out
}

// indent is the columns by which realservers are indented.
const indent = 2

// fit returns the columns for which a terminal has room beside names of length longest, and the room for names. There
// are at least three columns, even if names are cut.
func fit(width, longest int) (shown []column, name int) {
	if width == 0 {
		return columns, longest
	}
	for n := len(columns); ; n-- {
		name = width
		for _, c := range columns[:n] {
			name -= c.width + 1
		}
		if name >= longest || n <= 3 && name >= 8 || n == 0 {
			return columns[:n], max(min(name, longest), 1)
		}
	}
}

func write(name string, room int, shown []column, cell func(*column) string) string {
	name = cut(name, room)
	text := name + strings.Repeat(" ", room-utf8.RuneCountInString(name))
	for i := range shown {
		text += fmt.Sprintf(" %*s", shown[i].width, cut(cell(&shown[i]), shown[i].width))
	}
	return text
}

// cut shortens s to width characters; 0: not at all.
func cut(s string, width int) string {
	if width == 0 || utf8.RuneCountInString(s) <= width {
		return s
	}
	return string([]rune(s)[:width-1]) + "…"
}

// short writes a number in at most six characters: "1234", "12.3k", "1.2G".
func short(f float64) string {
	if f < 9999.5 {
		if f > 0 && f < 9.95 && f != math.Trunc(f) {
			return fmt.Sprintf("%.1f", f)
		}
		return fmt.Sprintf("%.0f", f)
	}
	const units = "kMGTP"
	n := 0
	for f /= 1000; f >= 999.95 && n < len(units)-1; f /= 1000 {
		n++
	}
	return fmt.Sprintf("%.1f%c", f, units[n])
}
