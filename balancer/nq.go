package balancer

// nq is never queue (Linux net/netfilter/ipvs/ip_vs_nq.c): the first realserver in the list without an active
// connection, else as sed.
func newNQ(kind) scheduler { return &leastLoad{choose: neverQueue} }

func neverQueue(loads []load, list []*Dest) *Dest {
	for i := range loads {
		if loads[i].counts.Active() > 0 {
			continue
		}
		if list[i].available() {
			return list[i]
		}
	}
	return shortestDelay(loads, list)
}
