package cli

import (
	"fmt"
	"io"
	"maps"
	"slices"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/words"
)

// printTables writes the tables that a director sends to agents. nil: it sends none.
func printTables(w io.Writer, t *api.Tables) {
	if t == nil {
		return
	}
	current := 0
	for _, a := range t.Agents {
		if a.Current {
			current++
		}
	}
	fmt.Fprintf(w, "tables for agents\t%s\t%d of %s current\n", words.Count(t.Sent, "datagram"), current,
		words.Count(len(t.Agents), "agent"))
	for _, a := range t.Agents {
		if !a.Current {
			heard := "never heard"
			if a.Heard != nil {
				heard = fmt.Sprintf("heard %v ago", uptime(*a.Heard))
			}
			fmt.Fprintf(w, "agent %s lacks the last table\t%s\n", a.Address, heard)
		}
	}
	for _, name := range t.TooLarge {
		fmt.Fprintf(w, "service %s\tis too large for the agents' tables\n", name)
	}
	printRefused(w, "refused of agents", t.Refused)
	if t.Error != "" {
		fmt.Fprintf(w, "tables: last error\t%s\n", t.Error)
	}
}

// printRefused writes how many datagrams were refused, by reason.
func printRefused(w io.Writer, what string, refused map[string]uint64) {
	for _, reason := range slices.Sorted(maps.Keys(refused)) {
		fmt.Fprintf(w, "%s: %s\t%s\n", what, reason, words.Count(refused[reason], "datagram"))
	}
}

// printSecondChance writes the second chances of an agent. nil: it gives none.
func printSecondChance(w io.Writer, c *api.SecondChance) {
	if c == nil {
		return
	}
	fmt.Fprintf(w, "second chance\t%s sent on\t%s received\t%s\n", words.Count(c.Forwarded.Packets, "packet"),
		words.Count(c.Received, "packet"), words.Count(c.Queries, "question"))
	if c.Unasked > 0 {
		fmt.Fprintf(w, "beyond the bound of questions\t%s\n", words.Count(c.Unasked, "packet"))
	}
	for _, d := range c.Directors {
		fmt.Fprintf(w, "tables of director %s\tlast %v ago\n", d.Address, uptime(d.Heard))
	}
	if len(c.Directors) == 0 {
		fmt.Fprintf(w, "no director has sent tables to UDP port %d\n", c.Port)
	}
	for _, s := range c.Services {
		fmt.Fprintf(w, "service %s\t%s\n", s.Name, words.Count(len(s.Tables), "table"))
	}
	printRefused(w, "tables refused", c.Refused)
	if c.Error != "" {
		fmt.Fprintf(w, "second chance: last error\t%s\n", c.Error)
	}
}
