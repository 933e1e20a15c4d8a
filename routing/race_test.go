//go:build race

package routing

// raceFactor is the factor of all times under the race detector.
const raceFactor = 5
