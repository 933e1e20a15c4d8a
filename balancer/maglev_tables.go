package balancer

import "vstun/encap/packet"

// MaglevTable is what the scheduler mh chooses by for a service: its configuration, and its realservers in the order in
// which they take slots.
type MaglevTable struct {
	Service *Service
	Port    uint16 // in the hash of realservers without a port of their own
	Members []MaglevMember
}

// MaglevMember is a realserver in a MaglevTable. Weight is the weight by which it has slots: above 0 also while it
// drains, see Service.ByAddress.
type MaglevMember struct {
	*Dest
	Weight int
}

// MaglevTables returns the tables of all services for TCP whose scheduler is mh and that have no persistence: templates
// lead a persistent client elsewhere.
func (s *Snapshot) MaglevTables() (all []MaglevTable) {
	for _, svc := range s.list {
		m, is := svc.sched.(*mh)
		if !is || svc.config.Protocol != packet.ProtoTCP || svc.config.Persistence.Timeout > 0 {
			continue
		}
		t := MaglevTable{Service: &svc.config, Port: m.port}
		for _, i := range tableOrder(svc.list, m.byAddress) {
			t.Members = append(t.Members, MaglevMember{svc.list[i], m.members[i].Weight})
		}
		all = append(all, t)
	}
	return all
}
