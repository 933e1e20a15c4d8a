package balancer

import (
	"vstun/balancer/conntab"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

// unknown is choose for a packet of an unknown connection, which cannot open one. With Options.HashUnknown the
// scheduler decides for TCP packets as it does for a new connection, if it is one of those with Scheduler.Hash: the
// director that has begun the connection has chosen the same realserver. An ACK opens a connection, which is half-open
// until the next packet. A FIN opens one that is closed (Linux ip_vs_proto_tcp.c, with sloppy_tcp). A RST opens none.
func (s *Snapshot) unknown(svc *service, p *packet.Info, now conntab.Ticks, t *Trace) (*Dest, drop.Reason) {
	if !s.options.HashUnknown || !svc.hash || p.Flow.Proto != packet.ProtoTCP ||
		p.TCPFlags&packet.FlagSYN != 0 || p.TCPFlags&(packet.FlagACK|packet.FlagRST) == 0 {
		return nil, drop.NoConnection
	}
	if p.TCPFlags&packet.FlagRST != 0 {
		return s.foresee(svc, p, now)
	}
	d, reason := s.schedule(svc, p, now, t)
	if reason == drop.NoRealserver {
		return nil, drop.NoConnection
	}
	return d, reason
}

// foresee returns the realserver that a new connection of p's flow would get, and changes neither table nor scheduler.
// The scheduler has Scheduler.Hash.
func (s *Snapshot) foresee(svc *service, p *packet.Info, now conntab.Ticks) (*Dest, drop.Reason) {
	if svc.config.Persistence.Timeout > 0 {
		if c, known := s.table.LookupTemplate(svc.client(p.Flow.Src), svc.number, now); known {
			if d, reason := s.dest(c.Dest); reason == drop.Accept && s.keeps(d) {
				return d, drop.Accept
			}
		}
	}
	if d := svc.sched.pick(svc.list, p, now); d != nil {
		return d, drop.Accept
	}
	return nil, drop.NoConnection
}

// unknownReply is Reply for a packet of an unknown connection, whose requests are f after their translation. With
// Options.HashUnknown a TCP packet belongs to the connection that the scheduler would lead to its sender, if there is
// only one such connection: a client that waits for data sends nothing by which the director could know it. A
// realserver that serves a range of ports may have connections of its own from these ports, which are left alone.
func (s *Snapshot) unknownReply(p *packet.Info, b *Backend, f packet.Flow, now conntab.Ticks) *Dest {
	if s.options.HashUnknown && p.Flow.Proto == packet.ProtoTCP && b.first == b.last &&
		p.TCPFlags&(packet.FlagACK|packet.FlagSYN|packet.FlagRST) == packet.FlagACK {
		if at, d := s.sender(p, b, f, now); d != nil {
			p.Flow, p.Hash = b.request(at, f), 0
			if n, result := s.table.Insert(p, d.number, 0, now); result == conntab.Inserted ||
				result == conntab.Hit && n == d.number {
				if s.hints != nil {
					s.hints.put(s.table.Hash(f), b.frontends[at].tag)
				}
				d.bound()
				d.stats.connections.Add(1)
				return d
			}
		}
	}
	p.Flow, p.Hash = f.Reverse(), 0
	return nil
}

// sender returns the realserver that has sent p, and the index of the frontend of p's connection. The realserver is nil
// if no frontend's scheduler leads there, or several do. It changes p.Flow.
func (s *Snapshot) sender(p *packet.Info, b *Backend, f packet.Flow, now conntab.Ticks) (at int, sender *Dest) {
	for i := range b.frontends {
		p.Flow, p.Hash = b.request(i, f), 0
		svc := s.service(p)
		if svc == nil || !svc.hash {
			continue
		}
		d, reason := s.foresee(svc, p, now)
		if reason != drop.Accept || d.number != b.frontends[i].dest || d.Back == nil {
			continue
		}
		if sender != nil {
			return 0, nil
		}
		at, sender = i, d
	}
	return at, sender
}
