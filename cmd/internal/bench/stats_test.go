package bench

import (
	"math"
	"slices"
	"testing"
	"time"
)

func TestSample(t *testing.T) {
	for _, c := range []struct {
		sample              Sample
		median, least, most float64
	}{
		{Sample{7}, 7, 7, 7},
		{Sample{3, 1, 2}, 2, 1, 3},
		{Sample{4, 1, 3, 2}, 2.5, 1, 4},
		{Sample{100, 1, 1, 1, 1}, 1, 1, 100},
	} {
		before := slices.Clone(c.sample)
		least, most := c.sample.Spread()
		if got := c.sample.Median(); got != c.median || least != c.least || most != c.most {
			t.Errorf("%v: %v, %v … %v; want %v, %v … %v", c.sample, got, least, most, c.median, c.least, c.most)
		}
		if !slices.Equal(before, c.sample) {
			t.Errorf("the order of %v became %v", before, c.sample)
		}
	}
	if least, _ := (Sample{}).Spread(); !math.IsNaN(Sample{}.Median()) || !math.IsNaN(least) {
		t.Error("an empty sample has figures")
	}
}

// A round in which everything was twice as slow changes no ratio.
func TestOverIsByRound(t *testing.T) {
	if got := over(Sample{2, 4, 6}, Sample{1, 2, 3}); !slices.Equal(got, Sample{2, 2, 2}) {
		t.Errorf("got %v", got)
	}
	if got := over(Sample{1, 2}, Sample{1}); len(got) != 1 {
		t.Errorf("of two rounds and one: %v", got)
	}
	if got := over(Sample{1, 0, 3}, Sample{0, 0, 1}); !slices.Equal(got, Sample{3}) {
		t.Errorf("with rounds without a value: %v", got)
	}
}

func TestPercentile(t *testing.T) {
	var all []time.Duration
	for i := range 1000 {
		all = append(all, time.Duration(i+1))
	}
	for p, want := range map[float64]time.Duration{0: 1, 0.5: 500, 0.99: 990, 1: 1000} {
		if got := percentile(all, p); got != want {
			t.Errorf("%v: %d, want %d", p, got, want)
		}
	}
	if got := percentile([]int{5}, 0.99); got != 5 {
		t.Errorf("of one: %d", got)
	}
}
