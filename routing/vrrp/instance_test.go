package vrrp

import (
	"net/netip"
	"slices"
	"testing"
	"time"
)

func TestTracks(t *testing.T) {
	w := newWorld(t)
	a, b := w.add(1, vi(100)), w.add(2, vi(90))
	w.run(10 * time.Second)
	track := func(weight int, up bool) func(Moment) {
		return func(now Moment) {
			a.SetTracks(now, map[string][]Track{"VI": {{Name: "service web", Up: up, Weight: weight}}})
		}
	}
	a.do(track(-20, true))
	w.run(10 * time.Second)
	w.expect("up", Master, Backup)
	a.do(track(-20, false))
	w.run(10 * time.Second)
	w.expect("down, by weight", Backup, Master)
	if p := a.status("VI").InForce; p != 80 {
		t.Errorf("priority %d", p)
	}
	a.do(track(-20, true))
	w.run(10 * time.Second)
	w.expect("up again", Master, Backup)
	a.do(track(0, false))
	w.until(b, Master, time.Second)
	w.expect("down, a fault", Fault, Master)
	if f := a.status("VI").Fault; f != "service web is down" {
		t.Errorf("fault %q", f)
	}
	b.paused = true
	w.run(time.Minute)
	w.expect("a fault is no master, even alone", Fault)
	a.do(track(0, true))
	w.until(a, Master, 5*time.Second)

	a.do(track(50, true))
	if p := a.status("VI").InForce; p != 150 {
		t.Errorf("priority %d with a positive weight", p)
	}
	a.do(track(-253, false))
	if p := a.status("VI").InForce; p != 1 {
		t.Errorf("least priority %d", p)
	}
	a.do(track(253, true))
	if p := a.status("VI").InForce; p != 254 {
		t.Errorf("largest priority %d", p)
	}
}

// TestUnknownTrack: a reload that adds something to depend on gives up no role before it is known to be down. A start
// takes no role from another master before it is known to be up.
func TestUnknownTrack(t *testing.T) {
	w := newWorld(t)
	a := w.add(1, vi(200))
	w.until(a, Master, time.Minute)
	track := func(n *node, track Track) {
		track.Name = "gateway 10.0.0.254"
		n.do(func(now Moment) { n.SetTracks(now, map[string][]Track{"VI": {track}}) })
	}
	track(a, Track{Up: true, Unknown: true})
	w.run(10 * time.Second)
	w.expect("not known at the master", Master)
	track(a, Track{Up: true})
	if len(a.log) != 2 {
		t.Errorf("log %q", a.log)
	}

	b := w.add(2)
	track(b, Track{Up: true, Unknown: true})
	b.do(func(now Moment) { b.Set(now, []Instance{vi(220)}) })
	w.run(time.Minute)
	w.expect("not known at the better one", Master, Backup)
	track(b, Track{})
	w.expect("down", Master, Fault)
	track(b, Track{Up: true, Unknown: true})
	w.run(time.Minute)
	w.expect("not known again", Master, Backup)
	track(b, Track{Up: true})
	w.until(b, Master, 5*time.Second)
	track(a, Track{Up: true, Unknown: true})
	b.paused = true
	w.until(a, Master, 5*time.Second) // there is none
}

func TestDevice(t *testing.T) {
	w := newWorld(t)
	a, b := w.add(1, vi(100)), w.add(2, vi(90))
	w.run(10 * time.Second)
	a.setDevices(1, false, true)
	w.expect("no link", Fault)
	w.until(b, Master, time.Second)
	a.setDevices(1, true, true)
	w.run(10 * time.Second)
	w.expect("link", Master, Backup)
	a.SetDevices(a.moment(), nil)
	w.expect("no device", Fault)
	a.SetDevices(a.moment(), []Device{{Name: "eth0", Index: 1, Running: true}})
	w.expect("no address", Fault)
}

