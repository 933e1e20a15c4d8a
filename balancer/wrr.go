package balancer

import (
	"sync"

	"vstun/encap/packet"
)

// wrr is weighted round robin (Linux net/netfilter/ipvs/ip_vs_wrr.c): the current weight walks down from the highest in steps of the
// greatest common divisor, and the next realserver in list order with at least that weight is chosen.
type wrr struct {
	mu       sync.Mutex
	position int // of the last one chosen; head: before the first
	current  int // weight that a realserver must have
	top      int // where current begins: highest weight - (step - 1)
	step     int // greatest common divisor of the weights
}

func (s *wrr) pick(list []*Dest, _ *packet.Info) *Dest {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.top <= 0 { // no realserver, or none with a weight
		return nil
	}
	// With current at its lowest every realserver with a weight matches, so that this ends after at most two rounds of current.
	for i := s.position + 1; ; i = 0 {
		for ; i < len(list); i++ {
			if list[i].Weight >= s.current {
				s.position = i
				return list[i]
			}
		}
		if s.current -= s.step; s.current <= 0 {
			s.current = s.top
		}
	}
}

// changed is ip_vs_wrr_dest_changed: back to the head of the list, with the current weight moved to one that the new steps reach.
func (s *wrr) changed(list []*Dest) {
	highest, divisor := 0, 0
	for _, d := range list {
		highest, divisor = max(highest, d.Weight), gcd(divisor, d.Weight)
	}
	s.position, s.step = head, max(divisor, 1)
	s.top = highest - (s.step - 1)
	switch {
	case s.current > s.top || s.current == 0:
		s.current = s.top
	case s.step > 1:
		s.current = s.current/s.step*s.step + 1
	}
}

func (s *wrr) added(list []*Dest)          { s.changed(list) }
func (s *wrr) removed(list []*Dest, _ int) { s.changed(list) }
func (s *wrr) edited(list []*Dest)         { s.changed(list) }

func (s *wrr) clone() scheduler {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &wrr{position: s.position, current: s.current, top: s.top, step: s.step}
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
