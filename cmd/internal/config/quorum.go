package config

import (
	"fmt"
	"math"
	"slices"
	"strconv"
)

// readQuorum reads the bounds at which a service is up, and the effect of a failure.
func (r *serviceReader) readQuorum(t *table, s *Service) {
	s.Quorum = t.integer("quorum", 1, 1, math.MaxInt32, "1 to 2147483647, a sum of weights")
	s.Hysteresis = t.integer("hysteresis", 0, 0, math.MaxInt32, "0 to quorum - 1")
	if s.Hysteresis >= s.Quorum && t.values["hysteresis"] != nil {
		t.faultAt("hysteresis", "%d is not less than quorum, %d: want 0 to quorum - 1", s.Hysteresis, s.Quorum)
	}
	s.DrainOnFailure = readOnFailure(t, false)
}

// readOnFailure reports whether a realserver that fails drains; absent is the result without the key.
func readOnFailure(t *table, absent bool) (drain bool) {
	return t.word("on_failure", pick(absent, "drain", "remove"), "remove", "drain") == "drain"
}

// checkQuorum refuses a quorum above the sum of the realservers' weights, unless a realserver has weight 0 or a check
// that may raise its weight.
func checkQuorum(t *table, s *Service) {
	sum, open := 0, s.HasNames()
	for _, rs := range s.Realservers {
		sum += rs.Weight
		open = open || rs.Weight == 0 || rs.Check != nil && rs.Check.Row().Weighs
	}
	if need := s.Quorum + s.Hysteresis; len(s.Realservers) > 0 && !open && need > sum && need > 1 {
		t.faultAt("quorum", "%s is more than the weights of all realservers, %d: want at most that", quorumName(s), sum)
	}
}

// warnUnserved warns of a service that has no sorry server and no realserver with a weight or with a check that may
// raise it.
func warnUnserved(t *table, s *Service) {
	realservers := s.EveryRef()
	weighs := func(r RealserverRef) bool { return r.Weight > 0 || r.Check != nil && r.Check.Row().Weighs }
	switch {
	case s.HasSorry() || slices.ContainsFunc(realservers, weighs):
	case len(realservers) == 0:
		t.warnAt("realserver", "missing: the service refuses all clients: want [[service.realserver]] tables")
	default:
		t.warnAt("realserver", "all have weight 0: the service refuses new clients: give one a weight, or name a "+
			"sorry_server")
	}
}

func quorumName(s *Service) string {
	if s.Hysteresis == 0 {
		return strconv.Itoa(s.Quorum)
	}
	return fmt.Sprintf("%d with hysteresis %d", s.Quorum, s.Hysteresis)
}
