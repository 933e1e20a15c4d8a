package vrrp

import (
	"slices"
	"testing"
	"time"
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

// TestTwoOwners checks that two routers with the priority of an owner do not take the role from each other without end.
func TestTwoOwners(t *testing.T) {
	w := newWorld(t)
	a, b := w.add(1, vi(Owner)), w.add(2, vi(Owner))
	w.run(time.Minute)
	w.expect("the higher address wins", Backup, Master)
	if a.status("VI").Counts.Elected > 1 || b.status("VI").Counts.Elected > 1 {
		t.Errorf("%q, %q", a.log, b.log)
	}
	b.do(b.Stop)
	w.until(a, Master, time.Second)
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
