package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"golang.org/x/term"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/words"
)

// PrintJSON writes v as indented JSON. All commands use it.
func PrintJSON(out io.Writer, v any) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false) // the output is not HTML
	return enc.Encode(v)
}

// Width returns the width of the terminal out, or 0 if out is not a terminal. Width 0 means no bound.
func Width(out io.Writer) int {
	f, ok := out.(*os.File)
	if !ok {
		return 0
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return width
}

// PrintDirector writes st as text: the services as `ipvsadm -Ln` shows them, then packets and drops.
func PrintDirector(out io.Writer, st *api.DirectorStatus) error {
	w, width := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0), Width(out)
	fmt.Fprintf(w, "%s\n\n", headline(width, "director "+st.Version,
		fact{fmt.Sprintf("pid %d", st.Pid), 2}, fact{"up " + uptime(st.Uptime).String(), 3},
		device(st.TUN, st.Queues, st.Offloads),
		fact{fmt.Sprintf("%d of %s", st.Connections.Count, words.Count(st.Connections.Max, "connection")), 4}))
	printConfiguration(w, st.Configuration)
	printServices(w, st.Services, st.Announced, width)
	printNames(w, st.Names)
	printConflicts(w, st.Announced)
	printRoles(w, st.VRRP)
	if st.BGP != nil {
		fmt.Fprintln(w)
		printBGPLine(w, st.BGP)
	}
	if len(st.Leaving.List) > 0 {
		fmt.Fprintf(w, "\nnot configured any more, but with connections:\n")
	}
	for _, l := range st.Leaving.List {
		fmt.Fprintf(w, "  -> %s\t%s\t%s\t%d active\t%d inactive\n", l.Name(), l.Service, l.Method(), l.Active,
			l.Inactive)
	}
	if c := st.Connections; c.Evicted > 0 || c.HalfOpenMax > 0 && c.HalfOpen*2 > c.HalfOpenMax {
		fmt.Fprintf(w, "\nhalf-open\t%d of %d connections\t%d evicted\n", c.HalfOpen, c.HalfOpenMax, c.Evicted)
	}
	if st.Sync != nil {
		printSyncLine(w, st.Sync)
	}
	printTables(w, st.Tables)
	printWireGuard(w, "realserver", st.WireGuard)
	printTraffic(w, "in", st.In, "out", st.Out, st.Drops)
	printFastPath(w, &st.FastPath)
	if st.Resets > 0 {
		fmt.Fprintf(w, "TCP resets sent\t%s\n", words.Count(st.Resets, "packet"))
	}
	printOverruns(w, st.Overruns)
	printSendError(w, st.SendError)
	printMail(w, st.Mail)
	printTunnels(w, st.Tunnels)
	return w.Flush()
}

// PrintRealserver writes st as text. Without a tunnel there are no directors, and no MSS is lowered.
func PrintRealserver(out io.Writer, st *api.RealserverStatus) error {
	w, width := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0), Width(out)
	facts := []fact{{fmt.Sprintf("pid %d", st.Pid), 2}, {"up " + uptime(st.Uptime).String(), 3},
		device(st.TUN, st.Queues, st.Offloads)}
	vips := "VIPs " + strings.Join(st.VIPs, ", ")
	if !st.OwnVIPs {
		vips += " (not owned)"
	}
	if len(st.VIPs) == 0 {
		vips = "no VIPs"
	} else if len(st.Encap) > 0 {
		facts = append(facts, fact{fmt.Sprintf("MSS %d, over IPv6 %d", st.MSS, st.MSS6), 4})
		vips += " from directors " + strings.Join(st.Directors, ", ")
	} else {
		vips += ", without a tunnel"
	}
	head := headline(width, "realserver "+st.Version, facts...)
	fmt.Fprintln(w, head)
	printConfiguration(w, st.Configuration)
	fmt.Fprintln(w, Wrapped(vips, width, "  "))
	printTraffic(w, "received", st.In, "injected", st.Out, nil)
	if len(st.Encap) > 0 {
		printFastPath(w, &st.FastPath)
	}
	fmt.Fprintf(w, "answers by %s\t%s\t%s\n", st.TUN, words.Count(st.Answers.Packets, "packet"),
		words.Count(st.Answers.Bytes, "byte"))
	printDrops(w, st.Drops)
	printOverruns(w, st.Overruns)
	printSendError(w, st.SendError)
	printCounted(w, "from director", st.FromDirectors)
	printWireGuard(w, "director", st.WireGuard)
	printCounted(w, "not_director: from", st.RefusedSources)
	printCounted(w, "inner_destination: for", st.RefusedDestinations)
	printSecondChance(w, st.SecondChance)
	printTunnels(w, st.Tunnels)
	return w.Flush()
}

