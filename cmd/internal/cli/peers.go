package cli

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"vstun/cmd/internal/api"
)

// PeersCommand returns the command peers, which shows the director's roles and its peers.
func PeersCommand(socket *Socket) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{Use: "peers", Short: "Show the director's roles in VRRP, its sessions of BGP, the other " +
		"directors, and the exchange of connections with them",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			p, err := getPeers(c, socket)
			if err != nil {
				return err
			}
			return printPeers(c.OutOrStdout(), p, asJSON)
		}}
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return socket.Flag(c)
}

// getPeers asks the running director for its roles.
func getPeers(c *cobra.Command, socket *Socket) (p api.Peers, err error) {
	path, err := socket.Path()
	if err != nil {
		return p, err
	}
	return p, api.Get(c.Context(), path, "/peers", &p)
}

// StandbyCommand returns the command standby, which gives the director's roles to its peers.
func StandbyCommand(socket *Socket) *cobra.Command {
	var asJSON bool
	var linger time.Duration
	c := &cobra.Command{Use: "standby", Short: "Give the director's roles to the other directors, and withdraw its " +
		"VIPs from routers, until active or a restart; packets that still come are forwarded",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			p, err := postRole(c, socket, "/standby")
			if err != nil {
				return err
			}
			if linger > 0 {
				select { // a stop that follows breaks nothing that still comes here
				case <-time.After(linger):
				case <-c.Context().Done():
					return c.Context().Err()
				}
				if p, err = getPeers(c, socket); err != nil {
					return err
				}
			}
			return printPeers(c.OutOrStdout(), p, asJSON)
		}}
	c.Flags().DurationVar(&linger, "linger", 0, "return only after `D`: neighbours and routers have learnt of it "+
		"then")
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return socket.Flag(c)
}

// ActiveCommand returns the command active, which ends a standby.
func ActiveCommand(socket *Socket) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{Use: "active", Short: "End a standby: take the roles from directors of a lower priority, and " +
		"announce VIPs to routers again",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			p, err := postRole(c, socket, "/active")
			if err != nil {
				return err
			}
			return printPeers(c.OutOrStdout(), p, asJSON)
		}}
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return socket.Flag(c)
}

// postRole posts to the running director, and returns its roles.
func postRole(c *cobra.Command, socket *Socket, path string) (p api.Peers, err error) {
	control, err := socket.Path()
	if err != nil {
		return p, err
	}
	return p, plain(api.Post(c.Context(), control, path, reloadTakes, &p))
}

// printPeers writes the director's roles and its exchange of connections.
func printPeers(out io.Writer, p api.Peers, asJSON bool) error {
	if asJSON {
		return PrintJSON(out, p)
	}
	var err error
	if len(p.VRRP) > 0 || p.BGP == nil {
		err = printElection(out, p.VRRP)
	}
	return errors.Join(err, printBGP(out, p.BGP), printSync(out, p.Sync))
}

// printElection writes the director's roles, with what they depend on and the peers.
func printElection(out io.Writer, all []api.VRRP) error {
	if len(all) == 0 {
		_, err := fmt.Fprintln(out, "no [[vrrp]]: this director is always active")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for i := range all {
		v := &all[i]
		fmt.Fprintf(w, "%s\n", roleLine(v))
		fmt.Fprintf(w, "  addresses\t%s\n", strings.Join(v.Addresses, ", "))
		fmt.Fprintf(w, "  sent\t%d\treceived\t%d\trefused\t%s\n", v.Sent, v.Received, refusals(v.Refused))
		for _, t := range v.Tracks {
			fmt.Fprintf(w, "  %s\t%s\t%s\n", t.Name, upOrDown(t.Up), effect(t.Weight))
		}
		for _, o := range v.Peers {
			fmt.Fprintf(w, "  peer %s\tpriority %d\t%v ago\t%s\n", o.Address, o.Priority, uptime(o.Last),
				peerRemark(&o))
		}
		if len(v.Peers) == 0 && v.Role == "master" {
			fmt.Fprintf(w, "  no peer has been heard\ta backup sends nothing: director peers there must say backup\n")
		}
	}
	return w.Flush()
}

func upOrDown(up bool) string {
	if up {
		return "up"
	}
	return "DOWN"
}

func effect(weight int) string {
	if weight == 0 {
		return "a fault while it is down"
	}
	return fmt.Sprintf("weight %+d", weight)
}

func peerRemark(o *api.Peer) string {
	switch {
	case o.Refused != "" && o.Fix != "":
		return "REFUSED: " + o.Refused + ": " + o.Fix
	case o.Refused != "":
		return "REFUSED: " + o.Refused
	case o.Differs:
		return "has OTHER ADDRESSES"
	}
	return ""
}

func refusals(refused map[string]uint64) string {
	if len(refused) == 0 {
		return "0"
	}
	var all []string
	for _, reason := range slices.Sorted(maps.Keys(refused)) {
		all = append(all, fmt.Sprintf("%d %s", refused[reason], reason))
	}
	return strings.Join(all, ", ")
}

// roleLine returns the line about an instance: "VI_1 on eth0: master for 3m, priority 150".
func roleLine(v *api.VRRP) string {
	line := fmt.Sprintf("%s on %s: %s for %v, priority %d", v.Name, v.Interface, v.Role, uptime(v.Since), v.Priority)
	if v.Priority != v.Configured {
		line += fmt.Sprintf(" (configured %d)", v.Configured)
	}
	if v.Standby {
		line += ", standby"
	}
	if v.Held {
		line += ", waits for its peers' connections"
	}
	if v.Fault != "" {
		line += ": " + v.Fault
	}
	if o := v.OtherMaster; o != nil {
		line += ": CONFLICT: " + o.Address + " is master, too"
	}
	return line
}

// printRoles writes the roles of the director.
func printRoles(w io.Writer, all []api.VRRP) {
	title := "\nVRRP"
	for i := range all {
		fmt.Fprintf(w, "%s %s\n", title, roleLine(&all[i]))
		title = "VRRP"
	}
}
