package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/words"
)

// bgpStates are the states of the announcement in words.
var bgpStates = map[string]string{
	"announcing":        "",
	"held":              ", waits for its peers' connections",
	"graceful_shutdown": ", GRACEFUL SHUTDOWN",
	"standby":           ", STANDBY",
}

// printBGP writes the sessions with routers, nothing without [bgp].
func printBGP(out io.Writer, b *api.BGP) error {
	if b == nil {
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	printBGPLine(w, b)
	for i := range b.Peers {
		p := &b.Peers[i]
		if p.State != "established" {
			continue
		}
		fmt.Fprintf(w, "  %s\trouter %s\tfrom %s\thold time %v\t%d sent\t%d received\n", p.Address, p.RouterID,
			p.Local, uptime(p.HoldTime), p.Sent, p.Received)
	}
	if len(b.Withdrawn) > 0 {
		all := slices.Clone(b.Withdrawn)
		for i, vip := range all {
			if slices.Contains(b.Elsewhere, vip) {
				all[i] += " (another master)"
			}
		}
		fmt.Fprintf(w, "not announced\t%s\n", strings.Join(all, ", "))
	}
	return w.Flush()
}

// printBGPLine writes a summary of b, and a line about each peer.
func printBGPLine(w io.Writer, b *api.BGP) {
	fmt.Fprintf(w, "BGP AS %d: %s announced, %d not%s\n", b.AS, words.Count(len(b.Announced), "VIP"), len(b.Withdrawn),
		bgpStates[b.State])
	for i := range b.Peers {
		fmt.Fprintf(w, "peer %s\n", sessionLine(&b.Peers[i]))
	}
}

// sessionLine returns the line about a peer: "10.0.2.1 AS 65000: established for 3m, 12 VIPs, BFD up".
func sessionLine(p *api.BGPPeer) string {
	line := fmt.Sprintf("%s AS %d: ", p.Address, p.AS)
	if p.State == "established" {
		line += fmt.Sprintf("established for %v, %s", uptime(p.Since), words.Count(p.Announced, "VIP"))
	} else {
		line += fmt.Sprintf("DOWN for %v", uptime(p.Since))
	}
	if p.BFD != "" {
		line += ", BFD " + p.BFD
	}
	for _, s := range []string{p.Reason, p.Fix} {
		if s != "" {
			line += ": " + s
		}
	}
	return line
}
