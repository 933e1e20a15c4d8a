package vrrp

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func near(t *testing.T, what string, got, want time.Duration) {
	t.Helper()
	if got < want-2*delay || got > want+2*delay {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// TestTakeover checks the times of RFC 9568, section 6.1, and RFC 3768, section 6.1.
func TestTakeover(t *testing.T) {
	for _, c := range []struct {
		name            string
		change          func(*Instance)
		start, dead, up time.Duration // until the backup is master: at the start, after a crash, after a stop
	}{
		{"version 3, 1 s", every(time.Second), 3*time.Second + 156*time.Second/256, 3*time.Second + 156*time.Second/256,
			156 * time.Second / 256},
		{"version 3, 100 ms", every(100 * time.Millisecond), 300*time.Millisecond + 15600*time.Millisecond/256,
			300*time.Millisecond + 15600*time.Millisecond/256, 15600 * time.Millisecond / 256},
		{"version 2, 2 s", func(i *Instance) { version2(i); i.Interval = 2 * time.Second },
			6*time.Second + 156*time.Second/256, 6*time.Second + 156*time.Second/256, 156 * time.Second / 256},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			b := w.add(1, vi(100, c.change))
			near(t, "start", w.until(b, Master, time.Minute), c.start)

			a := w.add(2, vi(101, c.change))
			w.until(a, Master, time.Minute)
			w.run(delay)
			w.expect("preempted", Backup, Master)

			w.run(10 * time.Second)
			a.do(a.Stop)
			near(t, "after a stop", w.until(b, Master, time.Minute), c.up+delay)

			a.Election = &Election{}
			a.setDevices(2, true, true)
			a.do(func(now Moment) { a.Set(now, []Instance{vi(101, c.change)}) })
			w.until(a, Master, time.Minute)
			w.run(2 * delay)
			a.paused = true // for ever
			took := w.until(b, Master, time.Minute)
			near(t, "after a crash", took, c.dead)
		})
	}
}

func TestEqualPriority(t *testing.T) {
	w := newWorld(t)
	w.add(1, vi(100))
	w.add(9, vi(100))
	w.run(10 * time.Second)
	w.expect("both started at once: the higher address wins", Backup, Master)
	w.add(200, vi(100))
	w.run(time.Minute)
	w.expect("a master keeps its role", Backup, Master, Backup)
}

func TestOwner(t *testing.T) {
	w := newWorld(t)
	b := w.add(1, vi(254))
	w.until(b, Master, time.Minute)
	a := w.add(2, vi(Owner, nopreempt))
	if took := w.until(a, Master, time.Minute); took > delay {
		t.Errorf("the owner waited for %v", took)
	}
	w.run(2 * delay)
	w.expect("owner", Backup, Master)
}

func TestNoPreempt(t *testing.T) {
	w := newWorld(t)
	w.until(w.add(1, vi(100)), Master, time.Minute)
	a := w.add(2, vi(200, nopreempt))
	w.run(time.Minute)
	w.expect("no preempt", Master, Backup)
	w.nodes[0].do(w.nodes[0].Stop)
	w.until(a, Master, time.Second)
}

func TestPreemptDelay(t *testing.T) {
	w := newWorld(t)
	w.until(w.add(1, vi(100)), Master, time.Minute)
	a := w.add(2, vi(200, func(i *Instance) { i.PreemptDelay = 20 * time.Second }))
	w.run(20 * time.Second)
	w.expect("in the delay", Master, Backup)
	w.until(a, Master, 6*time.Second)
	// A master that ends is followed at once.
	w.nodes[0].do(w.nodes[0].Activate)
	w.run(5 * time.Second)
	w.nodes[1].do(w.nodes[1].Stop)
	w.until(w.nodes[0], Master, time.Second)
}

// TestLearnedInterval checks that a backup of version 3 waits by the master's interval: RFC 9568, section 6.4.2.
func TestLearnedInterval(t *testing.T) {
	w := newWorld(t)
	a := w.add(1, vi(200, every(3*time.Second)))
	b := w.add(2, vi(100, every(100*time.Millisecond)))
	w.until(a, Master, time.Minute)
	w.run(time.Minute)
	w.expect("the quick one waits", Master, Backup)
	if b.all[0].counts.Elected > 1 {
		t.Errorf("the backup was master %d times", b.all[0].counts.Elected)
	}
	a.paused = true
	took := w.until(b, Master, time.Minute)
	if took < 6*time.Second || took > 12*time.Second {
		t.Errorf("takeover after %v", took)
	}
}

