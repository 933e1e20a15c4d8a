package page

import (
	"math"
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

// exchange is the exchange of connections with other directors.
type exchange struct {
	Mode     string     `json:"mode"`
	Sent     uint64     `json:"sent"`     // records
	Received uint64     `json:"received"` // records
	Lost     uint64     `json:"lost"`     // datagrams
	Peers    []syncPeer `json:"peers"`
	Trouble  string     `json:"trouble"` // "": none
}

// syncPeer is another director. Its times are in Unix seconds.
type syncPeer struct {
	Address string  `json:"address"`
	Alive   bool    `json:"alive"`
	Heard   float64 `json:"heard"`
	Records uint64  `json:"records"`
	Lost    uint64  `json:"lost"`
	Table   float64 `json:"table"` // since when its whole table is here; 0: it is not
}

// recentRefusal is the age up to which a refused datagram is trouble, in seconds.
const recentRefusal = 60

// exchangeOf returns the exchange, nil for none.
func (s *sample) exchangeOf(all *api.Sync) *exchange {
	if all == nil {
		return nil
	}
	at := func(ago float64) float64 { return math.Round(float64(s.at.UnixMilli())/1e3 - ago) }
	e := &exchange{Mode: all.Mode, Sent: all.Sent.Records, Received: all.Received.Records, Lost: all.Lost,
		Peers: []syncPeer{}}
	alive := all.Mode == "ipvs" // a kernel director without traffic is silent
	for i := range all.Peers {
		p := &all.Peers[i]
		o := syncPeer{Address: p.Address, Alive: p.State == "alive", Heard: at(p.Heard), Records: p.Received.Records,
			Lost: p.Lost}
		if p.Bulk != nil {
			o.Table = at(*p.Bulk)
		}
		alive = alive || o.Alive
		e.Peers = append(e.Peers, o)
	}
	for _, r := range all.Senders {
		if r.Last <= recentRefusal && r.Reason != "unverified" && r.Reason != "replayed" {
			e.Trouble = "The connections of " + r.Address + " are refused (" + r.Reason + "): " + r.Fix
		}
	}
	if e.Trouble == "" && !alive {
		e.Trouble = "No other director exchanges connections with this one: director doctor"
	}
	return e
}
