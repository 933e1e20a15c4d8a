package connsync

import (
	"net/netip"
	"time"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/balancer/method"
	"vstun/encap/packet"
)

// threshold is the number of packets that a connection counts for its receiver (Linux ip_vs.h, sysctl_sync_threshold).
const threshold = 3

// Kernel numbers of the states of templates (Linux ip_vs.h, IP_VS_CTPL_S_…).
const (
	templateAssured = 1
	templateStates  = 2
)

// methodFlags has the flags of each forwarding method.
var methodFlags = map[method.Kind]Flags{
	method.TUN: FlagTunnel | FlagNoOutput,
	method.DR:  FlagDirectRoute | FlagNoOutput,
	method.NAT: FlagMasquerade,
}

// firstState returns conntab's state for the kernel's state 0 of a protocol, and the number of the protocol's states
// (Linux ip_vs.h). n is 0 for a protocol without connections.
func firstState(proto uint8) (first conntab.State, n uint16) {
	switch proto {
	case packet.ProtoTCP:
		return conntab.None, uint16(conntab.SynAck-conntab.None) + 1
	case packet.ProtoUDP:
		return conntab.UDP, 1
	case packet.ProtoSCTP:
		return conntab.SCTPNone, uint16(conntab.SCTPClosed-conntab.SCTPNone) + 1
	}
	return 0, 0
}

// recordOf returns the record of a connection, which is no template. timeout is the timeout of its state.
func recordOf(c *balancer.Connection, timeout time.Duration) Record {
	first, _ := firstState(c.Flow.Proto)
	r := Record{Protocol: c.Flow.Proto, Flags: methodFlags[c.Forward], State: uint16(c.State - first),
		Client:  netip.AddrPortFrom(c.Flow.Src, c.Flow.SrcPort),
		Virtual: netip.AddrPortFrom(c.Flow.Dst, c.Flow.DstPort),
		Real:    netip.AddrPortFrom(c.Realserver.Addr(), c.RealserverPort()), Timeout: seconds(timeout)}
	if !c.State.Active() {
		r.Flags |= FlagInactive
	}
	return r
}

// templateRecord returns the record of a template at one VIP and port of its service. Port 0 stands for all ports.
func templateRecord(c *balancer.Connection, proto uint8, vip netip.Addr, port uint16) Record {
	to := c.Realserver
	if to.Port() == 0 {
		to = netip.AddrPortFrom(to.Addr(), port)
	}
	return Record{Protocol: proto, Flags: methodFlags[c.Forward] | FlagTemplate | FlagInactive, State: templateAssured,
		Client: netip.AddrPortFrom(c.Flow.Src, 0), Virtual: netip.AddrPortFrom(vip, port), Real: to,
		Timeout: seconds(c.Timeout)}
}

// seconds rounds up: a timeout of 0 would be the receiver's own.
func seconds(d time.Duration) uint32 { return uint32((d + time.Second - 1) / time.Second) }

// ftpPort is the virtual port for whose connections the kernel has a template of all ports (Linux ip_vs_core.c,
// ip_vs_sched_persist).
const ftpPort = 21

// serviceOf returns the name of r's service, "" for none. Directors may have other names for it.
func (r *Record) serviceOf(s *balancer.Snapshot) string {
	if _, known := s.Service(r.Service); known {
		return r.Service
	}
	port := r.Virtual.Port()
	if name := s.ServiceAt(r.Protocol, r.Virtual.Addr(), port); name != "" || port != 0 || r.Flags&FlagTemplate == 0 {
		return name
	}
	return s.ServiceAt(r.Protocol, r.Virtual.Addr(), ftpPort)
}

// connection converts r, a record of one of the services of s.
func (r *Record) connection(s *balancer.Snapshot) (c balancer.Connection, fault Fault) {
	c.Realserver = r.Real
	c.Service = r.serviceOf(s)
	c.Expires = conntab.MaxTimeout // the table reduces it
	if r.Timeout > 0 {
		c.Expires = time.Duration(r.Timeout) * time.Second
	}
	if r.HasLeft {
		c.Age = max(0, c.Expires-r.Left)
		c.Expires = min(c.Expires, r.Left)
	}
	if r.Flags&FlagTemplate != 0 {
		c.Template, c.Flow.Src = true, r.Client.Addr()
		if r.State >= templateStates {
			return c, BadState
		}
	} else {
		first, n := firstState(r.Protocol)
		if r.State >= n {
			return c, BadState
		}
		c.State, c.Packets = first+conntab.State(r.State), threshold
		c.Flow = packet.Flow{Src: r.Client.Addr(), Dst: r.Virtual.Addr(), SrcPort: r.Client.Port(),
			DstPort: r.Virtual.Port(), Proto: r.Protocol}
	}
	if c.Service == "" {
		return c, UnknownService
	}
	return c, Accepted
}

// halfOpen reports whether the client has not answered the realserver yet.
func halfOpen(s conntab.State) bool {
	return s == conntab.SynRecv || s == conntab.SynAck || s > conntab.SCTPNone && s < conntab.SCTPEstablished
}

// synced reports whether connections in this state are sent (Linux ip_vs_sync.c, ip_vs_sync_conn): none whose client
// has not answered yet.
func synced(s conntab.State) bool {
	switch s {
	case conntab.Established, conntab.FinWait, conntab.Close, conntab.CloseWait, conntab.TimeWait, conntab.UDP,
		conntab.SCTPEstablished, conntab.SCTPShutdownSent, conntab.SCTPShutdownReceived,
		conntab.SCTPShutdownAckSent, conntab.SCTPClosed:
		return true
	}
	return false
}
