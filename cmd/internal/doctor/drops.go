package doctor

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/words"
)

// advice is the meaning of a drop reason whose count grows, and its fix. Reasons without advice have their causes at
// the senders of the packets.
type advice struct {
	why     string
	causes  []string
	fix     string
	remarks []string
	all     bool // no packet was accepted
}

// finding returns the finding that packets are dropped for a reason.
func (a *advice) finding(reason, what string) Finding {
	f := Finding{Severity: Warning, Where: reason, What: what, Why: a.why, Causes: a.causes, Fix: a.fix,
		Remarks: a.remarks}
	if a.all {
		f.Severity = Error
	}
	return f
}

func directorAdvice() map[string]advice {
	status := func(why string, remarks ...string) advice {
		return advice{why: why, fix: "director status", remarks: remarks}
	}
	reload := func(why string, remarks ...string) advice {
		return advice{why: why, fix: "director reload", remarks: remarks}
	}
	restart := func(why string, remarks ...string) advice {
		return advice{why: why, fix: "systemctl restart vstun-director", remarks: remarks}
	}
	return map[string]advice{
		"no_service": status("clients ask for a port that no service has", "add the service",
			"or leave such clients without an answer: no_service = \"drop\""),
		"no_realserver": status("all realservers of a service are down, have weight 0, or are full (upper)",
			"raise a weight or upper, or repair the realservers"),
		"unreachable": status("a VS/NAT realserver has no route, or a client on this host uses a VS/NAT service",
			"add the route, or move the client to another host"),
		"unresolved": status("a VS/DR realserver has not answered ARP or neighbour discovery yet",
			"look at the realserver and the switch"),
		"realserver_removed": reload("connections of a removed realserver are dropped, as on_removal = \"drop\" says",
			"first set on_removal = \"drain\", which lets them end"),
		"table_full": restart("the connection table is full",
			"first raise connections.max, or shorten its timeouts"),
		"send_error": status("the kernel refuses packets that the director sends", "the command shows the last error"),
		"too_big": {why: "packets do not fit a tunnel, and their senders ignore the ICMP errors",
			fix:     "realserver status",
			remarks: []string{"run it on the realservers: mss = \"auto\" makes their servers advertise less"}},
		"offload":       restart("GSO packets cannot be parsed", "first set offload = \"off\"", "report this fault"),
		"handshake":     wrongKey,
		"tunnel_source": wrongAddress,
		"unexpected": {why: "a realserver sends packets to the director through WireGuard, which takes none",
			fix: "director status", remarks: []string{"route the realserver's answers to the clients"}},
		"reassembly": {why: "fragments wait for others that do not come", fix: "nstat -az IpReasmFails",
			remarks: []string{"look for a firewall on the path that drops fragments"}},
	}
}

func realserverAdvice() map[string]advice {
	senders := advice{fix: "tcpdump -ni any ip proto 4 or ip proto 41 or ip proto 47",
		remarks: []string{"look for the host that sends them"}}
	from := func(why string) advice { a := senders; a.why = why; return a }
	return map[string]advice{
		"not_director": {why: "a host that is not in directors sends tunnel packets", fix: applyRealserver},
		"outer_header": from("tunnel packets have headers that no director makes"),
		"tunnel_header": {why: "the director's tunnel has options that the agent does not implement",
			fix: "realserver status", remarks: []string{"with IPVS: leave out --tun-remcsum"}},
		"tunnel_key": {why: "the gre key is not the one configured here", fix: applyRealserver,
			remarks: []string{"first set the same encap_key here and at the directors"}},
		"handshake":     wrongKey,
		"tunnel_source": wrongAddress,
		"tunnel_checksum": {why: "packets are damaged on the path, in the tunnel", fix: "ip -s link",
			remarks: []string{"look for the device that damages them: ethtool -S"}},
		"inner_destination": {why: "the director sends packets for an address that is not in vips",
			fix: applyRealserver},
		"inner_source": from("packets have this host's own or an impossible source address: forged, or of a client " +
			"on this host"),
		"inner_protocol": from("a tunnel is in the tunnel: a realserver cannot be a director's client here"),
		"tun_error": {why: "the kernel refuses packets that come out of the tunnel",
			fix: "ip link show vs0; sysctl net.ipv6.conf.vs0.disable_ipv6"},
		"trailing_bytes": from("tunnel packets have bytes after the inner packet"),
		"not_answer": {why: "this host sends packets into the agent's device from an address that is no VIP, or to " +
			"no client",
			fix: "tcpdump -ni vs0", remarks: []string{
				"let the server that sends them listen on the VIP, not on all addresses, or delete the route that " +
					"leads there"}},
		"unsettled": {why: "they are of unknown connections, and the tables for second chances have not come yet",
			fix: "realserver doctor"},
		"answer_loop": {why: "a rule or route leads answers that the agent sends back into its device",
			fix:     "ip rule; ip route show table all dev vs0",
			remarks: []string{"delete the one that is not the agent's"}},
		"send_error": {why: "the kernel refuses answers that the agent forwards", fix: "realserver status",
			remarks: []string{"it shows the last error"}},
	}
}

