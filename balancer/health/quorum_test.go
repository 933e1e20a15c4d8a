package health

import "testing"

// TestQuorum: a sequence of weights that are up, and the service's state after each, as in keepalived.
func TestQuorum(t *testing.T) {
	for _, c := range []struct {
		name    string
		q       Quorum
		weights []int
		want    []bool
	}{
		{"one is enough", Quorum{Weight: 1}, []int{0, 1, 5, 1, 0}, []bool{false, true, true, true, false}},
		{"by weight", Quorum{Weight: 10}, []int{9, 10, 9}, []bool{false, true, false}},
		{"hysteresis", Quorum{Weight: 10, Hysteresis: 3}, []int{10, 12, 13, 10, 7, 6, 10, 13},
			[]bool{false, false, true, true, true, false, false, true}},
		{"nothing is never enough", Quorum{Weight: 3, Hysteresis: 2}, []int{5, 1, 0}, []bool{true, true, false}},
		{"nothing is never enough, whatever was", Quorum{Weight: 1, Hysteresis: 0}, []int{0}, []bool{false}},
	} {
		up := false
		for i, w := range c.weights {
			if up = c.q.Up(up, w); up != c.want[i] {
				t.Errorf("%s: weight %d, the %d.: up is %v", c.name, w, i+1, up)
			}
		}
	}
}