// TestMasterAnswers checks that a master answers a lower priority at once (RFC 9568, section 6.4.3), so that a healed
// link has one master.
func TestMasterAnswers(t *testing.T) {
	w := newWorld(t)
	a, b := w.add(1, vi(200)), w.add(2, vi(100))
	cut := true
	w.lossy = func(_, _ *node, _ Packet) bool { return cut }
	w.run(10 * time.Second)
	w.expect("cut", Master, Master)
	cut = false
	w.run(1100 * time.Millisecond)
	w.expect("healed", Master, Backup)
	if !slices.Contains(a.log, "VI reannounce 10.0.0.2") {
		t.Errorf("the master does not announce again: %q", a.log)
	}
	if s := b.status("VI"); s.Rival.IsValid() {
		t.Errorf("the backup still has a rival: %v", s.Rival)
	}
}

// TestTwoMasters checks that a router that stays master is found, and that it ends.
func TestTwoMasters(t *testing.T) {
	w := newWorld(t)
	a := w.add(1, vi(100, version2, func(i *Instance) { i.Password = "right" }))
	b := w.add(2, vi(200, version2, func(i *Instance) { i.Password = "wrong" }))
	w.run(10 * time.Second)
	w.expect("each ignores the other", Master, Master)
	s := a.status("VI")
	if s.Rival != addr("10.0.0.2") || s.RivalRefused != BadPassword || s.Counts.Conflicts != 1 ||
		s.Counts.Refused[BadPassword] == 0 {
		t.Errorf("%+v", s)
	}
	if !slices.Contains(a.log, "VI two masters 10.0.0.2") || !slices.Contains(a.log, "VI ignored 10.0.0.2") {
		t.Errorf("log %q", a.log)
	}
	b.do(b.Stop)
	w.run(5 * time.Second)
	if s := a.status("VI"); s.Rival.IsValid() || !slices.Contains(a.log, "VI one master 10.0.0.2") {
		t.Errorf("rival %v, log %q", s.Rival, a.log)
	}
	w.expect("the other has ended", Master, Initialize)
}

// TestHandoverIsNoConflict checks that ordinary changes of the master report no second one.
func TestHandoverIsNoConflict(t *testing.T) {
	w := newWorld(t)
	a, b := w.add(1, vi(200)), w.add(2, vi(100))
	w.run(10 * time.Second)
	for range 20 {
		a.do(a.Standby)
		w.run(7 * time.Second)
		w.expect("standby", Backup, Master)
		a.do(a.Activate)
		w.run(7 * time.Second)
		w.expect("active", Master, Backup)
	}
	for _, n := range []*node{a, b} {
		if s := n.status("VI"); s.Counts.Conflicts > 0 || s.Rival.IsValid() {
			t.Errorf("%s: %+v", n.name, s)
		}
	}
}

func TestStandby(t *testing.T) {
	w := newWorld(t)
	a, b := w.add(1, vi(200)), w.add(2, vi(100))
	w.run(10 * time.Second)
	a.do(a.Standby)
	if took := w.until(b, Master, time.Second); took > 156*time.Second/256+2*delay {
		t.Errorf("the peer waited for %v", took)
	}
	w.run(time.Minute)
	w.expect("standby lasts", Backup, Master)

	b.do(b.Stop)
	w.until(a, Master, 5*time.Second) // no other master is heard
	if p := a.status("VI").InForce; p != 1 {
		t.Errorf("a master in standby has priority %d", p)
	}

	b.Election = &Election{}
	b.setDevices(2, true, true)
	b.do(func(now Moment) { b.Set(now, []Instance{vi(100)}) })
	w.run(10 * time.Second)
	w.expect("the peer is back", Backup, Master)
	a.do(a.Activate)
	w.until(a, Master, 5*time.Second)
}

// TestActivateForces checks that Activate takes the role from a lower priority also without Preempt.
func TestActivateForces(t *testing.T) {
	w := newWorld(t)
	a, b := w.add(1, vi(200, nopreempt)), w.add(2, vi(100, nopreempt))
	w.run(10 * time.Second)
	a.do(a.Standby)
	w.until(b, Master, time.Second)
	b.do(b.Activate)
	w.run(time.Minute)
	w.expect("before", Backup, Master)
	a.do(a.Activate)
	w.until(a, Master, 5*time.Second)
	w.run(time.Minute)
	w.expect("after", Master, Backup)
}

