package control

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/url"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vstun/cmd/internal/daemon"
)

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
			if _, err := ParseFilter(q, states); err != nil {
				return daemon.UsageError{Err: err}
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
	out := bufio.NewWriterSize(c.OutOrStdout(), streamBuffer)
	width := Width(c.OutOrStdout())
	print := func(w io.Writer, line []byte) error { return printConnection(w, line, width) }
	if asJSON {
		print = printLine
	} else if err := printConnectionsHead(out, width); err != nil {
		return err
	}
	err := eachLine(c.Context(), socket, "/connections?"+q.Encode(),
		func(line []byte) error { return print(out, line) })
	if refused := (*refusal)(nil); errors.As(err, &refused) { // there is no table
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
