package balancer

import (
	"maps"
	"slices"

	"vstun/encap/packet"
)

// A scheduler chooses a realserver for a new connection. pick may be called by any number of goroutines; the other methods are called
// while nobody else has the scheduler, on a clone.
//
// list is the service's realservers in the kernel's order: a new one is put at the head, so that "the first" is the one added last.
type scheduler interface {
	// pick returns nil when no realserver may have the connection.
	pick(list []*Dest, p *packet.Info) *Dest
	// added says that list[0] is new.
	added(list []*Dest)
	// removed says that the realserver at index i of the former list has gone.
	removed(list []*Dest, i int)
	// edited says that a realserver's weight is another one, or that this scheduler is new to the list.
	edited(list []*Dest)
	// clone returns a copy of its own state.
	clone() scheduler
}

// schedulers is the table of all schedulers, by the name that users know.
var schedulers = map[string]func(Flags) scheduler{
	"rr":  func(Flags) scheduler { return &rr{position: head} },
	"wrr": func(Flags) scheduler { return &wrr{position: head} },
	"wlc": func(Flags) scheduler { return wlc{} },
}

// Schedulers are the names of all schedulers, sorted.
func Schedulers() []string { return slices.Sorted(maps.Keys(schedulers)) }

// head is the position before a list's first realserver.
const head = -1

// stateless is the part of a scheduler that keeps nothing between two choices.
type stateless struct{}

func (stateless) added([]*Dest)        {}
func (stateless) removed([]*Dest, int) {}
func (stateless) edited([]*Dest)       {}