// TestHeld checks that a director without its peer's connections does not take the role from the peer.
func TestHeld(t *testing.T) {
	for _, priority := range []uint8{200, Owner} {
		w := newWorld(t)
		b := w.add(1, vi(100))
		w.until(b, Master, time.Minute)
		a := w.add(2)
		a.SetHeld(true)
		a.do(func(now Moment) { a.Set(now, []Instance{vi(priority)}) })
		w.run(time.Minute)
		w.expect("held", Master, Backup)
		a.SetHeld(false)
		w.until(a, Master, 5*time.Second)

		a.SetHeld(true)
		w.run(time.Minute)
		w.expect("a master keeps its role", Backup, Master)
		b.SetHeld(true)
		a.paused = true
		w.until(b, Master, 5*time.Second) // there is none
	}
}

// TestPause checks that a paused master steps back: another one may be there. Its timer or a packet that has waited may
// come first.
func TestPause(t *testing.T) {
	for _, timerFirst := range []bool{true, false} {
		for _, preempt := range []bool{true, false} {
			w := newWorld(t)
			change := func(i *Instance) { i.Preempt = preempt }
			a, b := w.add(1, vi(200, change)), w.add(2, vi(100, change))
			w.run(10 * time.Second)
			a.paused = true
			w.run(20 * time.Second)
			w.expect("paused", Master, Master)
			sent := a.claims()
			a.resume(timerFirst)
			w.expect("resumed", Backup, Master)
			if a.claims() != sent {
				t.Error("it has sent an advertisement")
			}
			w.run(10 * time.Second)
			if !slices.Contains(b.log, "VI reannounce 10.0.0.1") {
				t.Errorf("the new master does not announce again: %q", b.log)
			}
			if preempt {
				w.expect("it takes the role back by the rules", Master, Backup)
			} else {
				w.expect("the new master stays", Backup, Master)
			}
			if n := b.status("VI").Counts.Conflicts + a.status("VI").Counts.Conflicts; n > 0 {
				t.Errorf("two masters were found %d times", n)
			}
		}
	}
}

// TestPauseAlone checks that a paused master without peers is back soon.
func TestPauseAlone(t *testing.T) {
	w := newWorld(t)
	a := w.add(1, vi(200))
	w.until(a, Master, time.Minute)
	a.paused = true
	w.run(time.Minute)
	a.resume(true)
	w.expect("resumed", Backup)
	near(t, "master again", w.until(a, Master, time.Minute), time.Second+56*time.Second/256)
	// A delay of two intervals is none.
	a.paused = true
	w.run(2 * time.Second)
	a.resume(true)
	w.expect("a short pause", Master)
}

// TestShortPause checks a pause in which a backup may have taken the role, or not: the role stays if no other master is
// heard, and no second one is made.
func TestShortPause(t *testing.T) {
	for _, timerFirst := range []bool{true, false} {
		w := newWorld(t)
		a := w.add(1, vi(200))
		w.until(a, Master, time.Minute)
		a.paused = true
		w.run(5 * time.Second)
		a.resume(timerFirst)
		w.expect("alone", Master)
		w.run(time.Minute)
		if len(a.log) != 2 || a.all[0].counts.Paused != 1 {
			t.Errorf("log %q, counts %+v", a.log, a.all[0].counts)
		}

		b := w.add(2, vi(100))
		w.run(10 * time.Second)
		w.expect("both", Master, Backup)
		a.paused = true
		w.run(5500 * time.Millisecond)
		w.expect("paused", Master, Master)
		sent := a.claims()
		a.resume(timerFirst)
		w.run(time.Second + delay)
		w.expect("another master is heard", Backup, Master)
		if a.claims() != sent {
			t.Error("it has sent an advertisement")
		}
		w.run(10 * time.Second)
		w.expect("by the rules", Master, Backup)
		if n := b.status("VI").Counts.Conflicts + a.status("VI").Counts.Conflicts; n > 0 {
			t.Errorf("two masters were found %d times", n)
		}
	}
}

