package cli

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vstun/cmd/internal/api"
)

// connectionsRow has the widths that IPv4 needs. Rows are printed as they come, before the widest one is known.
const connectionsRow = "%-4s %-6s %-11s %-21s %-21s %s\n"

// row returns a row of the table. A row wider than width has a second line. Width 0 is no bound.
func row(width int, protocol, expire, state, client, vip, realserver string) string {
	r := fmt.Sprintf(connectionsRow, protocol, expire, state, client, vip, realserver)
	if width > 0 && len(r)-1 > width {
		r = fmt.Sprintf("%-4s %-6s %-11s %s\n"+below+"-> %s -> %s\n", protocol, expire, state, client, vip, realserver)
	}
	return r
}

func printConnectionsHead(w io.Writer, width int) error {
	_, err := io.WriteString(w, row(width, "pro", "expire", "state", "source", "virtual", "destination"))
	return err
}

// printConnection prints a line of JSON as a row of the table.
func printConnection(w io.Writer, line []byte, width int) error {
	var c api.Connection
	if err := json.Unmarshal(line, &c); err != nil {
		return fmt.Errorf("/connections: answer is not as expected: %w", err)
	}
	if c.VIP == "" {
		c.Protocol, c.VIP = "-", "-"
	}
	_, err := io.WriteString(w, row(width, strings.ToUpper(c.Protocol), minutes(c.Expires), c.State,
		addressPort(c.Client, c.ClientPort), addressPort(c.VIP, c.Port),
		addressPort(c.Realserver, cmp.Or(c.RealserverPort, c.Port))))
	return err
}

// minutes formats a time as "14:59", rounded down to seconds as by ipvsadm.
func minutes(seconds float64) string {
	s := int(time.Duration(seconds*float64(time.Second)) / time.Second)
	return fmt.Sprintf("%02d:%02d", s/60, s%60)
}

// addressPort returns "192.0.2.1:80" or "[2001:db8::1]:80".
func addressPort(address string, port uint16) string {
	if a, err := netip.ParseAddr(address); err == nil {
		return netip.AddrPortFrom(a, port).String()
	}
	return address + ":" + strconv.Itoa(int(port))
}

// ConnectionsCommand returns the command connections, which lists the connections of the running director. states are
// the names of all states.
func ConnectionsCommand(states []string, socket *Socket) *cobra.Command {
	var asJSON bool
	filters := pflag.NewFlagSet("filters", pflag.ContinueOnError)
	filters.String("client", "", "only of this client, an address or `PREFIX`")
	filters.String("vip", "", "only to this VIP, `ADDRESS[:PORT]`")
	filters.String("realserver", "", "only to this realserver, `ADDRESS[:PORT]`")
	filters.String("service", "", "only of the service of this `NAME`")
	filters.String("state", "", "only in the state of this `NAME`, such as ESTABLISHED or TEMPLATE")
	filters.String("limit", "", "no more than `N` (default: all)")
	c := &cobra.Command{Use: "connections", Short: "List connections and persistence templates, as ipvsadm -Lnc does",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			q := url.Values{}
			filters.VisitAll(func(f *pflag.Flag) {
				if f.Changed {
					q.Set(f.Name, f.Value.String())
				}
			})
			if _, err := api.ParseFilter(q, states); err != nil {
				return UsageError{Err: err}
			}
			path, err := socket.Path()
			if err != nil {
				return err
			}
			err = listConnections(c, path, q, asJSON)
			if errors.Is(err, syscall.EPIPE) { // the reader of the output has left
				return nil
			}
			return plain(err)
		}}
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON, an object a line")
	c.Flags().AddFlagSet(filters)
	// the flag exists
	_ = c.RegisterFlagCompletionFunc("state", cobra.FixedCompletions(states, cobra.ShellCompDirectiveNoFileComp))
	completeFlags(c, socket)
	return socket.Flag(c)
}

// listConnections prints the director's answer as it comes.
func listConnections(c *cobra.Command, socket string, q url.Values, asJSON bool) error {
	out := bufio.NewWriterSize(c.OutOrStdout(), 64<<10)
	width := Width(c.OutOrStdout())
	print := func(w io.Writer, line []byte) error { return printConnection(w, line, width) }
	if asJSON {
		print = printLine
	} else if err := printConnectionsHead(out, width); err != nil {
		return err
	}
	err := api.EachLine(c.Context(), socket, "/connections?"+q.Encode(),
		func(line []byte) error { return print(out, line) })
	if refused := (*api.RefusedError)(nil); errors.As(err, &refused) { // no rows will follow
		return err
	}
	if flush := out.Flush(); err == nil {
		err = flush
	}
	return err
}

func printLine(w io.Writer, line []byte) error {
	_, err := fmt.Fprintf(w, "%s\n", line)
	return err
}
