package balancer

// lc is least connection (Linux net/netfilter/ipvs/ip_vs_lc.c): the least overhead, whatever the weights are above 0.
func newLC(kind) scheduler { return &leastLoad{choose: leastOverhead, flat: true} }