// TestPausedBackup checks that a paused backup does not take the role from the master whose packets wait.
func TestPausedBackup(t *testing.T) {
	for _, timerFirst := range []bool{true, false} {
		w := newWorld(t)
		w.until(w.add(1, vi(200)), Master, time.Minute)
		b := w.add(2, vi(100))
		w.run(10 * time.Second)
		b.paused = true
		w.run(time.Minute)
		b.resume(timerFirst)
		w.run(10 * time.Second)
		w.expect("resumed", Master, Backup)
		if n := b.all[0].counts.Elected; n != 0 {
			t.Errorf("it was master %d times", n)
		}
		// With a dead master it still takes over.
		w.nodes[0].paused = true
		b.paused = true
		w.run(time.Minute)
		b.resume(timerFirst)
		w.until(b, Master, 5*time.Second)
	}
}

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

// grouped returns two instances of a group, at eth0 and eth1.
func grouped(p0, p1 uint8) []Instance {
	in := func(i *Instance) { i.Group, i.Name = "G", "outside" }
	return []Instance{vi(p0, in), vi(p1, in, func(i *Instance) {
		i.Name, i.Device, i.RouterID, i.Addrs = "inside", "eth1", 52, addrs("10.0.1.80")
	})}
}

func TestGroup(t *testing.T) {
	w := newWorld(t)
	a, b := w.add(1, grouped(200, 200)...), w.add(2, grouped(100, 100)...)
	w.run(10 * time.Second)
	w.expect("start", Master, Backup)

	a.setDevices(1, true, false)
	w.run(2 * time.Second)
	w.expect("one link is down: the whole group changes", Fault, Master)
	a.setDevices(1, true, true)
	w.run(10 * time.Second)
	w.expect("both come back", Master, Backup)

	b.setDevices(2, false, true)
	a.setDevices(1, false, true)
	w.run(10 * time.Second)
	w.expect("neither is whole", Fault, Fault)
	b.setDevices(2, true, true)
	w.run(10 * time.Second)
	w.expect("one is whole", Fault, Master)
	a.setDevices(1, true, true)
	w.run(10 * time.Second)
	w.expect("both are", Master, Backup)

	// A backup that hears the master on one link only leaves it the role on both.
	w.lossy = func(_, _ *node, p Packet) bool { return p.Device == 2 }
	w.run(time.Minute)
	w.expect("one link loses all", Master, Backup)
	a.paused = true
	w.run(5 * time.Second)
	w.expect("the master is dead", Master, Master)
	w.lossy = nil
	a.resume(true)
	w.run(10 * time.Second)
	w.expect("it is back", Master, Backup)

	a.do(a.Stop)
	w.run(time.Second)
	w.expect("stopped", Initialize, Master)
}

// TestGroupOfDifferentPriorities checks that a group has one master even if each router has the higher priority in one
// instance.
func TestGroupOfDifferentPriorities(t *testing.T) {
	w := newWorld(t)
	a, b := w.add(1, grouped(200, 90)...), w.add(2, grouped(100, 100)...)
	w.run(time.Minute)
	masters := 0
	for _, n := range []*node{a, b} {
		if r := n.Roles(); r["inside"] != r["outside"] {
			t.Errorf("%s: %v", n.name, r)
		} else if r["inside"] == Master {
			masters++
		}
	}
	if masters != 1 {
		t.Errorf("%d masters: %q %q", masters, a.log, b.log)
	}
}

// TestReload checks that new configurations switch no roles, and that peers learn of them at once.
func TestReload(t *testing.T) {
	w := newWorld(t)
	a, b := w.add(1, vi(200, every(100*time.Millisecond))), w.add(2, vi(100, every(100*time.Millisecond)))
	w.run(10 * time.Second)
	for n := range 100 {
		i := vi(200+uint8(n%2), every(100*time.Millisecond), func(i *Instance) { i.Addrs = addrs("10.0.0.80") })
		a.do(func(now Moment) { a.Set(now, []Instance{i}) })
		b.do(func(now Moment) { b.Set(now, []Instance{vi(100, every(100*time.Millisecond))}) })
		w.run(30 * time.Millisecond)
	}
	w.expect("after 100 reloads", Master, Backup)
	for _, n := range []*node{a, b} {
		if n.status("VI").Counts.Elected > 1 || len(n.log) > 2 {
			t.Errorf("%s: %q", n.name, n.log)
		}
	}
	sent := a.all[0].counts.Sent
	a.do(func(now Moment) { a.Set(now, []Instance{vi(202, every(100*time.Millisecond))}) })
	if a.all[0].counts.Sent != sent+1 {
		t.Error("the changed priority was not sent at once")
	}
	a.do(func(now Moment) { a.Set(now, nil) })
	w.until(b, Master, time.Second)
	if w.heard[len(w.heard)-1].Payload[2] == 0 {
		t.Error("the last packet is the removed instance's")
	}
	if len(a.Roles()) != 0 {
		t.Errorf("roles %v", a.Roles())
	}
}

