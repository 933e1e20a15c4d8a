package balancer

import (
	"sync"

	"vstun/balancer/conntab"
	"vstun/encap/packet"
)

// rr is round robin (Linux net/netfilter/ipvs/ip_vs_rr.c): the next realserver in list order behind the last one
// chosen.
type rr struct {
	mu       sync.Mutex
	position int // of the last one chosen; head: before the first
}

func newRR(kind) scheduler { return &rr{position: head} }

func (s *rr) pick(list []*Dest, _ *packet.Info, _ conntab.Ticks) *Dest {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := range list {
		i := (s.position + 1 + n) % len(list)
		if list[i].available() {
			s.position = i
			return list[i]
		}
	}
	return nil
}

func (s *rr) added([]*Dest) {
	if s.position != head {
		s.position++
	}
}

func (s *rr) removed(_ []*Dest, i int) {
	if s.position >= i {
		s.position--
	}
}

func (s *rr) edited([]*Dest) {}

func (s *rr) clone() scheduler {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &rr{position: s.position}
}
