//go:build race

package e2e

// raceDetector says that the tests run under the race detector: then the programs do, too.
const raceDetector = true
