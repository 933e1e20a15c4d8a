//go:build race

package routing

// raceFactor is how much longer everything may take under the race detector.
const raceFactor = 5
