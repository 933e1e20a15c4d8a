package balancer

import (
	"math/rand/v2"
	"sort"

	"vstun/balancer/conntab"
	"vstun/encap/packet"
)

var random = []Scheduler{
	{Name: "twos", Choice: "the better of two that are drawn by chance, so that it may be another one the next time",
		make: func(kind) scheduler { return &twos{} }},
}

// twos is the power of two choices (Linux net/netfilter/ipvs/ip_vs_twos.c): of two realservers, drawn at random by
// weight, the one with the lower overhead by weight; the first drawn where it is the same.
type twos struct {
	sums []int // of the weights up to each realserver, in list order; a new slice for each change
}

func (s *twos) pick(list []*Dest, _ *packet.Info, _ conntab.Ticks) *Dest {
	a, b := s.draw(list), s.draw(list)
	if a != nil && b != nil && a.connOverhead()*int64(b.Weight) > b.connOverhead()*int64(a.Weight) {
		return b
	}
	return a
}

// draw draws a realserver by weight. It returns nil when none may have the connection. The kernel draws from 0 to the
// sum, both included; so the first realserver with a weight has one more chance.
func (s *twos) draw(list []*Dest) *Dest {
	if len(s.sums) == 0 || s.sums[len(s.sums)-1] == 0 {
		return nil
	}
	for range 16 { // few are overloaded, as a rule
		n := max(1, rand.IntN(s.sums[len(s.sums)-1]+1))
		if d := list[sort.SearchInts(s.sums, n)]; !d.overloaded() {
			return d
		}
	}
	return drawAvailable(list)
}

// drawAvailable is draw by a scan of the whole list.
func drawAvailable(list []*Dest) *Dest {
	sum := 0
	var last *Dest
	for _, d := range list {
		if d.available() {
			sum += d.Weight
			last = d
		}
	}
	n := rand.IntN(sum + 1)
	for _, d := range list {
		if d.available() {
			if n -= d.Weight; n <= 0 {
				return d
			}
		}
	}
	return last
}

func (s *twos) changed(list []*Dest, _ change) {
	s.sums = make([]int, len(list))
	sum := 0
	for i, d := range list {
		sum += d.Weight
		s.sums[i] = sum
	}
}

func (s *twos) clone() scheduler { return &twos{s.sums} }
