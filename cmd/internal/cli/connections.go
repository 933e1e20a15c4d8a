package cli

import (
	"bufio"
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

// connectionsRow is as wide as IPv4 needs. Rows are printed as they come, and so nobody knows the widest before.
const connectionsRow = "%-4s %-6s %-11s %-21s %-21s %s\n"

// row is one of the table's. Where it is wider than the terminal, it goes on below; width 0: it never is.
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
		addressPort(c.Realserver, c.Port)))
	return err
}

// minutes is a time as "14:59", in whole seconds as ipvsadm cuts them.
func minutes(seconds float64) string {
	s := int(time.Duration(seconds*float64(time.Second)) / time.Second)
	return fmt.Sprintf("%02d:%02d", s/60, s%60)
}

// addressPort is "192.0.2.1:80" or "[2001:db8::1]:80".
func addressPort(address string, port uint16) string {
	if a, err := netip.ParseAddr(address); err == nil {
		return netip.AddrPortFrom(a, port).String()
	}
	return address + ":" + strconv.Itoa(int(port))
}

// ConnectionsCommand lists the connections of the running director, whose connections can be in states.
func ConnectionsCommand(states []string, socket *Socket) *cobra.Command {
	var asJSON bool
	filters := pflag.NewFlagSet("filters", pflag.ContinueOnError)
	filters.String("client", "", "only of this client, an address or `PREFIX`")
	filters.String("vip", "", "only to this VIP, `ADDRESS[:PORT]`")
	filters.String("realserver", "", "only to the realserver with this `ADDRESS`")
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
			if errors.Is(err, syscall.EPIPE) { // whom we write to has enough
				return nil
			}
			return plain(err)
		}}
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON, an object a line")
	c.Flags().AddFlagSet(filters)
	// the flag is there
	_ = c.RegisterFlagCompletionFunc("state", cobra.FixedCompletions(states, cobra.ShellCompDirectiveNoFileComp))
	completeFlags(c, socket)
	return socket.Flag(c)
}

// listConnections prints what the director answers as it comes.
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
	if refused := (*api.RefusedError)(nil); errors.As(err, &refused) { // there is no table
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
