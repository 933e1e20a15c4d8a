package query

import (
	"context"
	"net"
	"slices"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"

	"vstun/testdata/testkit"
)

// TestWatchDevices: each change is signalled, and a device that was down for a moment has lost its link.
func TestWatchDevices(t *testing.T) {
	newHost(t)
	w, err := WatchDevices()
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := w.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	defer running.Wait()
	defer cancel()
	east := func() Device {
		t.Helper()
		all, err := w.Devices()
		must(t, err)
		return all[slices.IndexFunc(all, func(d Device) bool { return d.Name == "east" })]
	}
	await := func(what string, cond func() bool) {
		t.Helper()
		testkit.Receive(t, "an event: "+what, w.Changed())
		testkit.Eventually(t, what, cond)
	}
	before := east()
	if !before.Running || !before.Neighbours || before.MAC == [6]byte{} {
		t.Errorf("%+v", before)
	}
	l := linkOf(t, "east")
	must(t, netlink.LinkSetDown(l))
	must(t, netlink.LinkSetUp(l))
	await("the link is back", func() bool { return east().Running && east().Losses > before.Losses })
	lost := east().Losses
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 7}
	must(t, netlink.LinkSetHardwareAddr(l, mac))
	await("another MAC address", func() bool { return east().MAC == [6]byte(mac) })
	addAddr(t, "east", "10.3.0.1/24")
	await("another address", func() bool { return len(east().Addrs) > len(before.Addrs) })
	must(t, netlink.LinkSetMTU(l, 1400))
	if got := east().Losses; got != lost {
		t.Errorf("%d losses, want %d: the link has stayed", got, lost)
	}
	all, err := w.Devices()
	must(t, err)
	for _, d := range all {
		if (d.Name == "lo" || d.Name == "vs0") && d.Neighbours {
			t.Errorf("%s has neighbours", d.Name)
		}
	}
}

// TestWatchRemovals: a device that was removed and made anew with the same index and name is another one, each time,
// also without a look in between.
func TestWatchRemovals(t *testing.T) {
	newHost(t)
	w, err := WatchDevices()
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = w.Run(ctx) })
	defer running.Wait()
	defer cancel()
	made := netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: "again2"}
	made.Name, made.Index = "again", 4711
	look := func() Device {
		all, err := w.Devices()
		must(t, err)
		return all[slices.IndexFunc(all, func(d Device) bool { return d.Name == "again" })]
	}
	must(t, netlink.LinkAdd(&made))
	before := look()
	for range 3 {
		must(t, netlink.LinkDel(&made))
		must(t, netlink.LinkAdd(&made))
		testkit.Eventually(t, "it is another one", func() bool {
			is := look()
			return is.Index == before.Index && is.Removals > before.Removals && is.Losses > before.Losses
		})
		before = look()
	}
	for range 3 { // another caller has seen that it is gone
		noted := func() int {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.past[made.Index].removals
		}
		was := noted()
		must(t, netlink.LinkDel(&made))
		testkit.Eventually(t, "the removal is noted", func() bool { return noted() > was })
		_, err := w.Devices()
		must(t, err)
		must(t, netlink.LinkAdd(&made))
		is := look()
		if is.Index != before.Index || is.Removals <= before.Removals || is.Losses <= before.Losses {
			t.Errorf("%+v, before %+v", is, before)
		}
		before = is
	}
	for range 3 { // what is gone takes no memory
		must(t, netlink.LinkDel(&made))
		made.Index++
		must(t, netlink.LinkAdd(&made))
	}
	testkit.Eventually(t, "the past of the present devices is kept alone", func() bool {
		all, err := w.Devices()
		must(t, err)
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.past) <= len(all)
	})
}
