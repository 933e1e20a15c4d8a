package vrrp

import (
	"net/netip"
	"slices"
	"time"
)

// Election is the state of all instances of this host. Its methods must not be called at the same time.
//
//	               no other master is heard
//	            ┌──────────────────────────────┐
//	Initialize ─┴► Backup ◄────────────────► Master
//	                 ▲    a better master         │
//	                 │                            │
//	                 └────────► Fault ◄───────────┘
//	                   what it depends on is down
//
// Packets to send and events are collected; Take returns them.
type Election struct {
	all     []*instance // in the order of Set
	devices []Device
	tracks  map[string][]Track  // by instance
	moving  map[netip.Addr]bool // the addresses of all instances
	held    bool
	standby bool
	stopped bool
	unknown uint64 // packets for no instance
	packets []Packet
	events  []Event
}

// Packet is an IP packet of the protocol.
type Packet struct {
	Device   int // index
	Src, Dst netip.Addr
	TTL      int // of a received packet
	Payload  []byte
	Instance string // of a packet to send
}

// Role is the state of an instance.
type Role uint8

const (
	Initialize Role = iota // it does not take part
	Fault                  // something that it depends on is down
	Backup
	Master
)

// String returns the name of r in the status.
func (r Role) String() string { return [...]string{"initialize", "fault", "backup", "master"}[r] }

// EventKind says what has happened.
type EventKind uint8

const (
	RoleChanged EventKind = iota
	Reannounce            // another router may have announced the addresses: announce them again
	TwoMasters            // another router is master, too
	OneMaster             // not any more
	Differs               // a router of the instance has other addresses
	Ignored               // packets of a router of the instance are refused
)

// Event is something that has happened to an instance.
type Event struct {
	Kind     EventKind
	Instance string
	Old, New Role       // of RoleChanged
	Reason   string     // of RoleChanged
	Peer     netip.Addr // the other router, in all but RoleChanged
	Refusal  Refusal    // of TwoMasters and Ignored
	Addrs    []netip.Addr
}

// Take returns the packets to send, and the events, since the last call.
func (e *Election) Take() (packets []Packet, events []Event) {
	packets, events = e.packets, e.events
	e.packets, e.events = nil, nil
	return packets, events
}

// Set replaces the instances. An instance that stays keeps its role. If a master's configuration changes, its peers
// learn of that at once.
func (e *Election) Set(now Moment, all []Instance) {
	before := e.all
	e.all, e.moving = nil, map[netip.Addr]bool{}
	for n := range all {
		for _, a := range all[n].addresses() {
			e.moving[a] = true
		}
	}
	for n := range all {
		next := all[n]
		at := slices.IndexFunc(before, func(i *instance) bool { return i.same(&next) })
		if at < 0 {
			e.all = append(e.all, newInstance(e, next, now))
			continue
		}
		i := before[at]
		before = slices.Delete(slices.Clone(before), at, at+1)
		changed := !i.equal(&next)
		if i.Version == Version2 || i.role == Master || i.masterInterval == i.Interval {
			i.masterInterval = next.Interval
		}
		if i.Key != nil && (next.Key == nil || *next.Key != *i.Key) {
			clear(i.replays)
		}
		i.Instance = next
		e.all = append(e.all, i)
		if changed && i.role == Master {
			e.advertise(i, now)
		}
	}
	for _, i := range before {
		e.resign(i, now)
		e.change(i, now, Initialize, "it is not configured any more")
	}
	e.settle(now)
}

// SetDevices replaces the devices of this host.
func (e *Election) SetDevices(now Moment, all []Device) {
	e.devices = all
	e.settle(now)
}

// SetTracks replaces what the instances depend on, by their names.
func (e *Election) SetTracks(now Moment, tracks map[string][]Track) {
	e.tracks = tracks
	e.settle(now)
}

// SetHeld holds the instances back, or no longer: a held instance takes the role from no other master, but becomes
// master if there is none.
func (e *Election) SetHeld(held bool) { e.held = held }

// Standby gives the role up until Activate. The instances become master again only if no other master is heard, and
// give the role to each other router that wants it.
func (e *Election) Standby(now Moment) {
	e.standby = true
	for _, i := range e.all {
		i.forced = false
		if i.role == Master {
			e.resign(i, now)
			e.change(i, now, Backup, "standby")
		}
	}
}

