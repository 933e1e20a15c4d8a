package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/words"
	"vstun/routing/query"
)

// strict is the rp_filter that drops a packet whose source the host would reach by another device (RFC 3704, section
// 2.2); 2 is loose.
const strict = 1

// sampled is how long counters are looked at, to see whether they grow.
const sampled = 500 * time.Millisecond

// strictDevices are the devices that are up and filter strictly, but for one.
func strictDevices(but string) (names []string, err error) {
	devices, err := query.Devices()
	for _, d := range devices {
		if d.Up && !d.Loopback && d.Name != but && hasIPv4(d) && sysctlOf(d.Name, "rp_filter") == strict {
			names = append(names, d.Name)
		}
	}
	return names, err
}

// loosen is the command that makes devices filter loosely.
func loosen(devices []string) string {
	var all []string
	for _, d := range devices {
		all = append(all, fmt.Sprintf("net.ipv4.conf.%s.rp_filter=2", d))
	}
	return "sysctl -w " + strings.Join(all, " ")
}

// directorFilters examines whether rp_filter drops clients' packets, or the answers to health checks, which come from a
// VIP though the route to it leads to the director's own device.
func (e *exam) directorFilters(ctx context.Context, tun string, v4 bool, st *api.DirectorStatus) {
	if !v4 {
		e.fine("IPv6 has none")
		return
	}
	devices, err := strictDevices(tun)
	if e.failed(err) {
		return
	}
	if len(devices) == 0 {
		e.fine("no device filters strictly")
		return
	}
	if strict := answeredBy(st, devices); len(strict) > 0 {
		e.find(Finding{Severity: Error, Where: strings.Join(strict, ", "), What: "rp_filter is strict",
			Why: "the answers to health checks through the tunnel, which come from the VIP, are dropped",
			Fix: loosen(strict)})
		return
	}
	e.reversePath(ctx, devices)
}

// answeredBy are those of devices by which answers to health checks through the tunnel come in, as far as realservers
// answer by the way by which they are reached.
func answeredBy(st *api.DirectorStatus, devices []string) (used []string) {
	for _, s := range st.Services {
		for _, r := range s.Realservers {
			a, err := netip.ParseAddr(r.Address)
			if err != nil || !a.Is4() || r.Check == nil || r.Check.Via != "tunnel" {
				continue
			}
			if hop, ok, err := query.Lookup(a, netip.Addr{}); err == nil && ok && slices.Contains(devices,
				hop.Link) && !slices.Contains(used, hop.Link) {
				used = append(used, hop.Link)
			}
		}
	}
	return used
}

// reversePath examines whether the devices that filter strictly drop something, by the host's counter of it.
func (e *exam) reversePath(ctx context.Context, devices []string) {
	before, err := netstat("TcpExt", "IPReversePathFilter")
	if e.failed(err) {
		return
	}
	pause(ctx, sampled)
	after, err := netstat("TcpExt", "IPReversePathFilter")
	if e.failed(err) {
		return
	}
	where := strings.Join(devices, ", ")
	if after > before {
		e.find(Finding{Severity: Warning, Where: where,
			What: fmt.Sprintf("rp_filter is strict, and has dropped %s within %v", words.Count(after-before, "packet"),
				sampled),
			Why: "packets from hosts that this one would reach by another device are dropped: clients', or directors'",
			Fix: loosen(devices)})
		return
	}
	e.fine("strict on %s, and drops nothing now", where)
}

// pause waits.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// netstat is a counter of /proc/net/netstat: two lines of a group, of names and of values.
func netstat(group, name string) (int, error) {
	text, err := os.ReadFile("/proc/net/netstat")
	if err != nil {
		return 0, err
	}
	return counter(string(text), group, name)
}

func counter(text, group, name string) (int, error) {
	var names []string
	for line := range strings.Lines(text) {
		fields, ours := strings.CutPrefix(line, group+":")
		switch {
		case !ours:
		case names == nil:
			names = strings.Fields(fields)
		default:
			for i, value := range strings.Fields(fields) {
				if i < len(names) && names[i] == name {
					return strconv.Atoi(value)
				}
			}
		}
	}
	return 0, fmt.Errorf("the kernel has no counter %s", name)
}
