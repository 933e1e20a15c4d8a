//go:build !race

package e2e

// raceDetector reports that the tests run under the race detector. Then the programs do, too.
const raceDetector = false
