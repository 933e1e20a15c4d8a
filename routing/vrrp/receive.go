package vrrp

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// peer is another router of an instance.
type peer struct {
	priority uint8
	interval time.Duration
	last     time.Duration // when it was heard
	refusal  Refusal       // of its last packet
	differs  bool          // its addresses are not ours
	told     bool          // that they differ
	// first and claimed are the times of its first and last packet as another master beside this one. first is 0 if it
	// is none, or has given way.
	first, claimed time.Duration
	reported       time.Duration // when its refusal, or its addresses, were last reported; 0: never
}

const (
	// maxPeers bounds the routers that an instance remembers. Anyone on the link can send.
	maxPeers = 32
	// reportEvery is the least time between two reports of the same about a router, newsEvery between reports of
	// something else, and anyEvery between any two reports about an instance.
	reportEvery = 10 * time.Minute
	newsEvery   = 30 * time.Second
	anyEvery    = 200 * time.Millisecond
)

// Receive takes a packet that has come in. It returns why the packet is refused.
func (e *Election) Receive(now Moment, p Packet) Refusal {
	multicast := p.Dst.IsMulticast()
	if len(p.Payload) < headerLen {
		e.unknown++
		return BadLength
	}
	i := e.find(p, multicast)
	if i == nil {
		e.unknown++
		return NoInstance
	}
	if multicast && p.TTL != ttl {
		e.refuse(i, now, &p, BadTTL)
		return BadTTL
	}
	if i.role == Master && i.late(now) {
		e.tickMaster(i, now)
	}
	a, r := Parse(p.Payload, p.Src, p.Dst)
	switch {
	case e.own(p.Src), i.unicast() && !multicast && !slices.Contains(i.Peers, p.Src):
		r = BadSource
	case r == Accepted:
		r = i.check(&a, &p, now)
	}
	if r != Accepted {
		e.refuse(i, now, &p, r)
		return r
	}
	i.counts.Received++
	e.note(i, now, &a, p.Src)
	switch i.role {
	case Backup:
		e.receiveBackup(i, now, &a)
	case Master:
		e.receiveMaster(i, now, &a, p.Src)
	}
	return Accepted
}

// find returns the instance of a packet, nil if there is none. Unicast packets may come in by any device.
func (e *Election) find(p Packet, multicast bool) *instance {
	var other *instance
	for _, i := range e.all {
		if i.RouterID != p.Payload[1] || i.is6() != p.Src.Is6() {
			continue
		}
		if i.device != nil && i.device.Index == p.Device && (!multicast || !i.unicast()) {
			return i
		}
		if i.device != nil && i.device.Index == p.Device || !multicast && slices.Contains(i.Peers, p.Src) {
			other = i
		}
	}
	return other
}

// own reports whether an address is one of this host.
func (e *Election) own(a netip.Addr) bool {
	for d := range e.devices {
		if slices.ContainsFunc(e.devices[d].Addrs, func(p netip.Prefix) bool { return p.Addr() == a }) {
			return true
		}
	}
	return false
}

// check examines what depends on the instance.
func (i *instance) check(a *Advert, p *Packet, now Moment) Refusal {
	kind, data := i.auth()
	switch {
	case a.Version != i.Version:
		return BadVersion
	case p.Dst.IsMulticast() == i.unicast():
		return BadCast
	case a.Version == Version2 && a.AuthType != kind:
		return BadAuthType
	case a.Version == Version2 && kind == AuthPassword && !bytes.Equal(a.AuthData[:], data[:]):
		return BadPassword
	case a.Version == Version2 && a.Interval != i.Interval:
		return BadInterval
	}
	if i.Key == nil { // an HMAC, if there is one, proves nothing: directors get their keys one after the other
		return Accepted
	}
	return i.Key.verify(a, p.Src, now.Wall, window(max(i.Interval, a.Interval)), i.replays)
}

// receiveBackup: RFC 9568, section 6.4.2.
func (e *Election) receiveBackup(i *instance, now Moment, a *Advert) {
	if a.Priority == 0 {
		if !i.ready {
			i.deadline = now.Boot + i.skew()
		}
		return
	}
	if !i.yields(a.Priority, now) {
		return
	}
	i.ready, i.listening = false, false
	if i.Version == Version3 {
		i.masterInterval = a.Interval
	}
	i.deadline = now.Boot + i.masterDown()
}

