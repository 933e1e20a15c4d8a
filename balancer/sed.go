package balancer

// sed is shortest expected delay (Linux net/netfilter/ipvs/ip_vs_sed.c): the least number of active connections by
// weight, the new one included.
func newSED(kind) scheduler { return &leastLoad{choose: shortestDelay} }

func shortestDelay(loads []load, list []*Dest) *Dest {
	var best *Dest
	least, weight := int64(1), int64(0) // as in leastOverhead
	for i := range loads {
		l := &loads[i]
		delay := int64(l.counts.Active()) + 1
		if least*l.weight > delay*weight && !list[i].overloaded() {
			best, least, weight = list[i], delay, l.weight
		}
	}
	return best
}
