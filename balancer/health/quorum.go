package health

// Quorum is the weight that must be up for a service to be up, as in keepalived. A service that is up stays up while
// Weight - Hysteresis is up. A service that is down comes up at Weight + Hysteresis. With weight 0 it is down.
type Quorum struct {
	Weight     int // at least 1
	Hysteresis int // less than Weight
}

// Up reports whether a service is up. weight is the total weight of its realservers that are up. was is the former
// result, false for the first call.
func (q Quorum) Up(was bool, weight int) bool {
	if was {
		return weight > 0 && weight >= q.Weight-q.Hysteresis
	}
	return weight >= q.Weight+q.Hysteresis
}
