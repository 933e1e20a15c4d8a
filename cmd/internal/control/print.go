package control

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

	"golang.org/x/term"
)

// PrintJSON writes v as all commands write JSON.
func PrintJSON(out io.Writer, v any) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// Width is that of the terminal that out is; 0: it is none, and lines may have any length.
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

// PrintDirector writes st for people: the services as `ipvsadm -Ln` shows them, then packets and drops.
func PrintDirector(out io.Writer, st *DirectorStatus) error {
	w, width := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0), Width(out)
	head := fmt.Sprintf("director %s, pid %d, up %s, %s with %d queues (%s), %d of %d connections", st.Version, st.Pid, uptime(st.Uptime), st.TUN,
		st.Queues, offloads(st.Offloads), st.Connections.Count, st.Connections.Max)
	fmt.Fprintf(w, "%s\n\n", wrapped(head, width, "  "))
	printConfiguration(w, st.Configuration)
	printServices(w, st.Services, width)
	if len(st.Leaving.List) > 0 {
		fmt.Fprintf(w, "\nnot configured any more, but with connections:\n")
	}
	for _, l := range st.Leaving.List {
		fmt.Fprintf(w, "  -> %s\t%s\t%d active\t%d inactive\n", l.Address, l.Service, l.Active, l.Inactive)
	}
	if c := st.Connections; c.Evicted > 0 || c.HalfOpenMax > 0 && c.HalfOpen*2 > c.HalfOpenMax {
		fmt.Fprintf(w, "\nhalf-open\t%d of %d connections\t%d evicted\n", c.HalfOpen, c.HalfOpenMax, c.Evicted)
	}
	printTraffic(w, "in", st.In, "out", st.Out, st.Drops)
	printOverruns(w, st.Overruns)
	if st.SendError != "" {
		fmt.Fprintf(w, "last send error: %s\n", st.SendError)
	}
	return w.Flush()
}

// PrintRealserver writes st for people.
func PrintRealserver(out io.Writer, st *RealserverStatus) error {
	w, width := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0), Width(out)
	head := fmt.Sprintf("realserver %s, pid %d, up %s, %s with %d queues (%s), MSS %d, over IPv6 %d", st.Version, st.Pid, uptime(st.Uptime), st.TUN, st.Queues,
		offloads(st.Offloads), st.MSS, st.MSS6)
	vips := fmt.Sprintf("VIPs %s from directors %s", strings.Join(st.VIPs, ", "), strings.Join(st.Directors, ", "))
	fmt.Fprintln(w, wrapped(head, width, "  "))
	printConfiguration(w, st.Configuration)
	fmt.Fprintln(w, wrapped(vips, width, "  "))
	printTraffic(w, "received", st.In, "injected", st.Out, st.Drops)
	printOverruns(w, st.Overruns)
	return w.Flush()
}

// printConfiguration writes why the last reload was refused, if it was.
func printConfiguration(w io.Writer, c Configuration) {
	if c.Error == "" {
		return
	}
	fmt.Fprintf(w, "the last reload failed, what was read at %s is in force:\n", c.Read.Local().Format(time.DateTime))
	for line := range strings.Lines(c.Error) {
		fmt.Fprintf(w, "  %s\n", strings.TrimSuffix(line, "\n"))
	}
	fmt.Fprintln(w)
}

func printTraffic(w io.Writer, in string, i Traffic, out string, o Traffic, drops map[string]uint64) {
	fmt.Fprintf(w, "\n%s\t%d packets\t%d bytes\n", in, i.Packets, i.Bytes)
	fmt.Fprintf(w, "%s\t%d packets\t%d bytes\n", out, o.Packets, o.Bytes)
	for _, reason := range slices.Sorted(maps.Keys(drops)) {
		fmt.Fprintf(w, "dropped: %s\t%d packets\n", reason, drops[reason])
	}
}

func printOverruns(w io.Writer, n uint64) {
	if n > 0 {
		fmt.Fprintf(w, "overruns\t%d packets\n", n)
	}
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
