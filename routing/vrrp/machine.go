package vrrp

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// instance is an Instance with its state.
type instance struct {
	Instance
	election *Election

	role     Role
	since    Moment
	reason   string        // of the last change of role, or of ready
	device   *Device       // nil: there is none
	fault    string        // "": none
	deadline time.Duration // Master: the next advertisement; Backup: the end of the master; or never
	// ready: no better master is heard any more. Only the group's other instances keep this one from the role.
	ready     bool
	listening bool          // the deadline has been put off once, after a pause
	doubt     bool          // a master that was paused: another one may be there
	forced    bool          // it takes the role also without Preempt, until it is master
	preemptAt time.Duration // the end of PreemptDelay; 0: it has not begun
	answered  time.Duration // when an advertisement was sent ahead of time

	// masterInterval is the interval of the master: Master_Adver_Interval of RFC 9568, section 6.1.
	masterInterval time.Duration

	lastSeq  sequence // of the last HMAC
	sendErr  error    // of a packet of the last advertisement, at failedAt
	failedAt time.Duration
	replays  replays
	peers    map[netip.Addr]*peer
	rival    rival
	counts   Counts
	again    time.Duration // the last Reannounce
	reported time.Duration // the last report about a peer; 0: none
	conflict time.Duration // the last event about two masters; 0: none
}

// never is no deadline.
const never = time.Duration(-1)

func newInstance(e *Election, c Instance, now Moment) *instance {
	return &instance{Instance: c, election: e, since: now, deadline: never, masterInterval: c.Interval,
		replays: replays{}, peers: map[netip.Addr]*peer{}}
}

// priority returns the priority in force.
func (i *instance) priority() uint8 {
	switch {
	case i.election.standby:
		return 1
	case i.Priority == Owner:
		return Owner
	}
	p := int(i.Priority)
	for _, t := range i.election.tracks[i.Name] {
		if t.Up == (t.Weight > 0) {
			p += t.Weight
		}
	}
	return uint8(min(max(p, 1), Owner-1))
}

// held reports whether i takes the role only if there is no other master.
func (i *instance) held() bool {
	return i.election.held || slices.ContainsFunc(i.election.tracks[i.Name], func(t Track) bool { return t.Unknown })
}

// skew returns Skew_Time: RFC 9568, section 6.1; RFC 3768, section 6.1.
func (i *instance) skew() time.Duration {
	unit := i.masterInterval
	if i.Version == Version2 {
		unit = time.Second
	}
	return time.Duration(256-int(i.priority())) * unit / 256
}

// masterDown returns Master_Down_Interval.
func (i *instance) masterDown() time.Duration { return 3*i.masterInterval + i.skew() }

// handOver returns the longest time until a backup takes the role from a master that gives it up: a skew time, and a
// little for the way there and back.
func (i *instance) handOver() time.Duration {
	if i.Version == Version2 {
		return time.Second + handOverSlack
	}
	return i.Interval + handOverSlack
}

const handOverSlack = 100 * time.Millisecond

// heardMaster reports whether another master has been heard since a time.
func (i *instance) heardMaster(since time.Duration) bool {
	for _, p := range i.peers {
		if p.last >= since && p.priority > 0 && p.refusal == Accepted {
			return true
		}
	}
	return false
}

// change gives i another role.
func (e *Election) change(i *instance, now Moment, to Role, reason string) {
	was := i.role
	if was == to {
		return
	}
	i.role, i.since, i.reason = to, now, reason
	i.ready, i.listening, i.doubt, i.preemptAt = false, false, false, 0
	i.deadline = never
	switch to {
	case Master:
		i.forced = false
		i.masterInterval = i.Interval
		i.counts.Elected++
		e.advertise(i, now)
	case Backup:
		i.masterInterval = i.Interval
		i.await(now)
	}
	e.endRival(i, now, true)
	for _, p := range i.peers {
		p.first = 0
	}
	e.events = append(e.events, Event{Kind: RoleChanged, Instance: i.Name, Old: was, New: to, Reason: reason,
		Addrs: i.addresses()})
}

// await lets a backup wait for a master's advertisements from now on.
func (i *instance) await(now Moment) {
	i.deadline = now.Boot + i.masterDown()
	if i.priority() == Owner && !i.held() {
		i.deadline = now.Boot
	}
}

