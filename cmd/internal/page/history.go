package page

import "time"

// The charts' points: a ring for each of them, of ten minutes.
const (
	stepTime = 5 * time.Second
	steps    = 120
)

// series is the points of one chart; that of step n lies at n % steps.
type series [steps]float32

// serviceHistory is a service's charts: new connections, packets and bits a second.
type serviceHistory [3]series

// totalHistory is the director's: new connections, packets in, bits in and drops a second, and the connections in the
// table.
type totalHistory [5]series

// put writes a point for each of these steps.
func (s *series) put(from, to uint64, value float64) {
	for i := max(from, to-min(to, steps)); i < to; i++ {
		s[i%steps] = float32(value)
	}
}

// points appends the points of these steps.
func (s *series) points(from, to uint64) []float32 {
	all := make([]float32, 0, to-from)
	for i := from; i < to; i++ {
		all = append(all, s[i%steps])
	}
	return all
}

// first is the oldest step that is kept of a history that began with step born, for somebody who has all before from.
func first(from, born, now uint64) uint64 {
	return max(min(from, now), born, now-min(now, steps))
}
