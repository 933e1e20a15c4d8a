package page

import (
	"vstun/cmd/internal/api"
)

// sessions is the announcement of VIPs to routers.
type sessions struct {
	State     string    `json:"state"` // as api.BGP has it
	Announced int       `json:"announced"`
	Withdrawn int       `json:"withdrawn"`
	Peers     []session `json:"peers"`
	Trouble   string    `json:"trouble"` // "": none
}

// session is a session with a router.
type session struct {
	Address string  `json:"address"`
	AS      uint32  `json:"as"`
	Up      bool    `json:"up"`
	Since   float64 `json:"since"` // Unix seconds
	VIPs    int     `json:"vips"`
	BFD     string  `json:"bfd"`
	Note    string  `json:"note"` // why it is down, and what to do
}

// sessionsOf returns the sessions, nil for none. before is the result of the last sample.
func (s *sample) sessionsOf(b *api.BGP, before *sessions) *sessions {
	if b == nil {
		return nil
	}
	type key struct {
		address string
		up      bool
	}
	was := map[key]float64{}
	if before != nil {
		for _, p := range before.Peers {
			was[key{p.Address, p.Up}] = p.Since
		}
	}
	out := &sessions{State: b.State, Announced: len(b.Announced), Withdrawn: len(b.Withdrawn), Peers: []session{}}
	up := false
	for i := range b.Peers {
		p := &b.Peers[i]
		v := session{Address: p.Address, AS: p.AS, Up: p.State == "established", VIPs: p.Announced, BFD: p.BFD,
			Note: p.Reason}
		v.Since = moment(s.at, p.Since, was[key{v.Address, v.Up}])
		if p.Fix != "" && v.Note != "" {
			v.Note += ": "
		}
		v.Note += p.Fix
		up = up || v.Up
		out.Peers = append(out.Peers, v)
	}
	if !up {
		out.Trouble = "No router has a session with this director: director doctor"
	}
	return out
}
