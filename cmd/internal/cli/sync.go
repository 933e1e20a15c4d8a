package cli

import (
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"text/tabwriter"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/words"
)

// printSync writes the exchange of connections. nil: there is none.
func printSync(out io.Writer, s *api.Sync) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if s == nil {
		fmt.Fprintln(w, "no [sync]: connections are not exchanged with other directors")
		return w.Flush()
	}
	fmt.Fprintf(w, "sync %s, %s\n", s.Mode, syncState(s))
	fmt.Fprintf(w, "sent\t%s\t%s\t%s\n", words.Count(s.Sent.Datagrams, "datagram"),
		words.Count(s.Sent.Records, "record"), words.Count(s.Sent.Bytes, "byte"))
	fmt.Fprintf(w, "received\t%s\t%s\t%s\n", words.Count(s.Received.Datagrams, "datagram"),
		words.Count(s.Received.Records, "record"), words.Count(s.Received.Bytes, "byte"))
	for _, c := range []struct {
		name string
		n    uint64
		what string
	}{{"lost", s.Lost, "datagram"}, {"resent", s.Resent, "datagram"}, {"changes lost", s.ChangesLost, "change"},
		{"inexpressible", s.Inexpressible, "record"}, {"send errors", s.SendErrors, "datagram"}} {
		if c.n > 0 {
			fmt.Fprintf(w, "%s\t%s\n", c.name, words.Count(c.n, c.what))
		}
	}
	for _, reason := range slices.Sorted(maps.Keys(s.Refused)) {
		fmt.Fprintf(w, "refused: %s\t%d\n", reason, s.Refused[reason])
	}
	if s.Error != "" {
		fmt.Fprintf(w, "last error\t%s, %v ago\n", s.Error, uptime(s.ErrorAge))
	}
	for _, r := range s.Senders {
		fmt.Fprintf(w, "refused from %s\t%s, last %v ago: %s: %s\n", r.Address, words.Count(r.Count, "datagram"),
			uptime(r.Last), r.Reason, r.Fix)
	}
	for i := range s.Peers {
		printSyncPeer(w, &s.Peers[i], s.Mode)
	}
	printUnheard(w, s)
	return w.Flush()
}

// syncState says how the exchange goes.
func syncState(s *api.Sync) string {
	switch {
	case !s.Ready, slices.ContainsFunc(s.Peers, func(p api.SyncPeer) bool {
		return s.Mode == "vstun" && p.State == "alive" && p.Bulk == nil
	}):
		return "waiting for the peers' connections"
	case s.Sending:
		return "sending the whole table"
	case s.Mode == "ipvs":
		return "without authentication"
	case !slices.ContainsFunc(s.Peers, func(p api.SyncPeer) bool { return p.State == "alive" }):
		return "NO PEER is heard"
	}
	return "the peers' connections are complete"
}

// printSyncLine writes a summary of s.
func printSyncLine(w io.Writer, s *api.Sync) {
	fmt.Fprintf(w, "\nsync %s\t%s\t%s sent\t%s received\t%d lost\n", s.Mode, syncState(s),
		words.Count(s.Sent.Records, "record"), words.Count(s.Received.Records, "record"), s.Lost)
	for i := range s.Peers {
		printSyncPeer(w, &s.Peers[i], s.Mode)
	}
	printUnheard(w, s)
}

// printUnheard writes the configured peers, or the multicast group, of which nothing has come.
func printUnheard(w io.Writer, s *api.Sync) {
	for _, text := range s.Unheard {
		if a, err := netip.ParseAddr(text); err == nil && a.IsMulticast() {
			fmt.Fprintf(w, "group %s\tno peer has been heard\n", text)
			continue
		}
		fmt.Fprintf(w, "peer %s\tnot heard\n", text)
	}
}

func printSyncPeer(w io.Writer, p *api.SyncPeer, mode string) {
	fmt.Fprintf(w, "peer %s\t%s, heard %v ago\t%s\t%d lost", p.Address, p.State, uptime(p.Heard),
		words.Count(p.Received.Records, "record"), p.Lost)
	switch {
	case p.Bulk != nil:
		fmt.Fprintf(w, "\ttable complete %v ago", uptime(*p.Bulk))
	case mode == "vstun":
		fmt.Fprintf(w, "\ttable incomplete")
	}
	fmt.Fprintln(w)
}
