package connsync

import (
	"net/netip"
	"time"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/balancer/envelope"
	"vstun/encap/packet"
)

// feedSize is the number of changes between two flushes for which there is room. 40,000 connections a second with three
// changes each, which a hash spreads over the shards, take a third to a half of it.
const feedSize = 1 << 15

// kept is the number of the newest datagrams that are kept for peers that have lost them.
const kept = 1024

// outgoing is the datagram to which records are added, and those that have been sent.
type outgoing struct {
	sync  *Sync
	buf   []byte
	count int // records in buf
	seq   uint64
	sent  [][]byte // by seq modulo kept; empty in the mode IPVS

	kernel []byte // room for a datagram of the mode IPVS
}

func (o *outgoing) init(s *Sync) {
	o.sync, o.buf = s, make([]byte, 0, s.cfg.Size+maxRecordSize)
	o.kernel = make([]byte, headerSize, headerSize+cap(o.buf))
	if s.sealer != nil {
		o.sent = make([][]byte, kept)
	}
}

// overhead is the number of bytes of a datagram beside its records.
func (o *outgoing) overhead() int {
	if o.sync.sealer != nil {
		return envelope.Size
	}
	return headerSize
}

// add adds a record. It sends the datagram first if that is full.
func (o *outgoing) add(r *Record) {
	s := o.sync
	if r.mixed() && s.sealer == nil {
		s.counts.inexpressible++
		return
	}
	if o.count == maxRecords || o.count > 0 && len(o.buf)+r.paddedSize()+o.overhead() > s.cfg.Size {
		o.flush()
	}
	o.buf = appendRecord(o.buf, r)
	o.count++
	s.counts.sent.Records++
}

// flush sends the records that have been added.
func (o *outgoing) flush() {
	if o.count == 0 {
		return
	}
	o.send(records, o.buf, o.count)
	o.buf, o.count = o.buf[:0], 0
}

// send sends a datagram of this kind. In the mode IPVS its kind is records.
func (o *outgoing) send(k kind, body []byte, count int) {
	s := o.sync
	if s.sealer == nil {
		b := append(o.kernel[:headerSize], body...)
		putHeader(b, s.cfg.ID, count)
		o.transmit(b)
		return
	}
	o.seq++
	b := s.sealer.Head(o.sent[o.seq%kept][:0], s.cfg.ID, k, count, s.session, o.seq)
	b = s.sealer.Seal(append(b, body...))
	o.sent[o.seq%kept] = b
	o.transmit(b)
}

func (o *outgoing) transmit(b []byte) {
	c := &o.sync.counts
	if err := o.sync.link.Send(b); err != nil {
		c.sendErrors++
		c.failed(err, o.sync.latest)
		return
	}
	c.sent.Datagrams++
	c.sent.Bytes += uint64(len(b))
}

// sendAgain sends n datagrams from the sequence number from on again, as far as they are kept.
func (o *outgoing) sendAgain(from uint64, n int) {
	for seq := from; seq < from+uint64(min(n, kept)); seq++ {
		if seq == 0 || seq > o.seq || o.seq-seq >= kept {
			continue
		}
		o.sync.counts.resent++
		o.transmit(o.sent[seq%kept])
	}
}

// changes are the changes since the last flush: the newest of each flow.
type changes struct {
	read  []conntab.Change
	list  []change
	index map[packet.Flow]int // in list
	// templates that have been sent since cleared
	templates map[templateID]struct{}
	cleared   conntab.Ticks
	lost      uint64 // of the feed
}

// change is a connection, and whether its client has answered since the last flush.
type change struct {
	conntab.Conn
	assured bool
}

// templateID identifies a template.
type templateID struct {
	client  netip.Addr
	service string
	dest    uint32
}

// A template is sent at most once in templatesEvery. maxTemplates bounds the memory for that.
const (
	templatesEvery = 10 * conntab.PerSecond
	maxTemplates   = 1 << 16
)