// printFastPath writes what the fast path does, or why it does nothing.
func printFastPath(w io.Writer, f *api.FastPath) {
	if f.On {
		fmt.Fprintf(w, "fast path by %s\t%s\t%s", strings.Join(f.Devices, ", "),
			words.Count(f.Taken.Packets, "packet"), words.Count(f.Taken.Bytes, "byte"))
		if f.Promoted > 0 {
			fmt.Fprintf(w, "\t%s now", words.Count(f.Connections, "connection"))
		}
		fmt.Fprintln(w)
	}
	for _, reason := range slices.Sorted(maps.Keys(f.Refused)) {
		fmt.Fprintf(w, "fast path refused: %s\t%s\n", reason, words.Count(f.Refused[reason], "time"))
	}
	switch {
	case !f.On:
		fmt.Fprintf(w, "fast path off: %s\n", f.Reason)
	case f.Reason != "":
		fmt.Fprintf(w, "fast path not everywhere: %s\n", f.Reason)
	}
}

func printCounted(w io.Writer, what string, all []api.Counted) {
	for _, c := range all {
		fmt.Fprintf(w, "%s %s\t%s\tlast %v ago\n", what, c.Address, words.Count(c.Packets, "packet"), uptime(c.Last))
	}
}

// printConfiguration writes the faults of the last reload, if it was refused.
func printConfiguration(w io.Writer, c api.Configuration) {
	if c.Error == "" {
		return
	}
	fmt.Fprintf(w, "the last reload failed, what was read at %s is in force:\n", c.Read.Local().Format(time.DateTime))
	for line := range strings.Lines(c.Error) {
		fmt.Fprintf(w, "  %s\n", strings.TrimSuffix(line, "\n"))
	}
	fmt.Fprintln(w)
}

func printTraffic(w io.Writer, in string, i api.Traffic, out string, o api.Traffic, drops map[string]uint64) {
	fmt.Fprintf(w, "\n%s\t%s\t%s\n", in, words.Count(i.Packets, "packet"), words.Count(i.Bytes, "byte"))
	fmt.Fprintf(w, "%s\t%s\t%s\n", out, words.Count(o.Packets, "packet"), words.Count(o.Bytes, "byte"))
	printDrops(w, drops)
}

func printDrops(w io.Writer, drops map[string]uint64) {
	for _, line := range dropLines(drops) {
		fmt.Fprintln(w, line)
	}
}

// dropLines returns a line for each reason: "dropped: no_service", a tab, and how often.
func dropLines(drops map[string]uint64) (lines []string) {
	for _, reason := range slices.Sorted(maps.Keys(drops)) {
		lines = append(lines, fmt.Sprintf("dropped: %s\t%s", reason, words.Count(drops[reason], "packet")))
	}
	return lines
}

func printOverruns(w io.Writer, n uint64) {
	if n > 0 {
		fmt.Fprintf(w, "overruns\t%s\n", words.Count(n, "packet"))
	}
}

// fact is a part of the first line. A narrow terminal drops the fact with the least weight first.
type fact struct {
	text   string
	weight int
}

// device returns the fact about the TUN device.
func device(tun string, queues int, names string) fact {
	return fact{fmt.Sprintf("%s with %s (%s)", tun, words.Count(queues, "queue"), offloads(names)), 1}
}

// headline returns a line of at most width characters, or of any length if width is 0.
func headline(width int, begin string, facts ...fact) string {
	for {
		line := begin
		least := 0
		for i, f := range facts {
			line += ", " + f.text
			if f.weight < facts[least].weight {
				least = i
			}
		}
		if len(facts) == 0 || width == 0 || utf8.RuneCountInString(line) <= width {
			return Wrapped(line, width, "  ")
		}
		facts = slices.Delete(slices.Clone(facts), least, least+1)
	}
}

func printSendError(w io.Writer, text string) {
	if text != "" {
		fmt.Fprintf(w, "last send error: %s\n", text)
	}
}

// printMail writes why mails fail, if they do.
func printMail(w io.Writer, m *api.Mail) {
	if m == nil || m.Error == "" {
		return
	}
	fmt.Fprintf(w, "last mail error: %s: %s", m.Server, m.Error)
	if m.Waiting > 0 {
		fmt.Fprintf(w, ", %s waiting for %v", words.Count(m.Waiting, "change"), uptime(m.Failing))
	}
	fmt.Fprintln(w)
}

func offloads(names string) string {
	if names == "" {
		return "no offloads"
	}
	return names
}

func uptime(seconds float64) time.Duration {
	return time.Duration(seconds * float64(time.Second)).Round(time.Second)
}
