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
	// No signal may prevent the cleanup: Ctrl-C, a closed terminal, or SIGPIPE after `lab demo | head`.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)

	root := &cobra.Command{
		Use:   "lab",
		Short: "Hosts in network namespaces, to see vstun at work",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.AddCommand(demoCommand(), bench.Command(), bench.TraceCommand(), bench.LoopCommand(), cli.VersionCommand())
	root.SetContext(ctx)
	return cli.Main(root)
}

func demoCommand() *cobra.Command {
	var o options
	c := &cobra.Command{
		Use:   "demo",
		Short: "Requests through a director and two realservers; needs root",
		Long: "demo makes five hosts out of network namespaces (client, router, director, two web servers), runs\n" +
			"the programs director and realserver in them, makes requests to the virtual address, and counts the\n" +
			"packets on their paths. It takes a few seconds and cleans up. Exit status 0: every request was\n" +
			"answered as expected.\n\nWith --lan the director, the web servers and the virtual address are in one " +
			"subnet, as in the\nusual layout of LVS, and a sixth host there makes requests, too.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return demo(c.Context(), c.OutOrStdout(), o) },
	}
	c.Flags().BoolVar(&o.stay, "stay", false, "keep everything running until Ctrl-C")
	c.Flags().BoolVar(&o.ipv6, "ipv6", false, "use IPv6, inside the tunnel and outside")
	c.Flags().BoolVar(&o.lan, "lan", false, "put the virtual address into the director's subnet, and use VS/DR")
	c.Flags().BoolVar(&o.ha, "ha", false, "two directors, one of which is killed; in the network of --lan")
	c.Flags().BoolVar(&o.tunnel, "tunnel", false, "two sites, connected by point-to-point tunnels")
	c.MarkFlagsMutuallyExclusive("tunnel", "lan")
	c.MarkFlagsMutuallyExclusive("tunnel", "ha")
	c.Flags().StringVar(&o.bin, "bin", "", "`DIR` of the programs director and realserver (default: where lab "+
		"itself is)")
	return c
}
