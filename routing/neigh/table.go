package neigh

import (
	"bytes"
	"net/netip"
)

// table is the addresses to answer for, by device. It is immutable.
type table struct {
	devices map[int]*deviceTable // by index
	own     map[MAC]bool         // MAC addresses of this host
}

type deviceTable struct {
	Device
	active map[netip.Addr]bool // false: a former address
}

func newTable(devices []Device) *table {
	t := &table{devices: make(map[int]*deviceTable, len(devices)), own: make(map[MAC]bool, len(devices))}
	for _, d := range devices {
		row := &deviceTable{d, make(map[netip.Addr]bool, len(d.Addrs)+len(d.Former))}
		for _, a := range d.Former {
			row.active[a] = false
		}
		for _, a := range d.Addrs {
			row.active[a] = true
		}
		t.devices[d.Index] = row
		t.own[d.MAC] = true
		for _, mac := range d.Own {
			t.own[mac] = true
		}
	}
	return t
}

// has reports whether an address is answered for and announced on a device.
func (t *table) has(p place) bool {
	return t.devices[p.index] != nil && t.devices[p.index].active[p.addr]
}

// place is an address on a device.
type place struct {
	index int
	addr  netip.Addr
}

// addrs returns the addresses of a family, each once, in no order.
func (t *table) addrs(ipv6 bool) (all []netip.Addr) {
	seen := map[netip.Addr]bool{}
	for _, d := range t.devices {
		for a := range d.active {
			if a.Is6() == ipv6 && !seen[a] {
				seen[a] = true
				all = append(all, a)
			}
		}
	}
	return all
}

// received is a frame's origin.
type received struct {
	index   int  // of the device
	from    MAC  // the frame's source
	unicast bool // it was sent to this host alone
}

// verdict is what to do about a frame. The zero value: it is invalid.
type verdict struct {
	valid   bool   // it is a message of its protocol; without answer and claimed, there is nothing to do
	answer  []byte // to send, on the frame's device
	to      MAC
	claimed netip.Addr // valid: another host, which has the MAC address by, uses this address
	probed  netip.Addr // valid: that host probes this address, and has a lower MAC address than the device
	by      MAC
}

// arp returns the verdict on an ARP packet.
func (t *table) arp(r received, b []byte) (v verdict) {
	p, ok := parseARP(b)
	v.valid = ok
	d := t.devices[r.index]
	if !ok || d == nil || !p.senderMAC.isHost() || t.own[p.senderMAC] {
		return v
	}
	if d.active[p.sender] { // RFC 5227, section 2.4
		v.claimed, v.by = p.sender, p.senderMAC
	}
	if p.op == arpAsk && p.sender == netip.IPv4Unspecified() && d.loses(p.target, r.unicast, p.senderMAC) {
		v.probed, v.by = p.target, p.senderMAC
	}
	if p.op == arpAsk && p.sender != p.target && d.answers(p.target, r.unicast) {
		v.answer, v.to = p.answer(d.MAC), p.senderMAC
	}
	return v
}

// nd returns the verdict on a packet of neighbour discovery.
func (t *table) nd(r received, b []byte) (v verdict) {
	p, ok := parseND(b)
	v.valid = ok
	d := t.devices[r.index]
	if !ok || d == nil || !r.from.isHost() || t.own[r.from] {
		return v
	}
	by := r.from
	if p.hasMAC {
		by = p.mac
	}
	claimed := p.src
	if p.kind == advertisement {
		claimed = p.target
	}
	if d.active[claimed] && by.isHost() && !t.own[by] {
		v.claimed, v.by = claimed, by
	}
	if p.kind == solicitation && p.src == unspecified && d.loses(p.target, r.unicast, r.from) {
		v.probed, v.by = p.target, r.from
	}
	if p.kind == solicitation && p.src != p.target && d.answers(p.target, r.unicast) {
		v.answer, v.to = p.answer(d.MAC, r.from)
	}
	return v
}

// answers reports whether a request for a is answered.
func (d *deviceTable) answers(a netip.Addr, unicast bool) bool {
	active, known := d.active[a]
	return known && (active || unicast)
}

// loses reports whether this host, while it probes a, has to leave a to another host that probes it: RFC 5227, section
// 2.1.1; RFC 4862, section 5.4.3. These let both hosts give up. Here the lower MAC address goes on, so that one of two
// directors starts: a host that follows the RFCs gives up anyway. Some switches probe the hosts that they know by
// unicast; that is no conflict.
func (d *deviceTable) loses(a netip.Addr, unicast bool, to MAC) bool {
	return d.active[a] && !unicast && bytes.Compare(to[:], d.MAC[:]) < 0
}
