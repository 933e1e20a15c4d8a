package balancer

import (
	"sync"

	"vstun/balancer/conntab"
	"vstun/encap/packet"
)

// wrr is weighted round robin (Linux net/netfilter/ipvs/ip_vs_wrr.c): the current weight walks down from the highest in
// steps of the greatest common divisor, and the next realserver in list order with at least that weight is chosen.
type wrr struct {
	weights []int // in list order; a slice that is made anew for each change
	top     int   // where current begins: highest weight - (step - 1)
	step    int   // greatest common divisor of the weights

	mu       sync.Mutex
	position int // of the last one chosen; head: before the first
	current  int // weight that a realserver must have
}

func newWRR(kind) scheduler { return &wrr{position: head} }

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
				return list[i]
			}
		}
		if from == 0 && !s.descend(list) {
			// Where the kernel's search ends: back at the start if it began in the last round, else where a cycle
			// begins.
			if s.position, s.current = head, s.top; position != head && current <= s.step {
				s.position, s.current = position, current
			}
			return nil
		}
		if s.current -= s.step; s.current <= 0 {
			s.current = s.top
		}
	}
}

// descend leaves out the rounds in which no realserver can be chosen, after a whole round in which all with the current
// weight were overloaded. It reports whether a realserver can be chosen.
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

// changed is ip_vs_wrr_dest_changed: back to the head of the list, with the current weight moved to one that the new
// steps reach.
func (s *wrr) changed(list []*Dest) {
	s.weights = make([]int, len(list))
	highest, divisor := 0, 0
	for i, d := range list {
		s.weights[i] = d.Weight
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
	return &wrr{weights: s.weights, top: s.top, step: s.step, position: s.position, current: s.current}
}

// gcd is the greatest common divisor; that of 0 and a is a.
func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
