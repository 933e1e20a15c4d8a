package cli

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/words"
)

// ExplainCommand returns the command explain, which prints the realserver that a flow has or would get, and why.
func ExplainCommand(socket *Socket) *cobra.Command {
	var asJSON bool
	var protocol string
	c := &cobra.Command{Use: "explain CLIENT[:PORT] VIP:PORT",
		Short: "Say which realserver a flow has, or would get, and why; changes nothing", Args: cobra.ExactArgs(2),
		Example: "  director explain 192.0.2.7:4711 198.51.100.80:80\n  director explain [2001:db8::7]:4711 " +
			"[2001:db8:100::80]:53 --protocol udp",
		RunE: func(c *cobra.Command, args []string) error {
			q := url.Values{"client": {args[0]}, "vip": {args[1]}}
			if protocol != "" {
				q.Set("protocol", protocol)
			}
			if _, _, _, err := api.ParseFlow(q); err != nil {
				return UsageError{Err: err}
			}
			path, err := socket.Path()
			if err != nil {
				return err
			}
			var e api.Explanation
			if err := api.Get(c.Context(), path, "/explain?"+q.Encode(), &e); err != nil {
				return plain(err)
			}
			if asJSON {
				return PrintJSON(c.OutOrStdout(), e)
			}
			return printExplanation(c.OutOrStdout(), &e)
		}}
	c.Flags().StringVar(&protocol, "protocol", "", "`tcp`, udp or sctp (default: the one that has a "+
		"connection or a service)")
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	// the flag exists
	_ = c.RegisterFlagCompletionFunc("protocol", cobra.FixedCompletions([]string{"tcp", "udp", "sctp"},
		cobra.ShellCompDirectiveNoFileComp))
	c.ValidArgsFunction = complete(socket, virtualPortNames)
	return socket.Flag(c)
}

// printExplanation writes e as text.
func printExplanation(out io.Writer, e *api.Explanation) error {
	var w bytes.Buffer
	width := Width(out)
	client := addressPort(e.Client, e.ClientPort)
	if e.ClientPort == 0 {
		client = e.Client
	}
	fmt.Fprintf(&w, "%s %s -> %s\n", e.Protocol, client, addressPort(e.VIP, e.Port))
	if c := e.Connection; c != nil {
		fmt.Fprintf(&w, "connection: to %s, %s, %s, expires in %s\n",
			addressPort(c.Realserver, cmp.Or(c.RealserverPort, c.Port)), c.State,
			words.Count(int(c.Packets), "packet"), minutes(c.Expires))
	} else if e.ClientPort == 0 {
		fmt.Fprintln(&w, "connection: a new one, from any port")
	} else {
		fmt.Fprintln(&w, "connection: none")
	}
	if t := e.Template; t != nil {
		fmt.Fprintf(&w, "persistence: client %s stays at %s, expires in %s\n", t.Client, t.Realserver,
			minutes(t.Expires))
	}
	if e.Service != "" {
		fmt.Fprintf(&w, "service: %s, scheduler %s\n", e.Service, e.Scheduler)
	}
	goes := "goes to " + e.Realserver
	if e.Drop != "" {
		goes = "is dropped: " + e.Drop
	}
	fmt.Fprintf(&w, "%s\n%s\n", goes, Wrapped("  because "+e.Why, width, "    "))
	if e.NextHop != "" {
		fmt.Fprintf(&w, "second chance: its packets name %s as the next hop\n", e.NextHop)
	}
	if e.Role != "" {
		fmt.Fprintln(&w, Wrapped("note: "+e.Role, width, "    "))
	}
	if len(e.Candidates) > 0 {
		rows := [][]string{{"RemoteAddress", "Forward", "Weight", "ActiveConn", "InActConn", "Device", "Packets", ""}}
		for _, c := range e.Candidates {
			rows = append(rows, candidateCells(&c))
		}
		g := layout(width, rows...)
		for i, cells := range rows {
			mark := margin
			if i > 0 && e.Candidates[i-1].Name() == e.Realserver {
				mark = chosen
			}
			g.print(&w, mark, cells)
		}
	}
	if len(e.Near) > 0 {
		fmt.Fprintln(&w, "there are:")
	}
	for _, door := range e.Near {
		fmt.Fprintln(&w, "  "+door)
	}
	_, err := w.WriteTo(out)
	return err
}

// candidateCells returns c's row of the table.
func candidateCells(c *api.Candidate) []string {
	link, remark := c.Link, remark(&c.Realserver)
	if link == "" {
		link = "no route"
	}
	if c.PassedOver != "" {
		remark = "passed over: " + c.PassedOver
	}
	return []string{c.Name(), c.Method(), fmt.Sprint(c.Weight), fmt.Sprint(c.Active), fmt.Sprint(c.Inactive), link,
		fmt.Sprintf("<= %d", c.InnerMTU), remark}
}

// remark returns the last cell of a realserver's row: failed checks, draining, another weight than configured.
func remark(r *api.Realserver) string {
	var remarks []string
	if trouble := r.Trouble(); trouble != "" {
		remarks = append(remarks, trouble)
	}
	if r.Weight == 0 {
		remarks = append(remarks, "draining")
	}
	if r.Standby {
		remarks = append(remarks, "standby")
	}
	if r.Configured != nil {
		remarks = append(remarks, fmt.Sprintf("(configured: %d)", *r.Configured))
	}
	if r.Host != "" {
		remarks = append(remarks, "of "+r.Host)
	}
	return strings.Join(remarks, " ")
}
