package neigh

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Resolver is a Watcher for a port of an Ethernet network, where the kernel resolves no neighbours: it asks for them
// itself.
//
//	Set → ask ── answer ──► known ── probeEvery ──► ask once, then all hosts ── answer ──► known
//	       ▲                                                     │
//	       └──────── every second: Silent after askTimes ◄───────┘
//
// A neighbour that does not answer is Silent within probeEvery and askTimes seconds. A neighbour's own request or
// announcement counts as an answer.
type Resolver struct {
	port    *SharedPort
	mac     MAC
	local   netip.Addr // source of solicitations
	device  int
	changed chan struct{}

	mu     sync.Mutex
	sender netip.Addr // of ARP requests
	known  map[netip.Addr]*target
}

// target is a neighbour's state, and the requests for it.
type target struct {
	State
	asked int       // requests since the last answer
	next  time.Time // when it is asked for
}

const (
	askTimes = 3
	// workEvery bounds how late a request is.
	workEvery = 200 * time.Millisecond
)

// NewResolver returns a Resolver for the port of a device. The sender address of its ARP requests is 0.0.0.0, which no
// neighbour notes. Its solicitations come from the link-local address of mac.
func NewResolver(port *SharedPort, device int, mac [6]byte) *Resolver {
	return &Resolver{port: port, mac: mac, sender: netip.IPv4Unspecified(), local: LinkLocal(mac), device: device,
		changed: make(chan struct{}, 1), known: map[netip.Addr]*target{}}
}

// SetSender sets the sender address of ARP requests. Neighbours may note it, with the port's MAC address.
func (r *Resolver) SetSender(sender netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sender = sender
}

// Set makes all the neighbours that are kept resolved, and asks for the new ones at once. They are neighbours on the
// port's device. The states of those that stay are kept.
func (r *Resolver) Set(all []Neighbour) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := make(map[netip.Addr]*target, len(all))
	for _, n := range all {
		if next[n.Address] = r.known[n.Address]; next[n.Address] == nil {
			next[n.Address] = &target{}
		}
	}
	r.known = next
	r.work(time.Now())
	return nil
}

// States returns the neighbours' states.
func (r *Resolver) States() map[Neighbour]State {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make(map[Neighbour]State, len(r.known))
	for a, t := range r.known {
		all[Neighbour{r.device, a}] = t.State
	}
	return all
}

// Changed returns a channel that gets a value after a change of a State. A value that is not received yet stands for
// all changes since.
func (r *Resolver) Changed() <-chan struct{} { return r.changed }

// Run works until ctx is cancelled.
func (r *Resolver) Run(ctx context.Context) error {
	ticker := time.NewTicker(workEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		r.mu.Lock()
		r.work(time.Now())
		r.mu.Unlock()
	}
}

// Close does nothing.
func (r *Resolver) Close() error { return nil }

// work asks for the neighbours whose time has come. The caller holds mu.
func (r *Resolver) work(now time.Time) {
	for a, t := range r.known {
		if now.Before(t.next) {
			continue
		}
		if t.asked >= askTimes && !t.Silent {
			t.Silent = true
			signal(r.changed)
		}
		if r.ask(a, t) != nil { // the device is down
			t.next = now.Add(workEvery)
			continue
		}
		t.asked++
		t.next = now.Add(askEvery)
	}
}

// ask asks for a: first the host that had it, then all hosts.
func (r *Resolver) ask(a netip.Addr, t *target) error {
	one := t.asked == 0 && t.MAC != MAC{}
	if a.Is4() {
		to := broadcast
		if one {
			to = t.MAC
		}
		return r.port.SendFrame(to, unix.ETH_P_ARP, arpRequest(r.mac, r.sender, a))
	}
	p := ndPacket{kind: solicitation, src: r.local, dst: solicitedNode(a), target: a, mac: r.mac, hasMAC: true}
	to := groupMAC(p.dst)
	if one {
		p.dst, to = a, t.MAC
	}
	return r.port.SendFrame(to, unix.ETH_P_IPV6, p.bytes())
}

// Receive takes the payload of a frame of the port. Any number of goroutines may call it.
func (r *Resolver) Receive(_, _ [6]byte, etherType uint16, payload []byte) {
	if etherType == unix.ETH_P_ARP {
		if p, ok := parseARP(payload); ok {
			r.answered(p.sender, p.senderMAC, true)
		}
		return
	}
	p, ok := parseND(payload)
	switch {
	case !ok:
	case p.kind == solicitation:
		if p.hasMAC {
			r.answered(p.src, p.mac, true)
		}
	case p.hasMAC:
		r.answered(p.target, p.mac, p.flags&override != 0)
	case p.flags&solicited != 0: // it has the address that it was asked at (RFC 4861, section 7.2.4)
		r.answered(p.target, MAC{}, false)
	}
}

// answered notes that the neighbour with the address a is there, and has a MAC address. The zero MAC stands for the one
// that is known. With replace, the MAC address replaces another one that is known: RFC 4861, section 7.2.5.
func (r *Resolver) answered(a netip.Addr, mac MAC, replace bool) {
	if mac != (MAC{}) && !mac.isHost() || mac == r.mac {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.known[a]
	if t == nil {
		return
	}
	was := t.State
	switch {
	case mac == MAC{} && t.MAC == MAC{}:
		return
	case mac == MAC{}:
	case t.MAC == MAC{}, replace:
		t.MAC = mac
	case t.MAC != mac:
		return
	}
	t.Silent, t.asked, t.next = false, 0, time.Now().Add(probeEvery)
	if t.State != was {
		signal(r.changed)
	}
}
