package cli

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"os"
	"time"

	"github.com/spf13/cobra"

	"vstun/cmd/internal/api"
)

// ProfileCommand returns the command profile, which writes a profile of the running program to a file.
func ProfileCommand(socket *Socket) *cobra.Command {
	var seconds int
	var out string
	c := &cobra.Command{Use: "profile [cpu|heap|allocs|goroutine|mutex|block|trace]",
		Short:     "Write a profile of the running program, for go tool pprof",
		Args:      cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"cpu", "heap", "allocs", "goroutine", "mutex", "block", "trace"},
		RunE: func(c *cobra.Command, args []string) error {
			path, err := socket.Path()
			if err != nil {
				return err
			}
			kind := "cpu"
			if len(args) == 1 {
				kind = args[0]
			}
			name := kind
			if kind == "cpu" {
				name = "profile"
			}
			q := url.Values{}
			if kind == "cpu" || kind == "trace" {
				q.Set("seconds", fmt.Sprint(seconds))
			}
			if out == "" {
				out = c.Root().Name() + "." + kind + ".pprof"
			}
			if err := save(c.Context(), path, "/debug/pprof/"+name+"?"+q.Encode(), out,
				time.Duration(seconds)*time.Second); err != nil {
				return err
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), out)
			return err
		}}
	c.Flags().IntVar(&seconds, "seconds", 10, "how long to watch, for cpu and trace")
	c.Flags().StringVarP(&out, "output", "o", "", "file to write (default: PROGRAM.KIND.pprof)")
	return socket.Flag(c)
}

// save writes the program's answer to a file.
func save(ctx context.Context, socket, path, file string, takes time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, takes+api.Patience)
	defer cancel()
	resp, err := api.Open(ctx, socket, path, takes)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, resp.Body); err != nil {
		f.Close()
		return fmt.Errorf("%s: %w", file, err)
	}
	return f.Close()
}