// yields reports whether a backup leaves the role to a master with a priority.
func (i *instance) yields(priority uint8, now Moment) bool {
	own := i.priority()
	switch {
	case priority >= own: // also of two owners, which is a mistake: one of them is master, and stays it
		i.preemptAt = 0
		return true
	case i.held():
		return true
	case i.forced, own == Owner:
		return false
	case !i.Preempt:
		return true
	case i.PreemptDelay == 0:
		return false
	case i.preemptAt == 0:
		i.preemptAt = now.Boot + i.PreemptDelay
	}
	return now.Boot < i.preemptAt
}

// receiveMaster: RFC 9568, section 6.4.3.
func (e *Election) receiveMaster(i *instance, now Moment, a *Advert, src netip.Addr) {
	if i.doubt && a.Priority > 0 {
		e.resign(i, now)
		e.yield(i, now, fmt.Sprintf("paused, and %v is master", src))
		e.receiveBackup(i, now, a)
		return
	}
	own := i.priority()
	address := i.device.source(&i.Instance, i.towards(src), e.moving)
	if a.Priority > own || a.Priority == own && src.Compare(address) > 0 {
		// The better master announces the addresses again when it hears a lower priority. Neighbours may have this
		// one's announcement, if a link that was cut is whole again: higher_prio_send_advert of keepalived.
		e.send(i, now, own)
		e.yield(i, now, fmt.Sprintf("%v has priority %d", src, a.Priority))
		if i.Version == Version3 {
			i.masterInterval = a.Interval
		}
		i.deadline = now.Boot + i.masterDown()
		return
	}
	// Two routers never answer each other without end. A router with priority 0 gives its role up, and backups begin to
	// take it: RFC 9568, section 6.4.3.
	if a.Priority == 0 || now.Boot-i.answered >= i.Interval {
		i.answered = now.Boot
		e.advertise(i, now)
	}
	if a.Priority == 0 {
		e.partRival(i, now, src)
	} else {
		e.meetRival(i, now, src, Accepted)
	}
	if now.Boot-i.again >= announceEvery { // the sender was master, and may have answered for the addresses
		for _, o := range e.members(i) {
			o.again = now.Boot
			e.events = append(e.events, Event{Kind: Reannounce, Instance: o.Name, Peer: src,
				Addrs: o.addresses()})
		}
	}
}

// announceEvery is the least time between two Reannounce events: vrrp_garp_lower_prio_delay of keepalived.
const announceEvery = 5 * time.Second

// towards returns where i sends for a router with the address src to receive it.
func (i *instance) towards(src netip.Addr) netip.Addr {
	if i.unicast() {
		return src
	}
	return group(i.is6())
}

// peerOf returns what is known of a router of i.
func (i *instance) peerOf(src netip.Addr, now Moment) *peer {
	p := i.peers[src]
	if p != nil {
		return p
	}
	if len(i.peers) >= maxPeers {
		var oldest netip.Addr
		for a, o := range i.peers {
			if !oldest.IsValid() || o.last < i.peers[oldest].last {
				oldest = a
			}
		}
		delete(i.peers, oldest)
	}
	p = &peer{}
	i.peers[src] = p
	return p
}

// note takes note of an accepted advertisement.
func (e *Election) note(i *instance, now Moment, a *Advert, src netip.Addr) {
	p := i.peerOf(src, now)
	differs := !sameAddrs(a.Addrs, i.Addrs)
	if p.told = p.told && differs; differs && !p.told && i.reports(p, now, true) {
		p.told = true
		e.events = append(e.events, Event{Kind: Differs, Instance: i.Name, Peer: src, Addrs: slices.Clone(a.Addrs)})
	}
	if differs {
		i.counts.Differing++
	}
	p.priority, p.interval, p.last, p.refusal, p.differs = a.Priority, a.Interval, now.Boot, Accepted, differs
}

// sameAddrs reports whether two lists have the same addresses, in any order.
func sameAddrs(a, b []netip.Addr) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.SortFunc(a, netip.Addr.Compare)
	slices.SortFunc(b, netip.Addr.Compare)
	return slices.Equal(a, b)
}

