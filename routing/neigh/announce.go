package neigh

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// An address is announced as keepalived does it (vrrp_garp_master_repeat, vrrp_garp_master_delay): announceTimes at
// once, and once more so after announceAgain. There is no refresh later.
const (
	announceTimes = 5
	announceAgain = 5 * time.Second
	// After each announcePart packets there is a pause, so that many addresses do not overrun a switch.
	announcePart  = 20
	announcePause = 2 * time.Millisecond
)

// announcement is a due announcement of an address.
type announcement struct {
	at   time.Time
	last bool // there is no other one after it
}

// announce sends the announcements that are due, until ctx is cancelled.
func (a *Answerer) announce(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.wake:
		case <-timer.C:
		}
		places, next := a.takeDue(time.Now())
		a.sendAll(ctx, places)
		timer.Reset(next)
	}
}

// takeDue returns the places to announce now, in order, and the time until the next ones are due.
func (a *Answerer) takeDue(now time.Time) (places []place, next time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	next = time.Hour
	t := a.table.Load()
	for p, d := range a.due {
		switch {
		case !t.has(p):
			delete(a.due, p)
			continue
		case d.at.After(now):
			next = min(next, d.at.Sub(now))
			continue
		}
		places = append(places, p)
		if d.last {
			delete(a.due, p)
			continue
		}
		a.due[p] = announcement{at: now.Add(announceAgain), last: true}
		next = min(next, announceAgain)
	}
	slices.SortFunc(places, func(p, q place) int { return p.addr.Compare(q.addr) })
	return places, next
}

// sendAll announces places announceTimes. It ends early if ctx is cancelled.
func (a *Answerer) sendAll(ctx context.Context, places []place) {
	n := 0
	for range announceTimes {
		for _, p := range places {
			a.announceOnce(a.table.Load(), p)
			if n++; n%announcePart == 0 {
				time.Sleep(announcePause)
			}
			if ctx.Err() != nil {
				return
			}
		}
	}
}

// announceOnce sends one announcement of an address, unless it has been taken away.
func (a *Answerer) announceOnce(t *table, p place) {
	if !t.has(p) {
		return
	}
	mac, err := t.devices[p.index].MAC, error(nil)
	if p.addr.Is4() {
		err = a.arp.send(p.index, broadcast, arpRequest(mac, p.addr, p.addr))
	} else {
		err = a.nd.send(p.index, groupMAC(allNodes), ndAnnouncement(mac, p.addr))
	}
	if err != nil {
		a.counts.failed.Add(1)
		return
	}
	a.counts.announcements.Add(1)
}

// claim is another host's use of an address.
type claim struct {
	Claim
	defended time.Time
}

// quiet reports whether no conflict has come for claimQuiet. c may be nil.
func (c *claim) quiet(now time.Time) bool { return c == nil || now.Sub(c.Last) >= claimQuiet }

// Claim is another host's use of one of the addresses.
type Claim struct {
	Device string
	Addr   netip.Addr
	MAC    MAC // of the host, in the last packet
	Count  uint64
	Last   time.Time
}

const (
	// defendEvery is the least time between two defences of an address, so that two hosts that both defend it make no
	// storm: DEFEND_INTERVAL of RFC 5227, section 1.1.
	defendEvery = 10 * time.Second
	// claimQuiet is the time without a conflict after which the next one is logged again.
	claimQuiet = 10 * time.Minute
)

// contest is about an elected address of this host.
type contest struct {
	since time.Time // when this host got the address, or the former master gave way to it
	waits bool      // another host's packet may become a conflict after contestWait
}

const (
	// contestTime is longer than the announcements of a change of the master take: announceAgain.
	contestTime = 10 * time.Second
	// contestWait is longer than a master needs to give its addresses up to a better one, which announces them.
	contestWait = time.Second
)

// conflict acts on a packet in which another host uses an address. If an election decides about the address, the host
// may be the former master, or the next one.
func (a *Answerer) conflict(t *table, p place, by MAC) {
	now := time.Now()
	a.mu.Lock()
	if c := a.contested[p]; c != nil && a.claims[p].quiet(now) {
		if !c.waits && now.Sub(c.since) >= contestTime {
			c.waits = true
			time.AfterFunc(contestWait, func() { a.contend(p, by) })
		}
		a.mu.Unlock()
		return
	}
	a.mu.Unlock()
	a.defend(t, p, by, now)
}

// contend acts on a packet of contestWait ago, if this host still has the address, and no other one has given it up.
func (a *Answerer) contend(p place, by MAC) {
	now := time.Now()
	a.mu.Lock()
	c := a.contested[p]
	lasts := !a.closed && c != nil && now.Sub(c.since) >= contestTime
	if c != nil {
		c.waits = false
	}
	t := a.table.Load()
	a.mu.Unlock()
	if lasts {
		a.defend(t, p, by, now)
	}
}

// defend counts a packet in which another host uses an address, and defends the address: RFC 5227, section 2.4 (c). The
// address is never given up, since the configuration says where it belongs.
func (a *Answerer) defend(t *table, p place, by MAC, now time.Time) {
	a.mu.Lock()
	a.counts.conflicts.Add(1)
	c := a.claims[p]
	log := c.quiet(now)
	if c == nil {
		c = &claim{}
		a.claims[p] = c
	}
	defend := now.Sub(c.defended) >= defendEvery
	if defend {
		c.defended = now
	}
	c.Claim = Claim{Device: t.devices[p.index].Name, Addr: p.addr, MAC: by, Count: c.Count + 1, Last: now}
	a.mu.Unlock()
	if defend {
		a.announceOnce(t, p)
	}
	if log {
		what := "another host uses a VIP, and neighbours may send their packets there: "
		if t.devices[p.index].Elected {
			what += "if it is another director, both are master: let IP protocol 112 pass between them; else "
		}
		a.log.Error(what+"remove the address from that host; a realserver needs arp_ignore = 1 and arp_announce = 2",
			"vip", p.addr, "device", t.devices[p.index].Name, "mac", by.String())
	}
}

// Reannounce announces addresses again on every device that has them, since another host has given them up.
func (a *Answerer) Reannounce(addrs []netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for index, d := range a.table.Load().devices {
		for _, addr := range d.Addrs {
			if p := (place{index, addr}); slices.Contains(addrs, addr) {
				a.due[p] = announcement{}
				if c := a.contested[p]; c != nil {
					c.since = time.Now()
				}
			}
		}
	}
	signal(a.wake)
}

// Claims returns the uses of addresses by other hosts since the start, by address and device.
func (a *Answerer) Claims() []Claim {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []Claim
	for c := range maps.Values(a.claims) {
		all = append(all, c.Claim)
	}
	slices.SortFunc(all, func(c, d Claim) int {
		if n := c.Addr.Compare(d.Addr); n != 0 {
			return n
		}
		return strings.Compare(c.Device, d.Device)
	})
	return all
}
