package doctor

import (
	"fmt"
	"net/netip"
	"slices"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/routing/query"
)

// vrrp examines the roles of the running director. have are the addresses of this host, with their devices.
func (res *result) vrrp(st *api.DirectorStatus, cfg []config.VRRP, have map[netip.Addr]string) {
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
		if v.SendError != "" && v.SendErrorAge <= recent {
			find(Finding{Severity: Error, Where: where, What: "its advertisements cannot be sent: " + v.SendError,
				Why: "another director will be master, too", Remarks: []string{lastFailed(v.SendErrorAge)}})
		}
		for _, p := range v.Peers {
			switch {
			case p.Last > recent || v.OtherMaster != nil && v.OtherMaster.Address == p.Address:
			case p.Refused != "":
				find(Finding{Severity: Warning, Where: where,
					What: fmt.Sprintf("the packets of %s are refused: %s", p.Address, p.Refused),
					Why:  "two masters are likely", Fix: "director peers", Remarks: []string{p.Fix}})
			case p.Differs:
				find(Finding{Severity: Warning, Where: where, What: p.Address + " has other addresses",
					Why: "keepalived 2.2 ignores such packets, which makes two masters", Fix: "director peers",
					Remarks: []string{"write the same addresses at both"}})
			}
		}
	}
	for i := range cfg {
		at := slices.IndexFunc(st.VRRP, func(v api.VRRP) bool { return v.Name == cfg[i].Name })
		if at < 0 {
			continue
		}
		for _, o := range cfg[i].Owned {
			device, has := have[o.Prefix.Addr()]
			switch master := st.VRRP[at].Role == "master"; {
			case master && !has:
				find(Finding{Severity: Error, Where: "vrrp " + cfg[i].Name,
					What: fmt.Sprintf("it is the master, and this host does not have the address %v", o.Prefix),
					Why:  "what uses the address as its next hop gets no answer",
					Fix:  fmt.Sprintf("ip addr add %v dev %s", o.Prefix, o.Device)})
			case !master && has:
				find(Finding{Severity: Error, Where: "vrrp " + cfg[i].Name,
					What: fmt.Sprintf("it is not the master, and this host has the address %v", o.Prefix),
					Why:  "two hosts answer for it", Fix: fmt.Sprintf("ip addr del %v dev %s", o.Prefix, device)})
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

// elections examines what the running director and its peers know of each other.
func (d *Director) elections(res *result, st *api.DirectorStatus) {
	var owned []netip.Addr
	for i := range d.Config.VRRP {
		for _, o := range d.Config.VRRP[i].Owned {
			owned = append(owned, o.Prefix.Addr())
		}
	}
	have, err := query.LocalLinks(owned...)
	if !res.failed(err) {
		res.vrrp(st, d.Config.VRRP, have)
	}
}

// exchange examines the running director's exchange of connections.
func (d *Director) exchange(res *result, st *api.DirectorStatus) {
	local, err := query.LocalLinks(d.Config.Sync.Peers...)
	if res.failed(err) {
		return
	}
	others := slices.DeleteFunc(slices.Clone(d.Config.Sync.Peers), func(a netip.Addr) bool { return local[a] != "" })
	res.sync(&d.Config.Sync, others, st.Sync)
}
