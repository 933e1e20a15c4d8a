package page

import (
	"strconv"
	"time"
)

// answer is the changes since a sample, or everything.
type answer struct {
	Boot     string          `json:"boot"`
	Page     string          `json:"page"`   // digest of the files
	Number   uint64          `json:"number"` // of the sample
	Full     bool            `json:"full"`   // it is everything: the browser forgets the rest
	Now      int64           `json:"now"`    // Unix milliseconds
	Age      float64         `json:"age"`    // of the sample, in seconds
	Step     uint64          `json:"step"`   // steps of the history that are complete
	Director directorState   `json:"director"`
	Totals   totals          `json:"totals"`
	Drops    []drop          `json:"drops"`
	Leaving  leaving         `json:"leaving"`
	Claimed  []conflict      `json:"conflicts"`
	Roles    []role          `json:"roles"`
	Exchange *exchange       `json:"exchange,omitempty"`
	Sessions *sessions       `json:"sessions,omitempty"`
	Names    *names          `json:"names,omitempty"`
	Services []serviceUpdate `json:"services"`
}

type serviceUpdate struct {
	ID          int                `json:"id"`
	State       *serviceState      `json:"state,omitempty"`
	Figures     *figures           `json:"figures,omitempty"`
	Realservers []realserverUpdate `json:"realservers,omitempty"`
}

type realserverUpdate struct {
	Index   int              `json:"i"` // in its service
	State   *realserverState `json:"state,omitempty"`
	Figures *figures         `json:"figures,omitempty"`
}

// live returns the changes since the sample of that number, or nil before the first sample.
func (p *Page) live(since uint64, now time.Time) *answer {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := &p.sample
	if s.number == 0 {
		return nil
	}
	if since < s.layout || since > s.number {
		since = 0
	}
	a := &answer{Boot: p.boot, Number: s.number, Full: since == 0, Now: now.UnixMilli(), Age: now.Sub(s.at).Seconds(),
		Step: s.step, Director: s.director,
		Totals: s.totals, Drops: s.drops, Leaving: s.leaving, Claimed: s.claimed, Roles: s.roles,
		Exchange: s.exchange, Sessions: s.sessions, Names: s.names}
	for _, svc := range s.services {
		u := serviceUpdate{ID: svc.id}
		if svc.stateAt > since {
			u.State = svc.state
		}
		if svc.figuresAt > since {
			u.Figures = svc.figures
		}
		for i, r := range svc.realservers {
			c := realserverUpdate{Index: i}
			if r.stateAt > since {
				c.State = r.state
			}
			if r.figuresAt > since {
				c.Figures = r.figures
			}
			if c.State != nil || c.Figures != nil {
				u.Realservers = append(u.Realservers, c)
			}
		}
		if u.State != nil || u.Figures != nil || u.Realservers != nil {
			a.Services = append(a.Services, u)
		}
	}
	return a
}

// histories is points of charts. The last point of each is of step To.
type histories struct {
	To       uint64                 `json:"to"`
	Seconds  float64                `json:"seconds"` // a step
	Total    [][]float32            `json:"total"`
	Services map[string][][]float32 `json:"services"` // by id
}

// history returns the points from step after on, of the director and of the services with these ids.
func (p *Page) history(after uint64, ids []int) histories {
	wanted := map[int]bool{}
	for _, id := range ids {
		wanted[id] = true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s := &p.sample
	h := histories{To: s.step, Seconds: stepTime.Seconds(), Services: map[string][][]float32{}}
	for i := range s.total {
		h.Total = append(h.Total, s.total[i].points(first(after, 0, s.step), s.step))
	}
	for _, svc := range s.services {
		if !wanted[svc.id] {
			continue
		}
		var all [][]float32
		for i := range svc.history {
			all = append(all, svc.history[i].points(first(after, svc.born, s.step), s.step))
		}
		h.Services[strconv.Itoa(svc.id)] = all
	}
	return h
}
