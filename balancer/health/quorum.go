package health

// Quorum is the weight that must be up for a service to be up, as keepalived has it: with hysteresis a service that is
// up stays so down to Weight - Hysteresis, and one that is down comes up at Weight + Hysteresis. Without any weight it
// is down.
type Quorum struct {
	Weight     int // at least 1
	Hysteresis int // less than Weight
}

// Up says whether a service is up, of whose realservers those that are up have that weight together, and which was up
// before, or not. Before the first time it was not.
func (q Quorum) Up(was bool, weight int) bool {
	if was {
		return weight > 0 && weight >= q.Weight-q.Hysteresis
	}
	return weight >= q.Weight+q.Hysteresis
}
