package balancer

import (
	"slices"

	"vstun/balancer/conntab"
	"vstun/encap/packet"
)

// Scheduler is a row of the table of schedulers. It describes one scheduler to the programs.
type Scheduler struct {
	Name   string
	Choice string // which realserver it chooses, as the end of "gives it to a new connection: "
	// Flags is true if the scheduler hashes the client's address and has the flags NAME-port and NAME-fallback.
	Flags bool
	// Hash is true if the scheduler decides by the packet and the service's realservers alone: two directors with the
	// same configuration choose the same realserver.
	Hash bool

	make func(kind) scheduler
	port bool // it uses the service's port, see kind.port
}

// schedulers are all schedulers. Each family has its rows in its own file.
var schedulers = slices.Concat(roundRobin, leastLoaded, ranked, hashed, maglevs, local, random)

// Schedulers returns the names of all schedulers, sorted.
func Schedulers() (names []string) {
	for _, row := range schedulers {
		names = append(names, row.Name)
	}
	slices.Sort(names)
	return names
}

// LookupScheduler returns the row of the named scheduler. ok is false for an unknown name.
func LookupScheduler(name string) (row Scheduler, ok bool) {
	i := slices.IndexFunc(schedulers, func(row Scheduler) bool { return row.Name == name })
	if i < 0 {
		return Scheduler{}, false
	}
	return schedulers[i], true
}

// SchedulersWithFlags returns the names of the schedulers that have flags.
func SchedulersWithFlags() (names []string) {
	for _, row := range schedulers {
		if row.Flags {
			names = append(names, row.Name)
		}
	}
	return names
}

// HashSchedulers returns the names of the schedulers with Hash.
func HashSchedulers() (names []string) {
	for _, row := range schedulers {
		if row.Hash {
			names = append(names, row.Name)
		}
	}
	return names
}

// Choice describes the realserver that the service's scheduler chooses.
func (s *Service) Choice() string {
	row, _ := LookupScheduler(s.Scheduler)
	choice := row.Choice
	if row.Flags && s.Flags.Port {
		choice += " and its port, so that another port may have another realserver"
	}
	if row.Hash && s.ByAddress {
		choice += "; the realservers are in order of address"
	}
	return choice
}

// scheduler chooses a realserver for a new connection. Any number of goroutines may call pick. The other methods are
// called on a clone that no other goroutine uses.
//
// list is the service's realservers in the kernel's order: a new one is put at the head, so that "the first" is the one
// added last. At a pick, list has the same number of realservers, with the same weights, as at the last change. Every
// other field of a Dest may differ.
type scheduler interface {
	// pick returns nil when no realserver may have the connection.
	pick(list []*Dest, p *packet.Info, now conntab.Ticks) *Dest
	// changed updates the scheduler after c has changed list.
	changed(list []*Dest, c change)
	// clone returns a copy with its own state.
	clone() scheduler
}

// change is one change of a service's list of realservers.
type change struct {
	kind  changeKind
	index int // of the realserver in the list before it was removed
}

type changeKind uint8

const (
	changeWeight  changeKind = iota // a weight has changed, or the scheduler is new to the list
	changeAdded                     // list[0] is new
	changeRemoved                   // the realserver at index of the former list is gone
)

// settle finishes a series of changes that have led to list: the next call is a pick. It is for schedulers that build a
// table.
func settle(s scheduler, list []*Dest) {
	if s, ok := s.(interface{ settle(list []*Dest) }); ok {
		s.settle(list)
	}
}

// trial returns a scheduler that chooses for p as s does and shares no state with it.
func trial(s scheduler, p *packet.Info) scheduler {
	if s, ok := s.(interface {
		trial(p *packet.Info) scheduler
	}); ok {
		return s.trial(p)
	}
	return s.clone()
}

// kind has the parameters of a scheduler. A service keeps its scheduler while its kind is the same.
type kind struct {
	name string
	Flags
	byAddress bool   // Service.ByAddress, for a scheduler with Hash
	port      uint16 // the service's port, for a scheduler that uses it; 0 if the service has several
}

func (s *Service) kind() kind {
	k := kind{name: s.Scheduler, Flags: s.Flags}
	row, _ := LookupScheduler(s.Scheduler)
	k.byAddress = row.Hash && s.ByAddress
	if row.port && len(s.Ports) == 1 && s.Ports[0].First == s.Ports[0].Last {
		k.port = s.Ports[0].First
	}
	return k
}

// head is the position before a list's first realserver.
const head = -1

// gcd returns the greatest common divisor of a and b. gcd(0, b) is b.
func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
