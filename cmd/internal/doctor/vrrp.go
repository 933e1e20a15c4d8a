package doctor

import (
	"fmt"
	"slices"

	"vstun/cmd/internal/api"
)

// vrrp examines the roles of the running director.
func (res *result) vrrp(st *api.DirectorStatus) {
	good := true
	find := func(f Finding) {
		good = false
		res.find(f)
	}
	for i := range st.VRRP {
		v := &st.VRRP[i]
		where := "vrrp " + v.Name
		if v.Fault != "" {
			find(Finding{Severity: Error, Where: where, What: "it takes no part in the election: " + v.Fault,
				Why: "another director has to be master"})
		}
		if o := v.OtherMaster; o != nil {
			find(Finding{Severity: Error, Where: where, What: o.Address + " is master, too",
				Why: "neighbours may send the VIPs' packets to either", Remarks: []string{o.Fix}})
		}
		if v.SendError != "" {
			find(Finding{Severity: Error, Where: where, What: "its advertisements cannot be sent: " + v.SendError,
				Why: "another director will be master, too"})
		}
		for _, p := range v.Peers {
			switch {
			case p.Last > recent || v.OtherMaster != nil && v.OtherMaster.Address == p.Address:
			case p.Refused != "":
				find(Finding{Severity: Warning, Where: where,
					What: fmt.Sprintf("the packets of %s are refused: %s", p.Address, p.Refused),
					Why:  "two masters are likely", Fix: "director peers"})
			case p.Differs:
				find(Finding{Severity: Warning, Where: where, What: p.Address + " has other addresses",
					Why: "keepalived 2.2 ignores such packets, which makes two masters", Fix: "director peers"})
			}
		}
	}
	switch heard := slices.ContainsFunc(st.VRRP, func(v api.VRRP) bool { return v.Received > 0 }); {
	case !good || len(st.VRRP) == 0:
	case heard:
		res.fine("one director is master, and the packets of its peers are accepted")
	default: // backups send nothing
		res.fine("no other director is master; none has been heard since the start")
	}
}
