package api

import (
	"fmt"
	"strconv"
)

// MaxWeight is the largest weight, as in the configuration.
const MaxWeight = 65535

// ParseWeight reads the weight in a query of POST /weight, the flag --weight of `director set`.
func ParseWeight(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n > MaxWeight {
		return 0, fmt.Errorf("--weight %q is no weight: want 0 (drains it) to %d", s, MaxWeight)
	}
	return n, nil
}