func TestRefusals(t *testing.T) {
	base := vi(100)
	unicast := vi(100, func(i *Instance) { i.Peers = addrs("10.0.0.2") })
	secret := vi(100, version2, func(i *Instance) { i.Password = "secret12345" })
	signed := vi(100, func(i *Instance) { i.Key = &testKey })
	six := vi(100, func(i *Instance) { i.Addrs = addrs("fe80::80") })
	send := func(change ...func(*Instance)) Instance { return vi(250, change...) }
	password := func(p string) func(*Instance) { return func(i *Instance) { version2(i); i.Password = p } }
	for _, c := range []struct {
		name string
		at   Instance
		of   Instance
		to   string // "": the group
		ttl  int
		want Refusal
	}{
		{"good", base, send(), "", 255, Accepted},
		{"ttl", base, send(), "", 254, BadTTL},
		{"another router id", base, send(func(i *Instance) { i.RouterID = 52 }), "", 255, NoInstance},
		{"another version", base, send(version2), "", 255, BadVersion},
		{"unicast to a multicast instance", base, send(), "10.0.0.1", 255, BadCast},
		{"multicast to a unicast instance", unicast, send(), "", 255, BadCast},
		{"from a peer", unicast, send(), "10.0.0.1", 64, Accepted},
		{"another interval", secret, send(password("secret12"), every(2*time.Second)), "", 255, BadInterval},
		{"the first 8 characters count", secret, send(password("secret12")), "", 255, Accepted},
		{"another password", secret, send(password("secret1")), "", 255, BadPassword},
		{"no password", secret, send(version2), "", 255, BadAuthType},
		{"no trailer", signed, send(), "", 255, NoTrailer},
		{"a trailer", signed, send(func(i *Instance) { i.Key = &testKey }), "", 255, Accepted},
		{"a trailer without a key", base, send(func(i *Instance) { i.Key = &testKey }), "", 255, Accepted},
		{"another family", base, send(func(i *Instance) { i.Addrs = addrs("fe80::80") }), "", 255, NoInstance},
		{"IPv6", six, send(func(i *Instance) { i.Addrs = addrs("fe80::80") }), "", 255, Accepted},
		{"other addresses", base, send(func(i *Instance) { i.Addrs = addrs("10.0.0.81") }), "", 255, Accepted},
		{"RFC 9568's checksum", base, send(func(i *Instance) { i.Checksum = RFC9568 }), "", 255, Accepted},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			a := w.add(1, c.at)
			b := w.add(2)
			w.lossy = func(_, _ *node, _ Packet) bool { return true }
			c.of.Priority = Owner
			if c.to != "" {
				c.of.Peers = addrs(c.to)
			}
			b.do(func(now Moment) { b.Set(now, []Instance{c.of}) })
			w.run(2 * delay)
			at := slices.IndexFunc(w.heard, func(p Packet) bool { return p.Payload[2] == Owner })
			if at < 0 {
				t.Fatal("nothing sent")
			}
			p := w.heard[at]
			p.TTL = c.ttl
			if r := a.Receive(a.moment(), p); r != c.want {
				t.Errorf("%q, want %q", r, c.want)
			}
			s := a.status("VI")
			if want := uint64(0); c.want != Accepted && c.want != NoInstance {
				if want++; s.Counts.Refused[c.want] != want || s.Counts.Received != 0 {
					t.Errorf("counts %+v", s.Counts)
				}
			}
			if c.want == Accepted && s.Counts.Received != 1 {
				t.Errorf("counts %+v", s.Counts)
			}
		})
	}
}

