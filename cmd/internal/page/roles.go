package page

import (
	"strconv"

	"vstun/cmd/internal/api"
)

// role is an instance of VRRP.
type role struct {
	Name      string  `json:"name"`
	Interface string  `json:"interface"`
	Role      string  `json:"role"`
	Since     float64 `json:"since"` // Unix seconds
	Priority  string  `json:"priority"`
	Note      string  `json:"note"`     // a fault, a second master, standby, or the reason of the role
	Trouble   bool    `json:"trouble"`  // the note is about a fault or a second master
	Conflict  bool    `json:"conflict"` // another director is master, too
}

// rolesOf returns the instances. before is the result of the last sample.
func (s *sample) rolesOf(all []api.VRRP, before []role) (out []role) {
	was := map[[2]string]float64{}
	for _, r := range before {
		was[[2]string{r.Name, r.Role}] = r.Since
	}
	for i := range all {
		v := &all[i]
		r := role{Name: v.Name, Interface: v.Interface, Role: v.Role, Priority: strconv.Itoa(int(v.Priority)),
			Since: moment(s.at, v.Since, was[[2]string{v.Name, v.Role}]), Note: v.Reason}
		if v.Priority != v.Configured {
			r.Priority += " of " + strconv.Itoa(int(v.Configured))
		}
		switch {
		case v.OtherMaster != nil:
			r.Note, r.Trouble, r.Conflict = v.OtherMaster.Address+" is master, too: "+v.OtherMaster.Fix, true, true
		case v.Fault != "":
			r.Note, r.Trouble = v.Fault, true
		case v.Standby:
			r.Note = "standby"
		}
		out = append(out, r)
	}
	return out
}