// resign lets a master's peers take the role at once.
func (e *Election) resign(i *instance, now Moment) {
	if i.role == Master {
		e.send(i, now, 0)
	}
}

// advertise sends an advertisement, and sets the time of the next one.
func (e *Election) advertise(i *instance, now Moment) {
	e.send(i, now, i.priority())
	i.deadline = now.Boot + i.Interval
}

// destinations returns where the advertisements go.
func (i *instance) destinations() []netip.Addr {
	if i.unicast() {
		return i.Peers
	}
	return []netip.Addr{group(i.is6())}
}

// send sends an advertisement with a priority.
func (e *Election) send(i *instance, now Moment, priority uint8) {
	if i.device == nil {
		return
	}
	a := Advert{Version: i.Version, RouterID: i.RouterID, Priority: priority, Interval: i.Interval, Addrs: i.Addrs}
	a.AuthType, a.AuthData = i.auth()
	if i.Key != nil {
		i.lastSeq = i.lastSeq.next(now.Wall, window(i.Interval))
	}
	for _, to := range i.destinations() {
		src := i.device.source(&i.Instance, to, e.moving)
		if !src.IsValid() {
			continue
		}
		p := a.Append(nil, src, to, i.Checksum)
		if i.Key != nil {
			p = i.Key.sign(p, src, to, i.lastSeq)
		}
		e.packets = append(e.packets, Packet{Device: i.device.Index, Src: src, Dst: to, TTL: ttl, Payload: p,
			Instance: i.Name})
	}
	i.sendErr = nil
	i.counts.Sent++
	if priority == 0 {
		i.counts.Resigned++
	}
}

// ttl is the TTL, or hop limit, of each packet: RFC 9568, sections 5.1.1.3 and 5.1.2.3.
const ttl = 255

// A master that is late with an advertisement by more than tooLate intervals is in doubt: a backup may have taken the
// role meanwhile. By more than muchTooLate, a backup has, if there is one.
const (
	tooLate     = 2
	muchTooLate = 10
)

// late reports whether a master's advertisement is too late.
func (i *instance) late(now Moment) bool { return now.Boot-i.deadline > tooLate*i.Interval }

// tickMaster sends the advertisement that is due. If the program or the machine was paused for too long, another
// router may be master, and would give way to this one's advertisement. So a master in doubt sends none for an
// interval, in which another one is heard. After a long pause it steps back at once, and listens then. With its
// priority of 0 it lets the other one announce the addresses again: requests that have waited here may have been
// answered.
func (e *Election) tickMaster(i *instance, now Moment) {
	if !i.late(now) {
		i.doubt = false
		e.endRival(i, now, false)
		due := i.deadline + i.Interval
		e.advertise(i, now)
		i.deadline = max(due, now.Boot+i.Interval/2)
		return
	}
	i.counts.Paused++
	paused := now.Boot - i.deadline + i.Interval
	if paused <= muchTooLate*i.Interval {
		i.doubt = true
		i.deadline = now.Boot + i.Interval + i.skew()
		return
	}
	reason := fmt.Sprintf("paused for %v", paused.Round(time.Millisecond))
	for _, o := range e.members(i) {
		if o.role == Master {
			e.resign(o, now)
			e.change(o, now, Backup, reason)
			o.listen(now)
		}
	}
}

// listen lets a backup wait for the advertisement of a master that may be there: it comes within an interval.
func (i *instance) listen(now Moment) {
	i.listening = true
	i.deadline = now.Boot + i.masterInterval + i.skew()
}

// tickBackup takes the role, as no better master is heard any more. After a pause it listens once more, since the
// packets of the meantime may be unread.
func (e *Election) tickBackup(i *instance, now Moment) {
	if late := now.Boot - i.deadline; late > i.masterInterval && !i.listening && i.priority() != Owner {
		i.counts.Paused++
		i.listen(now)
		return
	}
	i.deadline, i.ready, i.reason = never, true, "no other master"
	if m := i.better(now); m != "" {
		i.reason = m
	}
	e.promote(i, now)
}

// better returns the reason for taking the role from a master that is still there; "" if none is heard.
func (i *instance) better(now Moment) string {
	for addr, p := range i.peers {
		if p.refusal == Accepted && p.priority > 0 && p.priority < i.priority() && now.Boot-p.last <= i.masterDown() {
			return fmt.Sprintf("%v has a lower priority, %d", addr, p.priority)
		}
	}
	return ""
}
