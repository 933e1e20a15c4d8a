package page

import "time"

// Each chart has a ring of points, of ten minutes.
const (
	stepTime = 5 * time.Second
	steps    = 120
)

// series is the points of one chart. The point of step n is at n % steps.
type series [steps]float32

// serviceHistory is a service's charts: new connections, packets and bits a second.
type serviceHistory [3]series

// totalHistory is the director's charts: new connections, packets in, bits in and drops a second, and connections in
// the table.
type totalHistory [5]series

// put sets the points of the steps from up to to.
func (s *series) put(from, to uint64, value float64) {
	for i := max(from, to-min(to, steps)); i < to; i++ {
		s[i%steps] = float32(value)
	}
}

// points returns the points of the steps from up to to.
func (s *series) points(from, to uint64) []float32 {
	all := make([]float32, 0, to-from)
	for i := from; i < to; i++ {
		all = append(all, s[i%steps])
	}
	return all
}

// first returns the first step to send to a browser that has all steps before from. The history began with step born.
func first(from, born, now uint64) uint64 {
	return max(min(from, now), born, now-min(now, steps))
}
