package balancer

import (
	"sync"

	"vstun/balancer/conntab"
	"vstun/encap/packet"
)

var roundRobin = []Scheduler{
	{Name: "rr", Choice: "the next in turn", make: func(kind) scheduler { return &rr{position: head} }},
	{Name: "wrr", Choice: "the next in turn by weight", make: func(kind) scheduler { return &wrr{position: head} }},
}

// rr is round robin (Linux net/netfilter/ipvs/ip_vs_rr.c): the next realserver in list order after the last choice.
type rr struct {
	mu       sync.Mutex
	position int // of the last choice; head: before the first
	cursor   *cursor
}

func (s *rr) notes(c *cursor) { s.cursor = c }

func (s *rr) resume(position, _ int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.position = position
}

func (s *rr) pick(list []*Dest, _ *packet.Info, _ conntab.Ticks) *Dest {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := range list {
		i := (s.position + 1 + n) % len(list)
		if list[i].available() {
			s.position = i
			s.cursor.set(list[i], 0)
			return list[i]
		}
	}
	return nil
}

func (s *rr) changed(_ []*Dest, c change) {
	switch {
	case c.kind == changeAdded && s.position != head:
		s.position++
	case c.kind == changeRemoved && s.position >= c.index:
		s.position--
	}
}

func (s *rr) clone() scheduler {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &rr{position: s.position}
}

// wrr is weighted round robin (Linux net/netfilter/ipvs/ip_vs_wrr.c): the current weight walks down from the highest in
// steps of the greatest common divisor, and the next realserver in list order with at least that weight is chosen.
type wrr struct {
	weights []int // in list order; a new slice for each change
	top     int   // where current begins: highest weight - (step - 1)
	step    int   // greatest common divisor of the weights

	mu       sync.Mutex
	position int // of the last choice; head: before the first
	current  int // least weight of the next choice
	cursor   *cursor
}

func (s *wrr) notes(c *cursor) { s.cursor = c }

func (s *wrr) resume(position, current int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.position, s.current = position, min(max(current, 0), s.top)
	s.settleCurrent()
}

func (s *wrr) pick(list []*Dest, _ *packet.Info, _ conntab.Ticks) *Dest {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.top <= 0 { // no realserver, or none with a weight
		return nil
	}
	position, current := s.position, s.current
	for from := s.position + 1; ; from = 0 {
		for i := from; i < len(s.weights); i++ {
			if s.weights[i] >= s.current && !list[i].overloaded() {
				s.position = i
				s.cursor.set(list[i], s.current)
				return list[i]
			}
		}
		if from == 0 && !s.descend(list) {
			// The kernel's search ends at its start if that is in the last round, else where a cycle begins.
			if s.position, s.current = head, s.top; position != head && current <= s.step {
				s.position, s.current = position, current
			} else {
				s.cursor.set(nil, 0)
			}
			return nil
		}
		if s.current -= s.step; s.current <= 0 {
			s.current = s.top
		}
	}
}

// descend skips the rounds without a choice, after a whole round in which every realserver with the current weight was
// overloaded. It reports whether any realserver can be chosen.
func (s *wrr) descend(list []*Dest) bool {
	heaviest := 0
	for i, w := range s.weights {
		if w > heaviest && !list[i].overloaded() {
			heaviest = w
		}
	}
	if s.current > heaviest {
		s.current -= (s.current - heaviest - 1) / s.step * s.step
	}
	return heaviest > 0
}

// changed is ip_vs_wrr_dest_changed: back to the head of the list.
func (s *wrr) changed(list []*Dest, _ change) {
	s.weights = make([]int, len(list))
	highest, divisor := 0, 0
	for i, d := range list {
		s.weights[i] = d.Weight
		highest, divisor = max(highest, d.Weight), gcd(divisor, d.Weight)
	}
	s.position, s.step = head, max(divisor, 1)
	s.top = highest - (s.step - 1)
	s.settleCurrent()
}

// settleCurrent moves the current weight to one that the steps reach.
func (s *wrr) settleCurrent() {
	switch {
	case s.current > s.top || s.current == 0:
		s.current = s.top
	case s.step > 1:
		s.current = s.current/s.step*s.step + 1
	}
}

func (s *wrr) clone() scheduler {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &wrr{weights: s.weights, top: s.top, step: s.step, position: s.position, current: s.current}
}