// TestUnknownPeer checks that a unicast instance hears its peers alone, by whatever device.
func TestUnknownPeer(t *testing.T) {
	w := newWorld(t)
	a := w.add(1, vi(100, func(i *Instance) { i.Peers = addrs("10.0.0.2") }))
	other := Advert{Version: 3, RouterID: 51, Priority: 250, Interval: time.Second, Addrs: addrs("10.0.0.80")}
	packet := func(src string, device int) Packet {
		from, to := addr(src), addr("10.0.0.1")
		return Packet{Device: device, Src: from, Dst: to, TTL: 64, Payload: other.Append(nil, from, to, RFC5798)}
	}
	for _, c := range []struct {
		src    string
		device int
		want   Refusal
	}{{"10.0.0.3", 1, BadSource}, {"10.0.0.2", 1, Accepted}, {"10.0.0.2", 2, Accepted}, {"10.0.0.1", 1, BadSource},
		{"10.0.0.3", 2, NoInstance}} {
		if r := a.Receive(a.moment(), packet(c.src, c.device)); r != c.want {
			t.Errorf("%s by %d: %v, want %v", c.src, c.device, r, c.want)
		}
	}
}

// TestOtherNetwork: no packet from another network makes a second master, or pushes peers out.
func TestOtherNetwork(t *testing.T) {
	src, dst := addr("203.0.113.9"), addr("10.0.0.1")
	for _, c := range []struct {
		version uint8
		change  func(*Instance)
		want    Refusal
	}{
		{Version3, func(*Instance) {}, BadCast},
		{Version2, func(*Instance) {}, BadVersion},
		{Version2, func(i *Instance) { i.Peers = addrs("10.0.0.2") }, BadSource},
	} {
		w := newWorld(t)
		a := w.add(1, vi(100, c.change))
		w.until(a, Master, time.Minute)
		other := Advert{Version: c.version, RouterID: 51, Priority: 250, Interval: time.Second,
			Addrs: addrs("10.0.0.80")}
		p := Packet{Device: 1, Src: src, Dst: dst, TTL: 49, Payload: other.Append(nil, src, dst, RFC5798)}
		for range 3 {
			if r := a.Receive(a.moment(), p); r != c.want {
				t.Errorf("%v, want %v", r, c.want)
			}
			w.run(2 * time.Second)
		}
		if s := a.status("VI"); s.Counts.Conflicts != 0 || len(s.Peers) != 0 || s.Counts.Refused[c.want] != 3 {
			t.Errorf("%v: %+v", c.want, s)
		}
		if len(a.log) != 2 {
			t.Errorf("%v: log %q", c.want, a.log)
		}
	}
}

// TestManySenders checks that a flood from many addresses neither fills the memory nor the log.
func TestManySenders(t *testing.T) {
	w := newWorld(t)
	a := w.add(1, vi(100))
	for n := range 5000 {
		src := netip.AddrFrom4([4]byte{10, 0, byte(2 + n>>8), byte(n)})
		other := Advert{Version: 2, RouterID: 51, Priority: 250, Interval: time.Second}
		p := Packet{Device: 1, Src: src, Dst: group4, TTL: ttl, Payload: other.Append(nil, src, group4, RFC5798)}
		if r := a.Receive(a.moment(), p); r != BadVersion {
			t.Fatal(r)
		}
		w.collect(a)
		w.now += delay
	}
	if n := len(a.all[0].peers); n > maxPeers {
		t.Errorf("%d routers are remembered", n)
	}
	if n := len(a.log); n > 30 {
		t.Errorf("%d events", n)
	}
	if s := a.status("VI"); s.Counts.Refused[BadVersion] != 5000 {
		t.Errorf("counts %+v", s.Counts)
	}
}

// TestSigned checks that routers with a key elect a master, and that a clock that runs away is found.
func TestSigned(t *testing.T) {
	w := newWorld(t)
	key := func(i *Instance) { i.Key = &testKey }
	a, b := w.add(1, vi(200, key)), w.add(2, vi(100, key))
	w.run(10 * time.Second)
	w.expect("signed", Master, Backup)
	for n := range w.heard {
		if r := b.Receive(b.moment(), w.heard[n]); r != Replayed && r != Stale && r != BadSource {
			t.Fatalf("a replayed packet: %v", r)
		}
	}
	b.skewWall = time.Minute
	w.run(10 * time.Second)
	w.expect("another clock", Master, Master)
	if s := a.status("VI"); s.RivalRefused != Stale {
		t.Errorf("%+v", s)
	}
}