func (c *changes) init() {
	c.read, c.index = make([]conntab.Change, 1024), map[packet.Flow]int{}
	c.templates = map[templateID]struct{}{}
}

// sendChanges sends the changes since its last call. If some of them are lost, the table is sent for them.
func (s *Sync) sendChanges(now conntab.Ticks) {
	c := &s.changes
	if now-c.cleared >= templatesEvery || len(c.templates) >= maxTemplates {
		clear(c.templates)
		c.cleared = now
	}
	for n := s.feed.Next(now, c.read); n > 0; n = s.feed.Next(now, c.read) {
		for i := range c.read[:n] {
			conn, assured := &c.read[i].Conn, c.read[i].Kind == conntab.Assured
			if conn.Template || !synced(conn.State) && !(s.givesHalfOpen() && halfOpen(conn.State)) {
				continue
			}
			if i, known := c.index[conn.Flow]; known {
				c.list[i] = change{*conn, c.list[i].assured || assured}
				continue
			}
			c.index[conn.Flow] = len(c.list)
			c.list = append(c.list, change{*conn, assured})
		}
	}
	snapshot := s.balancer.Snapshot()
	for i := range c.list {
		if conn, ok := snapshot.Connection(c.list[i].Conn); ok {
			s.announceBegin(snapshot, conn, c.list[i].assured)
			s.announce(snapshot, &conn, false)
			s.announceTemplateOf(snapshot, &conn, now)
		}
	}
	c.list = c.list[:0]
	clear(c.index)
	if lost := s.feed.Lost(); lost != c.lost {
		c.lost, s.owes = lost, true
	}
}

// announceBegin adds the record of c as it was established, if it is new and has begun to end since, in the mode IPVS.
// A receiver may still have the port's former connection, in whose place it takes none that is not active (Linux
// ip_vs_sync.c, ip_vs_proc_conn).
func (s *Sync) announceBegin(snapshot *balancer.Snapshot, c balancer.Connection, assured bool) {
	if !assured || s.sealer != nil || c.Flow.Proto != packet.ProtoTCP || c.State.Active() {
		return
	}
	c.State = conntab.Established
	s.announce(snapshot, &c, false)
}

// givesHalfOpen reports whether half-open connections are sent.
func (s *Sync) givesHalfOpen() bool { return s.switching && s.sealer != nil }

// announce adds the record of a connection. partly reports whether some of its time may have passed.
func (s *Sync) announce(snapshot *balancer.Snapshot, c *balancer.Connection, partly bool) {
	timeout := s.table.Timeout(c.State)
	r := recordOf(c, timeout)
	if s.sealer != nil {
		r.Left, r.HasLeft, r.Hearsay = c.Expires, partly && c.Expires < timeout-time.Second, c.Reported
		if snapshot.ServiceAt(c.Flow.Proto, c.Flow.Dst, c.Flow.DstPort) != c.Service {
			r.Service = c.Service
		}
	} else if partly { // else directors would keep the other one's dead connections alive, with each transfer anew
		r.Timeout = max(1, min(r.Timeout, seconds(c.Expires)))
	}
	s.out.add(&r)
}

// announceTemplateOf adds the records of the template that has led to c, unless they have been sent moments ago.
func (s *Sync) announceTemplateOf(snapshot *balancer.Snapshot, c *balancer.Connection, now conntab.Ticks) {
	t, ok := snapshot.TemplateOf(c, now)
	if !ok {
		return
	}
	id := templateID{t.Flow.Src, t.Service, t.Dest}
	if _, sent := s.changes.templates[id]; sent {
		return
	}
	s.changes.templates[id] = struct{}{}
	s.announceTemplate(snapshot, &t)
}

// maxTemplateRecords is the largest number of VIPs times ports of a service for whose templates kernel directors get a
// record each.
const maxTemplateRecords = 16

