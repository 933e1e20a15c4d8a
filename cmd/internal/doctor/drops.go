package doctor

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"vstun/cmd/internal/control"
	"vstun/cmd/internal/words"
)

// advice is what a drop reason that keeps coming means, and what to do about it. Those that are not here are the senders' affair.
type advice struct{ why, mend string }

func directorAdvice() map[string]advice {
	return map[string]advice{
		"no_service":         {"clients ask for a port that no service has", "director status: add the service, or stop those who ask: nobody needs to be told, with no_service = \"drop\""},
		"no_realserver":      {"all realservers of a service have weight 0, are down, or have as many connections as upper allows", "director status: raise a weight or upper, see to the realservers"},
		"realserver_removed": {"connections of a realserver that has left are dropped, as on_removal = \"drop\" says", "on_removal = \"drain\" lets them end"},
		"table_full":         {"the connection table is full", "raise connections.max, or shorten its timeouts, and restart"},
		"send_error":         {"the kernel refuses what the director sends", "director status shows the last error"},
		"too_big":            {"packets do not fit a tunnel, and their senders are told again and again", "let the servers advertise a smaller MSS: mss = \"auto\" on the realservers"},
		"offload":            {"super-packets are not understood", "set offload = \"off\", restart, and tell us"},
		"reassembly":         {"fragments wait for others that do not come", "look for a firewall that drops fragments before this host"},
	}
}

func realserverAdvice() map[string]advice {
	return map[string]advice{
		"not_director":      {"somebody who is not in directors sends tunnel packets", "add the director's address to directors and restart; if it is a stranger, filter him at your network's border"},
		"outer_header":      {"tunnel packets have headers that no director makes", "tcpdump -ni any proto 4 or proto 41 or proto 47: who sends them?"},
		"tunnel_header":     {"the director's tunnel has options that the agent does not speak", "with IPVS: leave out --tun-remcsum"},
		"tunnel_key":        {"the gre key is not the one configured here", "set the same encap_key here and at the directors"},
		"tunnel_checksum":   {"packets are damaged on the way, in the tunnel", "look for the device that damages them: ethtool -S, ip -s link"},
		"inner_destination": {"the director sends packets for an address that is not in vips", "add the VIP to vips and restart, or take this realserver out of that service"},
		"inner_source":      {"packets claim to come from an address of this host or from nowhere", "look for who forges them; or a client that is this host itself"},
		"inner_protocol":    {"tunnels are in the tunnel", "a realserver can't be a director's client here: look for who sends them"},
		"tun_error":         {"the kernel refuses what comes out of the tunnel", "ip link show vs0; sysctl net.ipv6.conf.vs0.disable_ipv6"},
		"trailing_bytes":    {"tunnel packets have bytes behind the packet in them", "look for who sends them"},
	}
}

// many is the share of what has come in from which on drops of the past are a finding on a realserver, whom nobody but directors should send anything: one
// part of so many.
const many = 10

// dropped notes what is refused now. Before and after are the counters at two times.
func (e *exam) dropped(before, after map[string]uint64, known map[string]advice) {
	var past []string
	for _, reason := range slices.Sorted(maps.Keys(after)) {
		n, now := after[reason], after[reason]-before[reason]
		if a, ours := known[reason]; ours && now > 0 {
			e.find(Finding{Severity: Warning, Where: reason, What: fmt.Sprintf("%s refused within %v, %d since the start", words.Count(now, "packet"), sampled, n), Why: a.why, Mend: a.mend})
			continue
		}
		past = append(past, fmt.Sprintf("%s %d", reason, n))
	}
	if len(past) > 0 {
		e.fine("none now that this host could mend; since the start: %s", brief(past))
	} else if len(e.findings) == 0 {
		e.fine("none")
	}
}

// overrun notes that the program does not keep up.
func (e *exam) overrun(before, after uint64) {
	if after > before {
		e.find(Finding{Severity: Warning, Where: "overruns", What: fmt.Sprintf("the kernel has dropped %s within %v: the program did not read fast enough", words.Count(after-before, "packet"), sampled),
			Why: "there are more packets than the program's workers can take", Mend: "give it more CPUs, and queues = 0 (one per CPU)"})
	}
}

// directorDrops looks at the director's counters twice.
func (e *exam) directorDrops(ctx context.Context, socket string, before *control.DirectorStatus) {
	pause(ctx, sampled)
	var after control.DirectorStatus
	if e.failed(control.Get(ctx, socket, "/status", &after)) {
		return
	}
	e.dropped(before.Drops, after.Drops, directorAdvice())
	e.overrun(before.Overruns, after.Overruns)
	if c := after.Connections; c.Count*10 > c.Max*9 {
		e.find(Finding{Severity: Warning, Where: "connections", What: fmt.Sprintf("the table has %d of %d", c.Count, c.Max), Why: "when it is full new connections are refused",
			Mend: "raise connections.max and restart"})
	}
}
