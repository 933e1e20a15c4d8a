package vrrp

import (
	"maps"
	"net/netip"
	"slices"
	"time"
)

// Counts are the events of an instance since it exists.
type Counts struct {
	Sent      uint64   // advertisements; one to several peers counts once
	Resigned  uint64   // those with priority 0
	Received  uint64   // accepted advertisements
	Differing uint64   // accepted ones with other addresses
	Refused   Refusals // packets
	Elected   uint64   // changes to Master
	Rivals    uint64   // packets of another master while this one is master
	Conflicts uint64   // times that two masters were found
	Paused    uint64   // times that the program was paused for so long that another master may be there
	Failed    uint64   // packets that the kernel refused to send
}

// Status is the state of an instance.
type Status struct {
	Instance
	Role           Role
	Since          time.Duration // in this role
	Reason         string        // of the role
	Fault          string        // ""; why it cannot take part
	Standby        bool
	Held           bool
	InForce        uint8         // the priority, with what the instance depends on
	MasterInterval time.Duration // of the master; of this instance, if there is none
	Tracks         []Track
	Peers          []PeerStatus
	// Rival is another master beside this one; the zero Addr: there is none.
	Rival        netip.Addr
	RivalRefused Refusal       // why its packets are refused; Accepted: they are not
	SendError    error         // of a packet of the last advertisement; nil: all were sent
	SendErrorAge time.Duration // since SendError
	Counts       Counts
}

// PeerStatus is another router of an instance.
type PeerStatus struct {
	Addr     netip.Addr
	Priority uint8
	Age      time.Duration // since its last packet
	Refusal  Refusal       // of its last packet
	Differs  bool          // it has other addresses
}

// Status returns the states of the instances, in the order of Set.
func (e *Election) Status(now Moment) []Status {
	all := make([]Status, 0, len(e.all))
	for _, i := range e.all {
		s := Status{Instance: i.Instance, Role: i.role, Since: now.Boot - i.since.Boot, Reason: i.reason,
			Fault: i.fault, Standby: e.standby, Held: e.held, InForce: i.priority(), MasterInterval: i.masterInterval,
			Tracks: e.tracks[i.Name], SendError: i.sendErr, Counts: i.counts}
		if i.sendErr != nil {
			s.SendErrorAge = now.Boot - i.failedAt
		}
		if i.rival.reported {
			s.Rival, s.RivalRefused = i.rival.addr, i.rival.refusal
		}
		for _, a := range slices.SortedFunc(maps.Keys(i.peers), netip.Addr.Compare) {
			p := i.peers[a]
			s.Peers = append(s.Peers, PeerStatus{a, p.priority, now.Boot - p.last, p.refusal, p.differs})
		}
		all = append(all, s)
	}
	return all
}

// Roles are the roles of the instances by their names.
type Roles map[string]Role

// Roles returns the roles of the instances.
func (e *Election) Roles() Roles {
	all := make(Roles, len(e.all))
	for _, i := range e.all {
		all[i.Name] = i.role
	}
	return all
}
