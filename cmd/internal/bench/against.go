package bench

import "fmt"

// Names of the ways through directors of another version.
const (
	wayOld       = "old director"
	wayOldAll    = "old director, all CPUs"
	wayOldGUEAll = "old director, gue, all CPUs"
)

// againstWays returns the ways for a comparison of two versions.
func againstWays() []opening {
	return []opening{
		{wayPlain, (*bed).plain},
		{wayDirector, throughDirector(ipip, onePinned, newPrograms)},
		{wayOld, throughDirector(ipip, onePinned, oldPrograms)},
		{wayDirectorAll, throughDirector(ipip, allCPUs, newPrograms)},
		{wayOldAll, throughDirector(ipip, allCPUs, oldPrograms)},
		{wayGUEAll, throughDirector(gue, allCPUs, newPrograms)},
		{wayOldGUEAll, throughDirector(gue, allCPUs, oldPrograms)},
	}
}

// noWorse returns the bar of a cost ratio, new : old.
func noWorse() *Bar { return atMost(1.03) }

// against adds the ratios of the two versions. Each ratio has both values from the same round.
func (r *Report) against(res *results, many int) {
	for _, n := range []int{1, many} {
		now, old := res.floods[floodKey{wayDirector, n}], res.floods[floodKey{wayOld, n}]
		r.ratio(fmt.Sprintf("CPU time per packet, %s, new : old", flowCount(n)), now.cpu, old.cpu, noWorse())
		r.figure(fmt.Sprintf("%s, %s: CPU time", wayDirector, flowCount(n)), "ns/packet", now.cpu)
		r.figure(fmt.Sprintf("%s, %s: CPU time", wayOld, flowCount(n)), "ns/packet", old.cpu)
	}
	for _, d := range []struct {
		name     string
		now, old string
	}{{"ipip", wayDirectorAll, wayOldAll}, {"gue", wayGUEAll, wayOldGUEAll}} {
		for _, way := range []struct {
			name     string
			download bool
		}{{"upload", false}, {"download", true}} {
			// The time for a bit is the inverse of the rate.
			r.ratio(fmt.Sprintf("TCP %s, %s, time per bit, new : old", way.name, d.name),
				res.streams[streamKey{d.old, way.download}], res.streams[streamKey{d.now, way.download}], noWorse())
		}
		now, old := res.trips[d.now], res.trips[d.old]
		r.ratio(fmt.Sprintf("round trip, median, %s, new : old", d.name), now.p50, old.p50, noWorse())
		r.ratio(fmt.Sprintf("round trip, 99th percentile, %s, new : old", d.name), now.p99, old.p99, nil)
	}
}
