package fastpath

import (
	"errors"
	"fmt"
	"net/netip"

	"vstun/balancer"
	"vstun/balancer/method"
	"vstun/encap/bpf"
)

// Way is how this host's packets get to an address: a device, and a neighbour there.
type Way struct {
	Device  int        // interface index
	NextHop netip.Addr // a router on Device, or the address itself
	Source  netip.Addr // that the kernel gives a packet without one; the zero Addr: none
	MTU     int        // largest packet, in bytes
	NoNAT   bool       // packets of VS/NAT stay out: their replies may take another way
}

// Ways are the ways to realservers, as far as there are any. It is immutable.
type Ways map[netip.Addr]Way

// pathID names a path: the realserver's number, and the family of its clients' packets.
type pathID struct {
	dest uint32
	six  bool
}

// path is a path in the kernel, and what it was made from.
type path struct {
	via via
	ref bpf.Ref
	err error // why the kernel does not have it
}

// via is all that a path depends on.
type via struct {
	to  balancer.Target
	way Way
}

// via returns what the path id depends on now. ok is false if its packets take the TUN device.
func (c *Cache) via(id pathID) (v via, ok bool) {
	if c.snapshot == nil || c.paused {
		return v, false
	}
	d := c.snapshot.Dest(id.dest)
	if d == nil || d.Gone() || !d.Reachable() || d.Checksum {
		return v, false
	}
	v.to = d.Target()
	if d.Hop || d.Kind == method.TUN && d.Encap.Sealed() { // the kernel could not name a hop, nor encrypt them
		return v, false
	}
	if d.Kind == method.DR {
		return v, d.Link.Resolved()
	}
	v.way, ok = c.ways[d.Address]
	forNAT := !v.way.NoNAT
	v.way.NoNAT = false // a tunnel does not depend on it
	return v, ok && (d.Kind == method.TUN || d.Address.Is4() != id.six && forNAT)
}

// path returns the path of v for packets of one family.
func (c *Cache) path(v via, six bool) (bpf.Path, error) {
	p := bpf.Path{IPv6: six, Device: v.way.Device, NextHop: v.way.NextHop, MTU: min(v.to.MTU, v.way.MTU)}
	switch v.to.Kind {
	case method.TUN:
		if !v.to.Source.IsValid() {
			v.to.Source = v.way.Source
		}
		t, err := v.to.Tunnel(v.to.Address)
		p.Kind, p.Tunnel = bpf.Tunnel, &t
		return p, err
	case method.DR:
		p.Kind, p.Device, p.MTU = bpf.Link, v.to.Link.Device, v.to.MTU
		p.MAC, p.OwnMAC = v.to.Link.MAC, v.to.Link.OwnMAC
		return p, nil
	case method.NAT:
		p.Kind, p.TUN = bpf.NAT, c.Device
		p.Realserver = netip.AddrPortFrom(v.to.Address, v.to.Port)
		return p, nil
	}
	return p, fmt.Errorf("the fast path has no method %v", v.to.Kind)
}

// get returns the path id, and adds it to the kernel if it is not there. ok is false if there is none. The caller holds
// c.mu.
func (c *Cache) get(id pathID) (ref bpf.Ref, ok bool) {
	p, known := c.paths[id] // revise keeps it true
	if !known {
		v, ok := c.via(id)
		if !ok {
			if v.to.Hop {
				c.refused[SecondChance].Add(1)
			}
			return ref, false
		}
		p = c.add(id, v)
	}
	if p.err != nil {
		r := refusalOf(p.err)
		c.refused[r].Add(1)
		if !c.told[r] {
			c.told[r] = true
			go c.NoPath(p.err)
		}
	}
	return p.ref, p.err == nil
}

// add adds the path id, which is v, to the kernel. The caller holds c.mu.
func (c *Cache) add(id pathID, v via) path {
	p := path{via: v}
	to, err := c.path(v, id.six)
	if err == nil {
		p.ref, err = c.Kernel.Add(to)
	}
	if err != nil && !errors.Is(err, bpf.ErrPathsFull) { // which concerns any realserver
		err = fmt.Errorf("realserver %v: %w", v.to.Address, err)
	}
	if err != nil {
		p.ref, p.err = bpf.Ref{}, err
	}
	c.paths[id] = p
	return p
}

// refusalOf is the reason for err, an error of a path.
func refusalOf(err error) Refusal {
	if errors.Is(err, bpf.ErrPathsFull) {
		return PathsFull
	}
	return PathError
}

// revise takes paths out of the kernel that are not what they should be, and adds those that it has refused before. The
// caller holds c.mu.
func (c *Cache) revise() {
	var failed []pathID
	for id, p := range c.paths {
		if v, ok := c.via(id); ok && v == p.via {
			if p.err != nil {
				failed = append(failed, id)
			}
			continue
		}
		delete(c.paths, id)
		if p.ref != (bpf.Ref{}) {
			if err := c.Kernel.Remove(p.ref); err != nil {
				c.fail(err)
				return
			}
		}
	}
	for _, id := range failed { // there may be room now
		c.add(id, c.paths[id].via)
	}
}
