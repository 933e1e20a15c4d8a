package bench

import (
	"math"
	"slices"
)

// Sample has one figure's value from each round, in their order.
type Sample []float64

// Median is the middle value, or the mean of the two in the middle; NaN for none.
func (s Sample) Median() float64 {
	if len(s) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(s))
	half := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[half]
	}
	return (sorted[half-1] + sorted[half]) / 2
}

// Spread is the smallest and the largest value; NaN for none.
func (s Sample) Spread() (least, most float64) {
	if len(s) == 0 {
		return math.NaN(), math.NaN()
	}
	return slices.Min(s), slices.Max(s)
}

// each returns f of each value of a and b's value from the same round. A slowdown of a whole round so cancels out in a
// ratio.
func each(a, b Sample, f func(a, b float64) float64) Sample {
	n := min(len(a), len(b))
	out := make(Sample, n)
	for i := range n {
		out[i] = f(a[i], b[i])
	}
	return out
}

// over returns the ratio of a to b for each round, without those in which b is 0: on a machine that is too busy nothing
// may arrive, and a process may get no CPU time.
func over(a, b Sample) Sample {
	ratios := each(a, b, func(a, b float64) float64 { return a / b })
	return slices.DeleteFunc(ratios, func(v float64) bool { return math.IsInf(v, 0) || math.IsNaN(v) })
}

func minus(a, b float64) float64 { return a - b }

// times returns all values multiplied by f.
func (s Sample) times(f float64) Sample {
	out := make(Sample, len(s))
	for i, v := range s {
		out[i] = f * v
	}
	return out
}

// percentile returns the value at the share p of the sorted values (nearest rank).
func percentile[T any](sorted []T, p float64) T {
	rank := int(math.Ceil(p * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}
