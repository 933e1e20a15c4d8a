package wireguard

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// session is the state of one key of a peer.
type session struct {
	endpoint  netip.AddrPort
	handshake time.Time
	turn      uint64 // of the handshake among those of all keys: later ones have larger ones; 0: there was none
	in, out   uint64 // bytes
}

// turns is the order of handshakes. Their times do not give it: a clock may be set back.
type turns struct {
	last uint64
	at   map[Key]session // at the last look
}

// order sets the turns of sessions. Handshakes since the last look have their times in order.
func (t *turns) order(now map[Key]session) {
	var changed []Key
	for k, s := range now {
		before := t.at[k]
		if s.turn = before.turn; !s.handshake.Equal(before.handshake) {
			changed = append(changed, k)
		}
		now[k] = s
	}
	slices.SortFunc(changed, func(a, b Key) int { return now[a].handshake.Compare(now[b].handshake) })
	for _, k := range changed {
		t.last++
		s := now[k]
		s.turn = t.last
		now[k] = s
	}
	t.at = now
}

// look returns the state of all keys. The library gives it as text only (device.IpcGet). d.mu is held.
func (d *Device) look() (map[Key]session, error) {
	text, err := d.library.IpcGet()
	if err != nil {
		return nil, fmt.Errorf("WireGuard: %w", err)
	}
	now := parseSessions(text)
	d.turns.order(now)
	return now, nil
}

// parseSessions reads the state of all keys.
func parseSessions(text string) map[Key]session {
	all := map[Key]session{}
	var key Key
	var s session
	var sec int64
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		n, _ := strconv.ParseInt(value, 10, 64)
		switch name {
		case "public_key":
			key, s, sec = Key{}, session{}, 0
			_, _ = hex.Decode(key[:], []byte(value))
		case "endpoint":
			s.endpoint, _ = netip.ParseAddrPort(value)
		case "last_handshake_time_sec":
			sec = n
		case "last_handshake_time_nsec":
			if sec != 0 || n != 0 {
				s.handshake = time.Unix(sec, n)
			}
		case "tx_bytes":
			s.out = uint64(n)
		case "rx_bytes":
			s.in = uint64(n)
		}
		if !key.IsZero() {
			all[key] = s
		}
	}
	return all
}

// Status returns the state of the device and its peers.
func (d *Device) Status() Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	st := Status{Port: d.port, PublicKey: d.public, LastError: d.bind.recentError()}
	now, err := d.look()
	if err != nil {
		st.LastError = err
	}
	for i := range d.cfg.Peers {
		p := &d.cfg.Peers[i]
		owner := d.owner(p, now)
		s := PeerStatus{Address: p.Address, PublicKey: owner, Endpoint: now[owner].endpoint,
			Handshake: now[owner].handshake}
		for _, k := range p.PublicKeys {
			s.In += now[k].in
			s.Out += now[k].out
		}
		st.Peers = append(st.Peers, s)
	}
	return st
}

// refusals counts what the library has refused, and told only its log.
type refusals struct {
	handshake counter // handshake messages with another key, older than the last one, or without a cookie in a flood
	cookie    counter // answers with a cookie that was not asked for; shaken has them, too
	shaken    counter // handshake messages that were accepted
	source    counter // packets whose source is not their peer's address, or that are neither IPv4 nor IPv6
	keepalive counter // messages without a packet
}

// note is the library's log (device.Logger). Its lines are the only sign of what it refuses, and of the ends of
// handshakes. TestRefused would fail if another version of the library had other lines.
func (d *Device) note(format string, args ...any) {
	switch format {
	case "Received packet with invalid mac1", "Received invalid initiation message from %s",
		"Received invalid response message from %s", "Sending cookie response for denied handshake message for %v":
		d.counts.handshake.Add(1)
		return
	case "Could not decrypt invalid cookie response":
		d.counts.cookie.Add(1)
		return
	case "Receiving cookie response from %s":
		d.counts.shaken.Add(1)
		return
	case "IPv4 packet with disallowed source address from %v", "IPv6 packet with disallowed source address from %v",
		"Packet with invalid IP version from %v":
		d.counts.source.Add(1) // perhaps by the new key of a peer, which does not have the address yet
		defer d.rotation.confirmed(args)
	case "%v - Receiving keepalive packet":
		d.counts.keepalive.Add(1) // confirms a handshake to its responder
		defer d.rotation.confirmed(args)
	case "%v - Received handshake initiation":
		d.counts.shaken.Add(1)
		d.rotation.shaken(args)
	case "%v - Received handshake response":
		d.counts.shaken.Add(1)
	default:
		return
	}
	select {
	case d.kick <- struct{}{}:
	default:
	}
}

// window is the number of looks at the messages in the library of which the least counts.
const window = 5

// backlog finds the number of messages that the library has refused without a line in its log. It counts neither them,
// nor those that it has not handled yet: a hundred thousand may wait in its queues. So the result is a lower bound. It
// is exact after a second without other messages.
type backlog struct {
	before uint64 // messages that had come at the last look
	recent [window]uint64
	next   int
	least  counter // of the present and former windows: the messages that were refused
}

// look is called once a second with the numbers of messages that came and that were taken, or refused with a line.
// Messages that had come a second ago and were not taken since have been refused, if the library was not stalled.
func (b *backlog) look(came, taken uint64) {
	b.recent[b.next%window] = b.before - min(taken, b.before)
	b.before = came
	if b.next++; b.next >= window {
		b.least.Store(max(b.least.Load(), slices.Min(b.recent[:])))
	}
}

// lookAtBacklog looks at the messages in the library.
func (d *Device) lookAtBacklog() {
	came := d.received.transport.Load()
	d.backlog.look(came, d.taken.Load()+d.counts.source.Load()+d.counts.keepalive.Load())
	d.shakes.look(d.received.handshake.Load(), d.counts.shaken.Load()+d.counts.handshake.Load())
}