// Activate ends a standby. The instances take the role, also without Preempt, from masters of a lower priority.
func (e *Election) Activate(now Moment) {
	e.standby = false
	for _, i := range e.all {
		i.forced = i.role != Master
		if i.role == Master {
			e.advertise(i, now)
		}
	}
	e.settle(now)
}

// Stop ends the election: the masters give the role up.
func (e *Election) Stop(now Moment) {
	e.stopped = true
	for _, i := range e.all {
		e.resign(i, now)
		e.change(i, now, Initialize, "stop")
	}
}

// Listen makes each backup wait for a master's advertisements from now on. Call it before the first Receive and Tick:
// packets that came in before it are unread.
func (e *Election) Listen(now Moment) {
	for _, i := range e.all {
		if i.role == Backup {
			i.await(now)
		}
	}
}

// settle applies the devices, tracks and groups.
func (e *Election) settle(now Moment) {
	if e.stopped {
		return
	}
	faults := map[string]string{} // by group
	for _, i := range e.all {
		i.device, i.fault = e.examine(i)
		if i.fault != "" && i.Group != "" && faults[i.Group] == "" {
			faults[i.Group] = i.Name + ": " + i.fault
		}
	}
	for _, i := range e.all {
		if i.fault == "" {
			i.fault = faults[i.Group]
		}
		switch {
		case i.fault != "" && i.role != Fault:
			e.resign(i, now)
			e.change(i, now, Fault, i.fault)
		case i.fault == "" && i.role <= Fault:
			reason := "start"
			if i.role == Fault {
				reason = "the fault is gone"
			}
			e.change(i, now, Backup, reason)
		}
	}
	for _, i := range e.all {
		if i.role == Backup && i.ready {
			e.promote(i, now)
		}
	}
}

// examine returns the device of an instance, and why the instance cannot take part.
func (e *Election) examine(i *instance) (d *Device, fault string) {
	at := slices.IndexFunc(e.devices, func(d Device) bool { return d.Name == i.Device })
	if at < 0 {
		return nil, "there is no device " + i.Device
	}
	d = &e.devices[at]
	if !d.Running {
		return d, i.Device + " has no link"
	}
	for _, to := range i.destinations() {
		if !d.source(&i.Instance, to, e.moving).IsValid() {
			return d, i.Device + " has no address to send from to " + to.String()
		}
	}
	for _, t := range e.tracks[i.Name] {
		if !t.Up && t.Weight == 0 {
			return d, t.Name + " is down"
		}
	}
	return d, ""
}

// members returns the instances of i's group, i among them.
func (e *Election) members(i *instance) []*instance {
	if i.Group == "" {
		return []*instance{i}
	}
	return slices.DeleteFunc(slices.Clone(e.all), func(o *instance) bool { return o.Group != i.Group })
}

// promote makes an instance that has heard no better master, and its group, the master, if all of the group have heard
// none.
func (e *Election) promote(i *instance, now Moment) {
	all := e.members(i)
	if slices.ContainsFunc(all, func(o *instance) bool { return o.role != Master && !(o.role == Backup && o.ready) }) {
		return
	}
	for _, o := range all {
		if o.role != Master {
			e.change(o, now, Master, i.reason)
		}
	}
}

// yield makes an instance, and its group, the backup of another master.
func (e *Election) yield(i *instance, now Moment, reason string) {
	for _, o := range e.members(i) {
		if o.role != Master {
			continue
		}
		if o != i {
			e.resign(o, now)
			e.change(o, now, Backup, i.Name+": "+reason)
			continue
		}
		e.change(o, now, Backup, reason)
	}
}

// sent takes note of the kernel's answer to a packet of an instance.
func (e *Election) sent(now Moment, name string, err error) {
	for _, i := range e.all {
		if i.Name != name {
			continue
		}
		if err != nil {
			i.sendErr, i.failedAt = err, now.Boot
			i.counts.Failed++
		}
	}
}

// Next returns when Tick is due. ok is false if it is never due.
func (e *Election) Next() (at time.Duration, ok bool) {
	for _, i := range e.all {
		if i.deadline != never && (!ok || i.deadline < at) {
			at, ok = i.deadline, true
		}
	}
	return at, ok
}

// Tick does what is due.
func (e *Election) Tick(now Moment) {
	for _, i := range e.all {
		if i.deadline == never || i.deadline > now.Boot {
			continue
		}
		if i.role == Master {
			e.tickMaster(i, now)
		} else {
			e.tickBackup(i, now)
		}
	}
}