// TestKeys: directors get their keys one after the other, in either order, without a change of roles.
func TestKeys(t *testing.T) {
	for _, masterFirst := range []bool{true, false} {
		w := newWorld(t)
		a, b := w.add(1, vi(200)), w.add(2, vi(100))
		w.run(10 * time.Second)
		permissive := testKey
		permissive.Permissive = true
		for _, key := range []*Key{&permissive, &testKey} {
			order := []*node{a, b}
			if !masterFirst {
				order = []*node{b, a}
			}
			for _, n := range order {
				i := n.all[0].Instance
				i.Key = key
				n.do(func(now Moment) { n.Set(now, []Instance{i}) })
				w.run(10 * time.Second)
				w.expect("a key", Master, Backup)
			}
		}
		if len(a.log) != 2 || len(b.log) != 1 {
			t.Errorf("logs %q, %q", a.log, b.log)
		}
	}
}

// TestAnswersPriority0: a master answers each router that gives its role up at once, so that no backup takes the role.
func TestAnswersPriority0(t *testing.T) {
	w := newWorld(t)
	a := w.add(1, vi(100))
	w.until(a, Master, time.Minute)
	sent := a.all[0].counts.Sent
	for n := range 3 {
		a.deliver(advertFrom(byte(2+n), 0))
		w.run(10 * delay)
	}
	if n := a.all[0].counts.Sent - sent; n != 3 {
		t.Errorf("%d answers", n)
	}
}

// advertFrom returns a packet of the router 10.0.0.number for VI.
func advertFrom(number byte, priority uint8, addresses ...string) Packet {
	if len(addresses) == 0 {
		addresses = []string{"10.0.0.80"}
	}
	a := Advert{Version: 3, RouterID: 51, Priority: priority, Interval: time.Second, Addrs: addrs(addresses...)}
	src := netip.AddrFrom4([4]byte{10, 0, 0, number})
	return Packet{Device: 1, Src: src, Dst: group4, TTL: ttl, Payload: a.Append(nil, src, group4, RFC5798)}
}

// TestSeveralMasters: other masters that take turns, and one that is heard rarely since its addresses differ, are
// found. A router that has given way is none.
func TestSeveralMasters(t *testing.T) {
	for _, c := range []struct {
		name  string
		every time.Duration
		from  []Packet
		want  uint64
	}{
		{"two in turn", 500 * time.Millisecond, []Packet{advertFrom(2, 50), advertFrom(3, 50)}, 1},
		{"other addresses", 10 * time.Second, []Packet{advertFrom(2, 50, "10.0.0.80", "10.0.0.81")}, 1},
		{"rarely", 10 * time.Second, []Packet{advertFrom(2, 50)}, 0},
		{"gives way", 600 * time.Millisecond, []Packet{advertFrom(2, 50), advertFrom(3, 0), advertFrom(2, 0),
			advertFrom(3, 50), advertFrom(3, 0)}, 0},
	} {
		w := newWorld(t)
		a := w.add(1, vi(100))
		w.until(a, Master, time.Minute)
		for n := range 10 {
			a.deliver(c.from[n%len(c.from)])
			w.run(c.every)
		}
		if n := a.status("VI").Counts.Conflicts; n != c.want {
			t.Errorf("%s: two masters are found %d times, want %d", c.name, n, c.want)
		}
	}
}

// TestDiffersLater: other addresses are reported later, if something else has just been reported.
func TestDiffersLater(t *testing.T) {
	w := newWorld(t)
	a := w.add(1, vi(100))
	a.deliver(advertFrom(2, 200, "10.0.0.81"))
	a.deliver(advertFrom(3, 200, "10.0.0.81"))
	w.run(time.Second)
	a.deliver(advertFrom(3, 200, "10.0.0.81"))
	a.deliver(advertFrom(3, 200, "10.0.0.81"))
	want := []string{"VI initialize→backup", "VI differs 10.0.0.2", "VI differs 10.0.0.3"}
	if !slices.Equal(a.log, want) {
		t.Errorf("log %q", a.log)
	}
}

// TestSendErrors: an error to one of several peers is not hidden by another one's success.
func TestSendErrors(t *testing.T) {
	w := newWorld(t)
	a := w.add(1, vi(100, func(i *Instance) { i.Peers = addrs("10.0.0.2", "10.0.0.3") }))
	for _, c := range []struct{ first, second, want error }{{unix.EPERM, nil, unix.EPERM},
		{nil, unix.EPERM, unix.EPERM}, {nil, nil, nil}} {
		a.send(a.all[0], a.moment(), 100)
		a.sent("VI", c.first)
		a.sent("VI", c.second)
		if got := a.status("VI").SendError; got != c.want {
			t.Errorf("%v, want %v", got, c.want)
		}
	}
}
