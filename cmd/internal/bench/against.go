package bench

import "fmt"

// Names of the paths through directors of another version.
const (
	pathOld       = "old director"
	pathOldAll    = "old director, all CPUs"
	pathOldGUEAll = "old director, gue, all CPUs"
)

// againstPaths returns the paths for a comparison of two versions.
func againstPaths() []opening {
	return []opening{
		{pathPlain, (*bed).plain},
		{pathDirector, throughDirector(ipip, onePinned, newPrograms)},
		{pathOld, throughDirector(ipip, onePinned, oldPrograms)},
		{pathDirectorAll, throughDirector(ipip, allCPUs, newPrograms)},
		{pathOldAll, throughDirector(ipip, allCPUs, oldPrograms)},
		{pathGUEAll, throughDirector(gue, allCPUs, newPrograms)},
		{pathOldGUEAll, throughDirector(gue, allCPUs, oldPrograms)},
	}
}

// noWorse returns the bar of a cost ratio, new : old.
func noWorse() *Bar { return atMost(1.03) }

// against adds the ratios of the two versions. Each ratio has both values from the same round.
func (r *Report) against(res *results, many int) {
	for _, n := range []int{1, many} {
		now, old := res.floods[floodKey{pathDirector, n}], res.floods[floodKey{pathOld, n}]
		r.ratio(fmt.Sprintf("CPU time per packet, %s, new : old", flowCount(n)), now.cpu, old.cpu, noWorse())
		r.figure(fmt.Sprintf("%s, %s: CPU time", pathDirector, flowCount(n)), "ns/packet", now.cpu)
		r.figure(fmt.Sprintf("%s, %s: CPU time", pathOld, flowCount(n)), "ns/packet", old.cpu)
	}
	for _, d := range []struct {
		name     string
		now, old string
	}{{"ipip", pathDirectorAll, pathOldAll}, {"gue", pathGUEAll, pathOldGUEAll}} {
		for _, path := range []struct {
			name     string
			download bool
		}{{"upload", false}, {"download", true}} {
			// The time for a bit is the inverse of the rate.
			r.ratio(fmt.Sprintf("TCP %s, %s, time per bit, new : old", path.name, d.name),
				res.streams[streamKey{d.old, path.download}], res.streams[streamKey{d.now, path.download}], noWorse())
		}
		now, old := res.trips[d.now], res.trips[d.old]
		r.ratio(fmt.Sprintf("round trip, median, %s, new : old", d.name), now.p50, old.p50, noWorse())
		r.ratio(fmt.Sprintf("round trip, 99th percentile, %s, new : old", d.name), now.p99, old.p99, nil)
	}
}
