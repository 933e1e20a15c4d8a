package cli

import (
	"fmt"
	"io"
	"strings"
	"time"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/words"
)

// printTunnels writes the point-to-point tunnels.
func printTunnels(w io.Writer, all []api.Tunnel) {
	if len(all) > 0 {
		fmt.Fprintln(w)
	}
	for i := range all {
		t := &all[i]
		heard := "NOTHING CAME"
		if t.Heard != nil {
			heard = "heard " + uptime(*t.Heard).String() + " ago"
		}
		fmt.Fprintf(w, "tunnel %s\t%s\t%s\t%s\t%s in\t%s out\t%s\n", t.Name, t.Format(), t.Remote, stateOf(t),
			words.Count(t.In.Packets, "packet"), words.Count(t.Out.Packets, "packet"), heard)
		if t.Reason != "" {
			fmt.Fprintf(w, "tunnel %s: %s\n", t.Name, t.Reason)
		}
		for _, line := range dropLines(t.Drops) {
			fmt.Fprintf(w, "tunnel %s: %s\n", t.Name, line)
		}
		if t.SendError != "" {
			fmt.Fprintf(w, "tunnel %s: last send error: %s\n", t.Name, t.SendError)
		}
	}
}

// stateOf returns the state of t, with its MTU and the round trip of its probe.
func stateOf(t *api.Tunnel) string {
	text := fmt.Sprintf("%s, MTU %d", t.State, t.MTU)
	if t.State != "up" {
		text = strings.ToUpper(t.State)
	}
	if p := t.Probe; p != nil && p.Answered > 0 {
		took := time.Duration(p.RoundTrip * float64(time.Second))
		text += ", " + took.Round(time.Microsecond).String()
	}
	return text
}
