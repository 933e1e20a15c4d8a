package balancer

import (
	"maps"
	"slices"

	"vstun/balancer/conntab"
	"vstun/encap/packet"
)

// A scheduler chooses a realserver for a new connection. pick may be called by any number of goroutines; the other
// methods are called while nobody else has the scheduler, on a clone.
//
// list is the service's realservers in the kernel's order: a new one is put at the head, so that "the first" is the one
// added last. It has as many realservers, with the same weights, at a pick as it had at the last change that the
// scheduler was told of; everything else of a Dest may be another.
type scheduler interface {
	// pick returns nil when no realserver may have the connection.
	pick(list []*Dest, p *packet.Info, now conntab.Ticks) *Dest
	// added says that list[0] is new.
	added(list []*Dest)
	// removed says that the realserver at index i of the former list has gone.
	removed(list []*Dest, i int)
	// edited says that a realserver's weight is another one, or that this scheduler is new to the list.
	edited(list []*Dest)
	// clone returns a copy of its own state.
	clone() scheduler
}

// settle tells a scheduler that wants to know it that no change follows before the next pick.
func settle(s scheduler) {
	if s, wants := s.(interface{ settle() }); wants {
		s.settle()
	}
}

// kind is what a scheduler is made for. As long as it stays the same, the service keeps its scheduler.
type kind struct {
	name string
	Flags
	port uint16 // of mh, which takes the realservers' into account: the service's, 0 where that has several
}

func (s *Service) kind() kind {
	k := kind{name: s.Scheduler, Flags: s.Flags}
	if s.Scheduler == "mh" && len(s.Ports) == 1 && s.Ports[0].First == s.Ports[0].Last {
		k.port = s.Ports[0].First
	}
	return k
}

// schedulers is the table of all schedulers, by the name that users know: how one is made, and what it looks for.
var schedulers = map[string]struct {
	make   func(kind) scheduler
	choice string
}{
	"rr":   {newRR, "the next in turn"},
	"wrr":  {newWRR, "the next in turn by weight"},
	"lc":   {newLC, "the fewest connections"},
	"wlc":  {newWLC, "the fewest connections for its weight"},
	"sed":  {newSED, "the fewest active connections for its weight, with this one"},
	"nq":   {newNQ, "the first without an active connection, else the fewest for its weight"},
	"fo":   {newFO, "the highest weight"},
	"ovf":  {newOVF, "the highest weight that has no more active connections than that"},
	"twos": {newTwos, "the better of two that are drawn by chance, so that it may be another one the next time"},
	"dh":   {newDH, "the hash of the VIP"},
	"sh":   {newSH, "the hash of the client"},
	"mh":   {newMH, "the Maglev hash of the client"},
	"lblc": {newLBLC, "the one that the VIP had last, if it is not crowded, else the fewest connections for its weight"},
	"lblcr": {newLBLCR, "of those that the VIP has the one with the fewest connections for its weight, if it is not " +
		"crowded, else that of all"},
}

// Choice says which realserver the scheduler of that name chooses.
func Choice(scheduler string) string { return schedulers[scheduler].choice }

// Schedulers are the names of all schedulers, sorted.
func Schedulers() []string { return slices.Sorted(maps.Keys(schedulers)) }

// head is the position before a list's first realserver.
const head = -1
