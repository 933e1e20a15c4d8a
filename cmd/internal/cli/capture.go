package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/daemon"
	"vstun/cmd/internal/words"
)

// CaptureCommand returns the command capture, which writes packets of the running director to a file.
func CaptureCommand(socket *Socket) *cobra.Command {
	filters := pflag.NewFlagSet("filters", pflag.ContinueOnError)
	filters.String("client", "", "only of this client, `ADDRESS[:PORT]`")
	filters.String("vip", "", "only to this VIP, `ADDRESS[:PORT]`")
	filters.String("realserver", "", "only to this realserver, `ADDRESS[:PORT]`")
	filters.String("count", "1000", "no more than `N` packets, read and sent ones together")
	filters.String("seconds", "60", "no longer than `S` seconds")
	filters.String("megabytes", "64", "no more than `N` megabytes")
	var file string
	var asJSON bool
	c := &cobra.Command{Use: "capture -w FILE", Short: "Write packets to a pcapng file, as they come in and as they " +
		"leave", Args: cobra.NoArgs,
		Example: "  director capture --client 192.0.2.7 -w flow.pcapng\n  director capture --vip 198.51.100.80:80 " +
			"--seconds 5 -w - | tshark -r -",
		RunE: func(c *cobra.Command, _ []string) error {
			q := url.Values{}
			filters.VisitAll(func(f *pflag.Flag) {
				if f.Changed {
					q.Set(f.Name, f.Value.String())
				}
			})
			if file == "" {
				return UsageError{Err: errors.New("--write is missing: want -w FILE, or -w - into a pipe")}
			}
			_, err := api.ParseCapture(q)
			if err != nil {
				return UsageError{Err: err}
			}
			if f, ok := c.OutOrStdout().(*os.File); ok && file == "-" && term.IsTerminal(int(f.Fd())) {
				return UsageError{Err: errors.New("-w -: a capture is nothing for a terminal: name a file, " +
					"or pipe it into tshark -r -")}
			}
			path, err := socket.Path()
			if err != nil {
				return err
			}
			got, err := capture(c, path, q, file)
			if err != nil {
				return plain(err)
			}
			if asJSON {
				return PrintJSON(c.ErrOrStderr(), got)
			}
			_, err = fmt.Fprintf(c.ErrOrStderr(), "%s read, %d sent, %d lost\n",
				words.Count(got.Before, "packet"), got.After, got.Lost)
			return err
		}}
	c.Flags().AddFlagSet(filters)
	c.Flags().StringVarP(&file, "write", "w", "", "`FILE` to write, - for standard output")
	c.Flags().BoolVar(&asJSON, "json", false, "how many packets there are as JSON, on standard error")
	completeFlags(c, socket)
	return socket.Flag(c)
}

// capture writes the director's answer to file. SIGINT and SIGTERM end the capture; the file is complete then, too.
func capture(c *cobra.Command, socket string, q url.Values, file string) (got api.Captured, err error) {
	resp, err := api.Open(c.Context(), socket, "/capture?"+q.Encode(), 0)
	if err != nil {
		return got, err
	}
	defer resp.Body.Close()
	signalled, stop := daemon.Signals(c.Context())
	defer stop()
	defer context.AfterFunc(signalled, func() {
		var ignored struct{}
		if api.Post(c.Context(), socket, "/capture/end", 0, &ignored) != nil {
			resp.Body.Close() // the director does not answer
		}
	})()
	out := c.OutOrStdout()
	if file != "-" {
		f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600) // the packets hold data of clients
		if err != nil {
			return got, err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		out = f
	}
	if _, err := io.Copy(out, resp.Body); err != nil {
		return got, fmt.Errorf("the capture is cut off: %w", err)
	}
	return got, api.Summary(socket, "/capture", resp, &got)
}