// announceTemplate adds the records of a template. A kernel director has a template for each VIP and port.
func (s *Sync) announceTemplate(snapshot *balancer.Snapshot, c *balancer.Connection) {
	svc, ok := snapshot.Service(c.Service)
	if !ok {
		return
	}
	if c.Held && (s.sealer != nil || c.Timeout <= conntab.TemplateGrace) {
		// It will be extended at its end. The peers' copies must not end before that is announced.
		longer := *c
		longer.Timeout, longer.Expires = c.Timeout+conntab.TemplateGrace, c.Expires+conntab.TemplateGrace
		c = &longer
	}
	n := 0
	for _, vip := range svc.VIPs {
		if vip.Is4() != c.Flow.Src.Is4() {
			continue
		}
		for _, ports := range svc.Ports {
			for port := int(ports.First); port <= int(ports.Last); port++ {
				if n++; n > maxTemplateRecords {
					s.counts.inexpressible++
					return
				}
				r := templateRecord(c, svc.Protocol, vip, uint16(port))
				if port == ftpPort && s.sealer == nil { // the kernel's has all ports of the client's FTP
					r.Virtual = netip.AddrPortFrom(vip, 0)
					r.Real = netip.AddrPortFrom(r.Real.Addr(), 0)
				}
				if s.sealer != nil { // one for all
					r.Service, r.Left, r.HasLeft, r.Hearsay = c.Service, c.Expires, true, c.Reported
					s.out.add(&r)
					return
				}
				s.out.add(&r)
			}
		}
	}
}

// refresh is a walk over the table that goes on for ever. It repeats connections before the peers' copies end.
type refresh struct {
	walker *conntab.Walker
	pass   uint64
	due    float64 // slots that may be visited
}

// A pass of the refresh over the table takes passEvery. A connection is repeated after a third of its timeout, but
// every refreshMost at least, if packets of it have come.
const (
	passEvery   = 5 * time.Second
	refreshMost = 5 * time.Minute
	refreshPart = 3
)

// stillFor is the time since its last packet within which a TCP connection that is closing is repeated: it still
// carries data.
const stillFor = 2 * time.Second

// sendRefresh visits a share of the part of the table that is due, of which elapsed has made more due.
func (s *Sync) sendRefresh(now, elapsed conntab.Ticks, share float64) {
	f := &s.refresh
	slots := float64(2 * s.table.Slots())
	f.due = min(f.due+slots*float64(elapsed)/float64(passEvery/(time.Second/conntab.PerSecond)), slots)
	snapshot := s.balancer.Snapshot()
	for left := f.due * (1 - share); f.due > left; {
		entries, n, more := f.walker.Next(now)
		f.due -= float64(n)
		for i := range entries {
			if s.wantsRefresh(&entries[i]) {
				s.repeat(snapshot, &entries[i])
			}
		}
		if !more {
			f.pass++
		}
	}
}

// wantsRefresh reports whether c is due in this pass. The passes in which a connection is due are spread by its hash.
func (s *Sync) wantsRefresh(c *conntab.Conn) bool {
	if c.Reported || !c.Template && !synced(c.State) {
		return false
	}
	timeout := s.table.Timeout(c.State)
	if c.Template {
		timeout = c.Timeout
	}
	every := max(1, uint64(min(timeout/refreshPart, refreshMost)/passEvery))
	within := time.Duration(every)*passEvery + time.Second
	switch {
	case c.State == conntab.UDP && c.Packets < threshold:
		return false
	case !c.Template && c.State != conntab.UDP && !c.State.Active():
		within = stillFor
	}
	flow := c.Flow
	if c.Template {
		flow.Dst = flow.Src // it has none
	}
	return (s.table.Hash(flow)+s.refresh.pass)%every == 0 && timeout-c.Expires <= within
}

// repeat adds the record of an entry of the table.
func (s *Sync) repeat(snapshot *balancer.Snapshot, c *conntab.Conn) {
	conn, ok := snapshot.Connection(*c)
	switch {
	case !ok:
	case c.Template:
		s.announceTemplate(snapshot, &conn)
	default:
		s.announce(snapshot, &conn, true)
	}
}
