package director

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/director/plan"
	"vstun/routing/neigh"
	"vstun/routing/query"
)

// lan is the director's part in the networks that have a VIP in their subnets: it follows this host's devices, answers
// for the VIPs, announces them, and asks whether another host has them. The zero value has no sockets and does nothing.
type lan struct {
	log      *slog.Logger
	watch    *query.DeviceWatch
	answerer *neigh.Answerer
	prober   *neigh.Prober
	ethernet *ethernet // the network of the TAP device, in place of those of the host; nil: none
	missing  error     // why there are no sockets
	reported bool      // the log has missing
}

// open opens the sockets, for all devices of this host and for those that come later. Without the sockets a director
// still works, unless it has VIPs to announce: see check.
func (l *lan) open(log *slog.Logger, e *ethernet) (err error) {
	l.log, l.ethernet = log, e
	if l.watch, err = query.WatchDevices(); err != nil {
		return err
	}
	if e != nil {
		l.answerer = e.answerer
		if l.prober, err = neigh.OpenProber(); err != nil {
			log.Warn("cannot ask whether another host has a VIP", "error", err)
		}
		return nil
	}
	if l.answerer, err = neigh.Open(log); err == nil {
		l.prober, err = neigh.OpenProber()
	}
	if err != nil {
		l.missing = errors.Join(err, l.closeSockets())
		l.answerer, l.prober = nil, nil
	}
	return nil
}

// devices lists this host's devices.
func (l *lan) devices() ([]query.Device, error) {
	if l.watch == nil {
		return query.Devices()
	}
	return l.watch.Devices()
}

// changed returns the channel of events about devices.
func (l *lan) changed() <-chan struct{} {
	if l.watch == nil {
		return nil
	}
	return l.watch.Changed()
}

func (l *lan) name() string { return "ARP and neighbour discovery" }

func (l *lan) set(*plan.Desired) error { return nil }

// announce replaces the addresses to answer for. It logs the differences between VIPs: a TAP device has addresses of
// the director itself, too. Without sockets it logs once that VIPs have got into a subnet of this host: check has
// refused the ones that were there before.
func (l *lan) announce(was, is *state) error {
	var before []neigh.Device
	vips := plan.VIPs(is.Config)
	if was != nil {
		before, vips = was.Announce, append(vips, plan.VIPs(was.Config)...)
	}
	if was != nil && neigh.EqualDevices(before, is.Announce) {
		return nil
	}
	if l.answerer == nil {
		if added := plan.Added(before, is.Announce); len(added) > 0 && l.missing != nil && !l.reported {
			l.reported = true
			l.log.Error("VIPs in a subnet of this host are not announced: the director can't answer for them; give "+
				"their neighbours a route to them, or set announce = \"none\"", "device", added[0].Name, "vip",
				added[0].Addrs[0], "error", l.missing)
		}
		return nil
	}
	l.answerer.Set(is.Announce)
	known := map[netip.Addr]bool{}
	for _, vip := range vips {
		known[vip] = true
	}
	l.logVIPs("VIPs announced", plan.Added(before, is.Announce), known)
	l.logVIPs("VIPs not announced any more", plan.Added(is.Announce, before), known)
	return nil
}

func (l *lan) shared() bool { return false }

func (l *lan) standby(bool) {}

// leave ends the answers. Neighbours keep what they know.
func (l *lan) leave() error {
	if l.answerer == nil {
		return nil
	}
	return l.answerer.Close()
}

// logVIPs logs an event about VIPs of devices.
func (l *lan) logVIPs(event string, of []neigh.Device, known map[netip.Addr]bool) {
	for _, d := range of {
		vips := slices.DeleteFunc(slices.Clone(d.Addrs), func(a netip.Addr) bool { return !known[a] })
		if len(vips) > 0 {
			l.log.Info(event, "device", d.Name, "count", len(vips), "vips", names(vips[:min(len(vips), 10)]))
		}
	}
}