// wrongKey and wrongAddress are for peers of WireGuard.
var (
	wrongKey = advice{why: "a WireGuard peer has another key than the one configured here, another preshared key, or " +
		"a clock that was set back", fix: "timedatectl",
		remarks: []string{"compare public_key and preshared_key of both ends"}}
	wrongAddress = advice{why: "a WireGuard peer sends from another tunnel address than the one configured here",
		fix: applyRealserver, remarks: []string{"set the same tunnel addresses at both ends"}}
)

// applyRealserver is the command that applies a changed realserver.toml.
const applyRealserver = "realserver reload"

// manyDrops is the bound for past drops: they are a finding from 1/manyDrops of a realserver's packets on, since only
// directors should send it tunnel packets.
const manyDrops = 10

// dropped records the reasons whose counters grow. before and after are the counters at two times.
func (res *result) dropped(before, after map[string]uint64, known map[string]advice) {
	var past []string
	for _, reason := range slices.Sorted(maps.Keys(after)) {
		n, now := after[reason], after[reason]-before[reason]
		if a, ours := known[reason]; ours && now > 0 {
			res.find(a.finding(reason, fmt.Sprintf("%s refused within %v, %d since the start",
				words.Count(now, "packet"), sampled, n)))
			continue
		}
		past = append(past, fmt.Sprintf("%s %d", reason, n))
	}
	if len(past) > 0 {
		res.fine("none now with a fix on this host; since the start: %s", brief(past))
	} else if len(res.findings) == 0 {
		res.fine("none")
	}
}

// overrun records that the program does not keep up.
func (res *result) overrun(before, after uint64) {
	if after > before {
		res.find(Finding{Severity: Warning, Where: "overruns",
			What: fmt.Sprintf("the kernel has dropped %s within %v: the program did not read fast enough",
				words.Count(after-before, "packet"), sampled),
			Why: "there are more packets than the program's workers can process", Fix: "nproc",
			Remarks: []string{"give it more CPUs, and set queues = 0 (one per CPU)"}})
	}
}

// directorDrops reads the director's counters twice.
func (res *result) directorDrops(ctx context.Context, socket string, before *api.DirectorStatus) {
	pause(ctx, sampled)
	var after api.DirectorStatus
	if res.failed(api.Get(ctx, socket, "/status", &after)) {
		return
	}
	res.dropped(before.Drops, after.Drops, directorAdvice())
	res.overrun(before.Overruns, after.Overruns)
	if c := after.Connections; c.Count*10 > c.Max*9 {
		res.find(Finding{Severity: Warning, Where: "connections", What: fmt.Sprintf("the table has %d of %d", c.Count,
			c.Max), Why: "new connections are refused when it is full",
			Fix: "systemctl restart vstun-director", Remarks: []string{"first raise connections.max"}})
	}
}
