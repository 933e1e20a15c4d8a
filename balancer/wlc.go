package balancer

// wlc is weighted least connection (Linux net/netfilter/ipvs/ip_vs_wlc.c): the least overhead by weight.
func newWLC(kind) scheduler { return weightedLeast() }

func weightedLeast() *leastLoad { return &leastLoad{choose: leastOverhead} }