// check examines whether in lets the director announce VIPs that it does not announce in was. It returns an error for
// each VIP that another host has, or, if the configuration says so, logs a warning. It takes a third of a second.
func (l *lan) check(in plan.Inputs, was []neigh.Device) error {
	added := plan.Added(was, plan.Announce(in))
	if len(added) == 0 {
		return nil
	}
	d := added[0]
	if l.missing != nil {
		return fmt.Errorf("VIP %s is in a subnet of %s, and the director can't answer for it there: %w; or set "+
			"announce = \"none\"", d.Addrs[0], d.Name, l.missing)
	}
	if l.prober == nil || len(in.Config.VRRP) > 0 { // with VRRP another director may have it
		return nil
	}
	if l.ethernet != nil {
		if added = askedByBridge(in, added); added == nil {
			return nil
		}
	}
	owners, err := l.prober.Ask(added)
	if err != nil {
		return fmt.Errorf("VIP %s: cannot ask whether another host has it: %w", d.Addrs[0], err)
	}
	slices.SortFunc(owners, func(a, b neigh.Owner) int { return a.Addr.Compare(b.Addr) })
	var errs []error
	for _, o := range owners {
		does := "answers for"
		if o.Probing {
			does = "is about to take"
		}
		if in.Config.Announce.Warn {
			l.log.Warn("another host "+does+" a VIP", "vip", o.Addr, "device", o.Device, "mac", o.MAC)
			continue
		}
		errs = append(errs, fmt.Errorf("VIP %s: another host, with MAC address %s, %s it on %s: set "+
			"arp_ignore = 1 there if it is a realserver, else remove the address there, or set announce_conflict = "+
			"\"warn\"", o.Addr, o.MAC, does, o.Device))
	}
	return errors.Join(errs...)
}

// status sets the VIPs that are announced, in ascending order, and the counts. Other addresses that are announced are
// the director's own.
func (l *lan) status(of *state, st *api.DirectorStatus) {
	if l.answerer == nil {
		return
	}
	c := l.answerer.Counts()
	st.Neighbours = api.Neighbours{Answers: c.Answers, Announcements: c.Announcements, Conflicts: c.Conflicts,
		Failed: c.Failed}
	on, vips := map[netip.Addr][]string{}, plan.VIPs(of.Config)
	for _, d := range of.Announce {
		for _, a := range d.Addrs {
			if _, isVIP := slices.BinarySearchFunc(vips, a, netip.Addr.Compare); isVIP {
				on[a] = append(on[a], d.Name)
			}
		}
	}
	conflicts, now := map[netip.Addr][]api.Conflict{}, time.Now()
	for _, c := range l.answerer.Claims() {
		conflicts[c.Addr] = append(conflicts[c.Addr], api.Conflict{Device: c.Device, MAC: c.MAC.String(),
			Packets: c.Count, Last: since(c.Last, now)})
	}
	for _, vip := range slices.SortedFunc(maps.Keys(on), netip.Addr.Compare) {
		st.Announced = append(st.Announced,
			api.Announced{VIP: vip.String(), Devices: on[vip], Conflicts: conflicts[vip]})
	}
}

// run follows the devices and answers until ctx is cancelled.
func (l *lan) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answered := make(chan error, 1)
	go func() {
		defer cancel()
		answered <- l.answer(ctx)
	}()
	err := l.watch.Run(ctx)
	cancel()
	return errors.Join(err, <-answered)
}

func (l *lan) answer(ctx context.Context) error {
	if l.answerer == nil {
		<-ctx.Done()
		return nil
	}
	return l.answerer.Run(ctx)
}

// close closes the sockets, also if open has failed half-way.
func (l *lan) close() error {
	if l.watch != nil {
		l.watch.Close()
	}
	return l.closeSockets()
}

func (l *lan) closeSockets() (err error) {
	if l.answerer != nil {
		err = l.answerer.Close()
	}
	if l.prober != nil {
		err = errors.Join(err, l.prober.Close())
	}
	return err
}
