package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"vstun/cmd/internal/ingress"
	"vstun/routing"
	"vstun/routing/query"
)

// followPace is the least time between two looks at this host's devices.
const followPace = 100 * time.Millisecond

// ipsecEvery is the period of looks for IPsec policies, of which the kernel reports no change here.
const ipsecEvery = 10 * time.Second

// run attaches the program to devices that come, until ctx is cancelled.
func (f *fastPath) run(ctx context.Context) error {
	f.changes.Lock()
	loaded := f.program != nil
	f.changes.Unlock()
	if !loaded {
		<-ctx.Done()
		return nil
	}
	watch, err := query.WatchDevices()
	if err != nil {
		return err
	}
	f.changes.Lock()
	f.list = watch.Devices
	f.changes.Unlock()
	followed := make(chan struct{})
	go func() {
		defer close(followed)
		for {
			f.follow()
			select {
			case <-ctx.Done():
				return
			case <-time.After(followPace):
			}
			select {
			case <-ctx.Done():
				return
			case <-watch.Changed():
			case <-time.After(ipsecEvery):
			}
		}
	}()
	err = watch.Run(ctx)
	<-followed
	return err
}

// follow attaches the program to the devices by which packets come to this host now.
func (f *fastPath) follow() {
	f.changes.Lock()
	defer f.changes.Unlock()
	defer f.show()
	if f.program != nil {
		f.update()
	}
}

// update gives the program its rules and devices. f.changes is held.
func (f *fastPath) update() {
	if f.program == nil {
		return
	}
	all, err := f.list()
	if err != nil {
		f.log.Error("the fast path cannot list this host's devices", "error", err)
		return
	}
	f.tun = query.Device{}
	for _, d := range all {
		if d.Name == f.cfg.TUN {
			f.tun = d
		}
	}
	f.set()
	if f.program == nil {
		return
	}
	var at []query.Device
	if f.left = nil; f.rules.Device != 0 && len(f.cfg.Encaps) > 0 {
		names := f.cfg.FastPath.Devices
		f.left = ingress.LeftOut(all, names)
		if at = slices.DeleteFunc(ingress.Select(all, names), f.filtered); f.protected() {
			at, f.left = nil, []string{ingress.OffIPsec}
		}
	}
	if err := f.devices.Follow(at); err != nil {
		f.log.Warn("no fast path on a device: the sockets take its packets", "error", err)
	}
	f.devices.Log(f.log)
}

// protected reports whether this host has IPsec policies for packets that come: the program would take those that a
// policy refuses. f.changes is held.
func (f *fastPath) protected() bool {
	in, _ := f.secure.Look(f.log)
	f.secure.Log(f.log, in)
	return in
}

// filtered reports whether the strict reverse-path filter of a device can drop a director's packets. The program would
// take them: it comes before the filter. f.changes is held.
func (f *fastPath) filtered(d query.Device) bool {
	if !routing.FiltersStrictly(d.Name) {
		return false
	}
	for _, a := range f.rules.Directors {
		if !a.Is4() { // IPv6 has no such filter
			continue
		}
		if back, ok, err := query.Lookup(a, netip.Addr{}); err != nil || !ok || back.Link != d.Name {
			f.left = append(f.left, fmt.Sprintf("%s: rp_filter is strict, and the path to director %s is not by %s",
				d.Name, a, d.Name))
			return true
		}
	}
	return false
}