// refuse takes note of a refused packet. A router whose packets are refused while this one is master is a second
// master: backups send nothing. A packet that may come from another network, and from no peer, only counts.
func (e *Election) refuse(i *instance, now Moment, p *Packet, r Refusal) {
	i.counts.Refused[r]++
	if r == BadSource || r == BadTTL || r == BadLength || r == BadChecksum ||
		p.TTL != ttl && !slices.Contains(i.Peers, p.Src) {
		return
	}
	o := i.peerOf(p.Src, now)
	if i.reports(o, now, o.refusal != r) {
		e.events = append(e.events, Event{Kind: Ignored, Instance: i.Name, Peer: p.Src, Refusal: r})
	}
	o.priority, o.last, o.refusal = p.Payload[2], now.Boot, r
	switch {
	case i.role != Master:
	case p.Payload[2] != 0:
		e.meetRival(i, now, p.Src, r)
	default:
		e.partRival(i, now, p.Src)
	}
}

// reports reports whether an event about a router, news or the same again, is reported. Anyone on the link can
// from many addresses: the log does not grow with each packet.
func (i *instance) reports(p *peer, now Moment, news bool) bool {
	pause := reportEvery
	if news {
		pause = newsEvery
	}
	if p.reported != 0 && now.Boot-p.reported < pause || i.reported != 0 && now.Boot-i.reported < anyEvery {
		return false
	}
	p.reported, i.reported = now.Boot, now.Boot
	return true
}

// rival is another master beside this one.
type rival struct {
	addr     netip.Addr // the zero Addr: there is none
	refusal  Refusal    // why its packets are refused, or Accepted
	last     time.Duration
	reported bool // it counts, and the status has it
	told     bool // by an event
}

// refusedRival is how long a router whose packets are refused, or that has other addresses, counts as a master after
// its last packet: keepalived puts its own advertisement off with each packet of others that it refuses, and is heard
// rarely.
const refusedRival = time.Minute

// silence returns how long a router counts as another master after its last packet.
func (i *instance) silence(p *peer, r Refusal) time.Duration {
	d := 3 * max(i.Interval, i.masterInterval)
	if p != nil {
		d = max(d, 3*p.interval)
	}
	if r != Accepted || p != nil && p.differs {
		d = max(d, refusedRival)
	}
	return d
}

// meetRival takes note of another master. One that gives way at this master's next advertisement is not reported. A
// sender that comes and goes is no event each time: anyone on the link can be that.
func (e *Election) meetRival(i *instance, now Moment, src netip.Addr, r Refusal) {
	p, v := i.peerOf(src, now), &i.rival
	if p.first == 0 || now.Boot-p.claimed > i.silence(p, r) {
		p.first = now.Boot
	}
	p.claimed = now.Boot
	if v.addr != src {
		if v.reported { // one at a time
			return
		}
		*v = rival{addr: src}
	}
	v.last, v.refusal = now.Boot, r
	i.counts.Rivals++
	if !v.reported && (r != Accepted || now.Boot-p.first > i.Interval) {
		v.reported = true
		i.counts.Conflicts++
	}
	if v.reported && !v.told && (i.conflict == 0 || now.Boot-i.conflict >= newsEvery) {
		v.told, i.conflict = true, now.Boot
		e.events = append(e.events, Event{Kind: TwoMasters, Instance: i.Name, Peer: src, Refusal: r, Addrs: i.Addrs})
	}
}

// partRival takes note that another router is no master any more.
func (e *Election) partRival(i *instance, now Moment, src netip.Addr) {
	if p := i.peers[src]; p != nil {
		p.first = 0
	}
	if i.rival.addr == src {
		e.endRival(i, now, true)
	}
}

// endRival forgets another master that is not heard any more, or at once if this one is not master any more.
func (e *Election) endRival(i *instance, now Moment, atOnce bool) {
	v := &i.rival
	if !v.addr.IsValid() || !atOnce && now.Boot-v.last <= i.silence(i.peers[v.addr], v.refusal) {
		return
	}
	if v.told {
		e.events = append(e.events, Event{Kind: OneMaster, Instance: i.Name, Peer: v.addr})
	}
	*v = rival{}
}
