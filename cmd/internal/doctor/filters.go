package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/procfs"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/words"
	"vstun/routing/query"
)

// strict is the value of rp_filter that drops packets if the route to their source leads to another device (RFC 3704,
// section 2.2); 2 is loose.
const strict = 1

// sampled is the time between two readings of a counter, to see whether it grows.
const sampled = 500 * time.Millisecond

// strictDevices returns the devices that are up and filter strictly, except one.
func strictDevices(but string) (names []string, err error) {
	devices, err := query.Devices()
	for _, d := range devices {
		if d.Up && !d.Loopback && d.Name != but && hasIPv4(d) && sysctlOf(d.Name, "rp_filter") == strict {
			names = append(names, d.Name)
		}
	}
	return names, err
}

// loosenRPFilter returns the command that makes devices filter loosely.
func loosenRPFilter(devices []string) string {
	var all []string
	for _, d := range devices {
		all = append(all, fmt.Sprintf("net.ipv4.conf.%s.rp_filter=2", d))
	}
	return "sysctl -w " + strings.Join(all, " ")
}

// directorFilters examines whether rp_filter drops clients' packets, or answers to health checks: these come from a
// VIP, and the route to the VIP leads to the director's own device.
func (res *result) directorFilters(ctx context.Context, tun string, v4 bool, st *api.DirectorStatus) {
	if !v4 {
		res.fine("IPv6 has no rp_filter")
		return
	}
	devices, err := strictDevices(tun)
	if res.failed(err) {
		return
	}
	if len(devices) == 0 {
		res.fine("no device filters strictly")
		return
	}
	if strict := answeredBy(st, devices); len(strict) > 0 {
		res.find(Finding{Severity: Error, Where: strings.Join(strict, ", "), What: "rp_filter is strict",
			Why: "the answers to health checks through the tunnel, which come from the VIP, are dropped",
			Fix: loosenRPFilter(strict)})
		return
	}
	res.reversePath(ctx, devices)
}

// answeredBy returns the devices on which answers to health checks through the tunnel arrive, if realservers answer on
// the route that leads to them.
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

// reversePath examines, by the host's counter, whether devices that filter strictly drop packets now.
func (res *result) reversePath(ctx context.Context, devices []string) {
	self, err := procfs.Self()
	if res.failed(err) {
		return
	}
	before, err := reversePathDrops(self)
	if res.failed(err) {
		return
	}
	pause(ctx, sampled)
	after, err := reversePathDrops(self)
	if res.failed(err) {
		return
	}
	where := strings.Join(devices, ", ")
	if after > before {
		res.find(Finding{Severity: Warning, Where: where,
			What: fmt.Sprintf("rp_filter is strict, and has dropped %s within %v", words.Count(after-before, "packet"),
				sampled),
			Why: "packets from hosts that this one would reach by another device are dropped: clients', or directors'",
			Fix: loosenRPFilter(devices)})
		return
	}
	res.fine("strict on %s, and drops no packets now", where)
}

// pause waits until d has passed or ctx is cancelled.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// reversePathDrops returns the number of packets that rp_filter has dropped in the network namespace of a process.
func reversePathDrops(p procfs.Proc) (int, error) {
	stat, err := p.Netstat()
	if err != nil {
		return 0, err
	}
	if stat.IPReversePathFilter == nil {
		return 0, errors.New("the kernel has no counter IPReversePathFilter")
	}
	return int(*stat.IPReversePathFilter), nil
}
