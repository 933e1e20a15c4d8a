// Command manual writes the manual pages of both programs into a directory, from what their commands say of themselves.
package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"vstun/cmd/internal/agent"
	"vstun/cmd/internal/cli"
	"vstun/cmd/internal/daemon"
	"vstun/cmd/internal/director"
)

func main() {
	if err := write(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "manual:", err)
		os.Exit(cli.ExitFailure)
	}
}

func write(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("want a directory")
	}
	if err := os.MkdirAll(args[0], 0o755); err != nil {
		return err
	}
	for _, c := range []*cobra.Command{director.Command(), agent.Command()} {
		cli.Prepare(c)
		c.DisableAutoGenTag = true
		header := &doc.GenManHeader{Section: "8", Source: "vstun " + daemon.Version(),
			Manual: "LVS/TUN load balancing in user space"}
		if err := doc.GenManTree(c, header, args[0]); err != nil {
			return err
		}
	}
	return nil
}
