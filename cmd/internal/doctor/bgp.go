package doctor

import (
	"fmt"
	"strings"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/words"
	"vstun/routing/announce"
)

// bfdBegins is the time in which BFD comes up after a session, in seconds.
const bfdBegins = 5

// bgp examines the sessions of the running director with routers.
func (res *result) bgp(b *api.BGP) {
	if b == nil {
		return
	}
	up := 0
	for i := range b.Peers {
		if b.Peers[i].State == "established" {
			up++
		}
	}
	for i := range b.Peers {
		p := &b.Peers[i]
		where := "BGP peer " + p.Address
		var remarks []string
		if p.Fix != "" {
			remarks = strings.Split(p.Fix, "; ")
		}
		switch {
		case p.State != "established":
			f := Finding{Severity: Warning, Where: where, What: "there is no session: " + p.Reason,
				Why: "the router sends this director no packets for the VIPs", Fix: "director peers", Remarks: remarks}
			if p.Reason == "" {
				f.What = "there is no session yet"
			}
			if up == 0 {
				f.Severity, f.Why = Error, "no router sends this director packets for the VIPs"
			}
			res.find(f)
		case len(p.Missing) > 0:
			res.find(Finding{Severity: Warning, Where: where, Fix: "director peers", Remarks: remarks,
				What: "it gets no VIPs of " + strings.Join(p.Missing, " and "),
				Why:  "it does not send packets for them here"})
		case p.Routes >= announce.ManyRoutes:
			res.find(Finding{Severity: Warning, Where: where, What: fmt.Sprintf("it sends %d routes", p.Routes),
				Why: "the director keeps them in memory, and uses none", Fix: "director peers", Remarks: remarks})
		case (p.BFD == "down" || p.BFD == "init") && p.Since > bfdBegins:
			res.find(Finding{Severity: Warning, Where: where, What: "BFD is " + p.BFD + " and the session is up",
				Why: "the router finds a dead director only after the hold time", Fix: "director peers",
				Remarks: []string{"switch BFD on for this neighbour at the router; let UDP port 3784 pass"}})
		}
	}
	switch b.State {
	case "standby", "graceful_shutdown":
		res.find(Finding{Severity: Warning, Where: "BGP", What: "this director is on standby",
			Why: "routers send it no packets", Fix: "director active"})
	}
	if len(b.Announced) == 0 && len(b.Elsewhere) < len(b.Withdrawn) && b.State == "announcing" {
		res.find(Finding{Severity: Error, Where: "BGP", What: "no VIP is announced: no service has its quorum",
			Why: "routers send this director no packets", Fix: "director status"})
	}
	if len(res.findings) == 0 {
		text := fmt.Sprintf("%s established, and %s announced", words.Count(up, "session"),
			words.Count(len(b.Announced), "VIP"))
		if n := len(b.Elsewhere); n > 0 {
			text += fmt.Sprintf(", and %s of another master", words.Count(n, "VIP"))
		}
		res.fine("%s", text)
	}
}
