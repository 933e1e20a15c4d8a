// Command lab shows vstun at work on one machine, on hosts that are network namespaces.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"vstun/cmd/internal/bench"
	"vstun/cmd/internal/cli"
)

func main() { os.Exit(run()) }

func run() int {
	// Cleaning up must survive whatever may come: Ctrl-C, a closed terminal, and `lab demo | head`.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)

	root := &cobra.Command{
		Use:   "lab",
		Short: "Hosts in network namespaces, to see vstun at work",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.AddCommand(demoCommand(), bench.Command(), bench.LoopCommand(), cli.VersionCommand())
	root.SetContext(ctx)
	return cli.Main(root)
}

func demoCommand() *cobra.Command {
	var o options
	c := &cobra.Command{
		Use:   "demo",
		Short: "Requests through a director and two realservers; needs root",
		Long: "demo makes five hosts out of network namespaces (client, router, director, two web servers), runs the\n" +
			"programs director and realserver in them, makes requests to the virtual address, and shows which way\n" +
			"the packets went. It takes a few seconds and leaves nothing behind. Exit status 0: all went as it should.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return demo(c.Context(), c.OutOrStdout(), o) },
	}
	c.Flags().BoolVar(&o.stay, "stay", false, "leave everything up to look around, until Ctrl-C")
	c.Flags().BoolVar(&o.ipv6, "ipv6", false, "all of it with IPv6, inside the tunnel and outside")
	c.Flags().StringVar(&o.bin, "bin", "", "`DIR` of the programs director and realserver (default: where lab "+
		"itself is)")
	return c
}