// TestSource: packets come from the configured address, and from no other one, and from no address that follows the
// role.
func TestSource(t *testing.T) {
	at := netip.MustParseAddr
	d := Device{Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.80/24"), netip.MustParsePrefix("10.0.0.81/24"),
		netip.MustParsePrefix("10.0.0.1/24"), netip.MustParsePrefix("10.0.0.2/24"),
		netip.MustParsePrefix("2001:db8::1/64"), netip.MustParsePrefix("fe80::1/64")}}
	moving := map[netip.Addr]bool{at("10.0.0.80"): true, at("10.0.0.81"): true}
	for _, c := range []struct{ source, to, want string }{
		{"", "224.0.0.18", "10.0.0.1"},
		{"", "10.0.0.9", "10.0.0.1"},
		{"10.0.0.2", "224.0.0.18", "10.0.0.2"},
		{"10.0.0.2", "10.0.0.9", "10.0.0.2"},
		{"10.0.0.2", "192.0.2.1", "10.0.0.2"},
		{"10.0.0.7", "10.0.0.9", ""},
		{"2001:db8::1", "2001:db8:9::1", "2001:db8::1"},
		{"fe80::1", "ff02::12", "fe80::1"},
		{"2001:db8::1", "ff02::12", ""},
	} {
		var i Instance
		if c.source != "" {
			i.Source = at(c.source)
		}
		if got := d.source(&i, at(c.to), moving); got.IsValid() != (c.want != "") || c.want != "" && got != at(c.want) {
			t.Errorf("from %q to %s: %v, want %q", c.source, c.to, got, c.want)
		}
	}
}

// TestSourceOfOthers: no instance sends from an address of another one. The former owner would refuse the packets as
// its own, and peers refuse those from an address that is not in their list.
func TestSourceOfOthers(t *testing.T) {
	w := newWorld(t)
	a := w.add(1)
	at := netip.MustParsePrefix
	a.SetDevices(a.moment(), []Device{{Name: "eth0", Index: 1, Running: true, Addrs: []netip.Prefix{
		at("2001:db8::10/64"), at("2001:db8::1/64"), at("fe80::80/64"), at("fe80::1/64")}}})
	owner := vi(100, func(i *Instance) { i.Addrs, i.Excluded = addrs("fe80::80"), addrs("2001:db8::10") })
	group := vi(100, func(i *Instance) { i.Name, i.RouterID, i.Addrs = "group", 52, addrs("fe80::90") })
	peers := vi(100, func(i *Instance) {
		i.Name, i.RouterID, i.Addrs, i.Peers = "peers", 53, addrs("2001:db8::81"), addrs("2001:db8::2")
	})
	a.do(func(now Moment) { a.Set(now, []Instance{owner, group, peers}) })
	w.run(10 * time.Second)
	want := map[string]string{"VI": "fe80::1", "group": "fe80::1", "peers": "2001:db8::1"}
	for _, p := range w.heard {
		if p.Src.String() != want[p.Instance] {
			t.Fatalf("%s sends from %v, want %s", p.Instance, p.Src, want[p.Instance])
		}
	}
	if len(w.heard) < 3*len(want) {
		t.Errorf("%d packets", len(w.heard))
	}
}

// TestExcluded: excluded addresses follow the role, and are in no advertisement: a router that does not have them finds
// no difference.
func TestExcluded(t *testing.T) {
	w := newWorld(t)
	excluded := addrs("10.0.0.81", "2001:db8::81")
	a := w.add(1, vi(100, func(i *Instance) { i.Excluded = excluded }))
	b := w.add(2, vi(90))
	w.until(a, Master, time.Minute)
	if want := append(addrs("10.0.0.80"), excluded...); !slices.Equal(a.moved, want) {
		t.Errorf("%v follow the role, want %v", a.moved, want)
	}
	w.run(10 * time.Second)
	if n := b.all[0].counts.Differing; n != 0 || b.all[0].counts.Received == 0 {
		t.Errorf("%d advertisements differ, of %d", n, b.all[0].counts.Received)
	}
}
