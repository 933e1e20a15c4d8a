package agent

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"
	"time"

	"vstun/cmd/internal/api"
	"vstun/encap/bpf"
	"vstun/encap/endpoint"
)

// heardEvery is the period in which the agent compares the workers' counts, since workers read no clock. It is the
// precision of the time of an address's last packet.
const heardEvery = time.Second

// heard adds up one kind of the workers' counts by address, with the time of each count's last change. Any
// goroutine may use it.
type heard struct {
	of   func(w *endpoint.Worker) *endpoint.Addrs
	mu   sync.Mutex
	seen map[netip.Addr]mark
}

// mark is a count and the time of its last change.
type mark struct {
	packets uint64
	at      time.Time
}

// look returns the current counts, the largest first. taken are the packets that the fast path has taken.
func (h *heard) look(workers []*endpoint.Worker, taken map[netip.Addr]bpf.Taken, now time.Time) []api.Counted {
	counts := map[netip.Addr]uint64{}
	for a, n := range taken {
		if n.Packets > 0 {
			counts[a] = n.Packets
		}
	}
	for _, w := range workers {
		h.of(w).Read(counts)
	}
	return h.counted(counts, now)
}

// counted compares counts with those before.
func (h *heard) counted(counts map[netip.Addr]uint64, now time.Time) []api.Counted {
	h.mu.Lock()
	defer h.mu.Unlock()
	next, all := make(map[netip.Addr]mark, len(counts)), make([]api.Counted, 0, len(counts))
	for a, n := range counts {
		m := h.seen[a]
		if m.packets != n {
			m = mark{n, now}
		}
		next[a] = m
		all = append(all, api.Counted{Address: a.String(), Packets: n, Last: now.Sub(m.at).Seconds()})
	}
	h.seen = next
	slices.SortFunc(all, func(a, b api.Counted) int {
		return cmp.Or(cmp.Compare(b.Packets, a.Packets), cmp.Compare(a.Address, b.Address))
	})
	return all
}
