package bench

import (
	"fmt"
	"net/netip"
	"os"

	"github.com/spf13/cobra"

	"vstun/cmd/internal/cli"
)

// Command is the command bench of the lab.
func Command() *cobra.Command {
	o := Options{Status: os.Stderr}
	c := &cobra.Command{
		Use:   "bench",
		Short: "Measure the packet path against plain forwarding; needs root and two CPUs (one with --kernel)",
		Long: "bench measures the director, in network namespaces of its own, against plain forwarding by the " +
			"kernel, against the\n" +
			"least loop that a director behind a TUN device can be, and against a naive one: 60-byte packets, TCP " +
			"streams (with\n" +
			"iperf3), HTTP requests (with wrk and nginx) and round trips, with the fast path and without, " +
			"everything in several\n" +
			"rounds. It takes under twelve minutes, in which the machine should have nothing else to do, and leaves " +
			"nothing behind.\n" +
			"A bar that is missed is in the table, and no failure.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return Run(c.Context(), c.OutOrStdout(), o) },
	}
	c.Flags().BoolVar(&o.JSON, "json", false, "print data, with the values of each round")
	c.Flags().BoolVar(&o.Quick, "quick", false, "two minutes' check that everything works; the figures are rough")
	c.Flags().BoolVar(&o.Kernel, "kernel", false, "measure only what the kernel forwards: plain forwarding, its own "+
		"IPVS if it has one, and the fast path; one CPU is enough")
	c.Flags().BoolVar(&o.WireGuard, "wireguard", false, "measure only the rows of WireGuard, within a minute")
	c.Flags().StringVar(&o.Against, "against", "", "`DIR` of the programs of another version: measure both in "+
		"alternation, and print new : old")
	binFlag(c, &o)
	return c
}

// binFlag adds the flag of o.Bin.
func binFlag(c *cobra.Command, o *Options) {
	c.Flags().StringVar(&o.Bin, "bin", "", "`DIR` of the programs director, realserver and lab (default: where lab "+
		"itself is)")
}

// loopName is the command that Command runs on the director's host.
const loopName = "bench-loop"

// LoopCommand is a hidden command of the lab: it runs one of the loops with which bench compares the director.
func LoopCommand() *cobra.Command {
	var l Loop
	c := &cobra.Command{
		Use:       loopName + " {" + Floor + "|" + Naive + "}",
		Short:     "A loop that forwards from a TUN device to one realserver, for bench",
		Hidden:    true,
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{Floor, Naive},
	}
	c.Flags().StringVar(&l.TUN, "tun", "vs-loop", "`NAME` of the TUN device, which it makes")
	c.Flags().StringVar(&l.Journal, "journal", "/run/vstun/bench-loop.journal", "`FILE` for what has to be undone")
	addrs := []struct {
		name, use string
		addr      *netip.Addr
	}{
		{"vip", "`ADDRESS` whose packets are forwarded", &l.VIP},
		{"from", "`ADDRESS` of the director", &l.From},
		{"to", "`ADDRESS` of the realserver", &l.To},
	}
	for _, a := range addrs {
		c.Flags().TextVar(a.addr, a.name, netip.Addr{}, a.use)
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		l.Kind = args[0]
		for _, a := range addrs {
			if !a.addr.Is4() {
				return cli.UsageError{Err: fmt.Errorf("--%s: want an IPv4 address", a.name)}
			}
		}
		return l.Run(c.Context(), c.OutOrStdout())
	}
	return c
}
