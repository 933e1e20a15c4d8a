package page

import (
	"slices"
	"strings"

	"vstun/cmd/internal/api"
)

// names is the names whose answers give realservers. List has the first namesShown of them: those with trouble first.
type names struct {
	Count int    `json:"count"`
	List  []name `json:"list"`
}

const namesShown = 100

// name is a name of realservers.
type name struct {
	Name     string  `json:"name"`
	Services string  `json:"services"`
	State    string  `json:"state"`    // "3 addresses"
	Answered float64 `json:"answered"` // Unix seconds; 0: there has been no answer
	Note     string  `json:"note"`     // why it cannot be resolved, or which address is refused
}

// namesOf returns the names, nil for none. before is the result of the last sample.
func (s *sample) namesOf(all []api.Name, before *names) *names {
	if len(all) == 0 {
		return nil
	}
	was := map[string]float64{}
	if before != nil {
		for _, n := range before.List {
			was[n.Name+" "+n.Services] = n.Answered
		}
	}
	out := &names{Count: len(all)}
	for i := range all {
		n := &all[i]
		v := name{Name: n.Name, Services: strings.Join(n.Services, ", "), State: n.Realservers(), Note: n.Error}
		if n.Answered != nil {
			v.Answered = moment(s.at, *n.Answered, was[v.Name+" "+v.Services])
		}
		for _, r := range n.Refused {
			if v.Note != "" {
				v.Note += "; "
			}
			v.Note += r.Address + " is refused: " + r.Reason
		}
		out.List = append(out.List, v)
	}
	slices.SortStableFunc(out.List, func(a, b name) int { return rank(a) - rank(b) })
	out.List = out.List[:min(len(out.List), namesShown)]
	return out
}

// rank is 0 for a name with trouble, else 1.
func rank(n name) int {
	if n.Note != "" {
		return 0
	}
	return 1
}
