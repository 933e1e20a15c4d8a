package doctor

import (
	"fmt"
	"slices"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/words"
	"vstun/encap"
)

// tables examines whether the agents of realservers have the running director's tables.
func (d *Director) tables(res *result, st *api.DirectorStatus) {
	t := st.Tables
	if t == nil {
		return
	}
	for _, a := range t.Agents {
		switch {
		case a.Heard == nil:
			f := Finding{Severity: Warning, Where: "realserver " + a.Address,
				What: "its agent has not answered the director's tables",
				Why:  "packets that come to the wrong realserver end their connections",
				Causes: []string{"its agent has no [second_chance], or another key",
					fmt.Sprintf("a firewall drops UDP port %d there, or the answers", d.Config.SecondChance.Port)},
				Fix: "on " + a.Address + ": realserver doctor"}
			if d.byGUE(a.Address) {
				f.Remarks = []string{"GLB's redirect module in place of an agent needs no tables"}
			}
			res.find(f)
		case !a.Current && *a.Heard > 3*tablesEvery:
			res.find(Finding{Severity: Warning, Where: "realserver " + a.Address,
				What: "its agent has not got the director's last tables",
				Why:  "packets that come to the wrong realserver end their connections",
				Fix:  "on " + a.Address + ": realserver doctor"})
		}
	}
	for _, name := range t.TooLarge {
		res.find(Finding{Severity: Warning, Where: "service " + name, What: "its table is too large for a datagram",
			Why: "its realservers give no second chance", Fix: "fewer realservers or VIPs in the service"})
	}
	if len(res.findings) == 0 {
		res.fine("%s", words.Count(len(t.Agents), "agent"))
	}
}

// byGUE reports whether packets to a realserver go by gue.
func (d *Director) byGUE(address string) bool {
	return slices.ContainsFunc(d.Config.Services, func(s config.Service) bool {
		return slices.ContainsFunc(s.Realservers, func(r config.RealserverRef) bool {
			return r.Address.String() == address && r.Encap == encap.KindGUE.String()
		})
	})
}

// tablesEvery is the period of tables, in seconds.
const tablesEvery = 10

// secondChance examines the running agent's second chances.
func (res *result) secondChance(c *api.SecondChance) {
	if c == nil {
		return
	}
	switch {
	case c.Refused["forged"] > 0:
		res.find(Finding{Severity: Warning, What: "datagrams with tables are refused: forged",
			Why: "packets of unknown connections get no second chance by these tables",
			Fix: "the same key here and at the directors, then realserver reload"})
	case len(c.Directors) == 0:
		res.find(Finding{Severity: Warning, What: "no director has sent tables",
			Why: "packets of unknown connections get no second chance",
			Causes: []string{"no director has [second_chance]",
				"no service of a director has the scheduler mh, and this host as its realserver by ipip, gre or gue",
				fmt.Sprintf("a firewall drops UDP port %d", c.Port)},
			Fix: "at the director: director doctor"})
	}
	for _, d := range c.Directors {
		if d.Heard > 3*tablesEvery {
			res.find(Finding{Severity: Warning, Where: "director " + d.Address,
				What: fmt.Sprintf("no tables have come from director %s for %s", d.Address,
					words.Count(int(d.Heard), "second")),
				Why: "packets of unknown connections get no second chance by its last changes",
				Causes: []string{"it has ended, or has this host as its realserver no more",
					fmt.Sprintf("a firewall drops UDP port %d", c.Port)},
				Fix: "on " + d.Address + ": director doctor"})
		}
	}
	if c.Error != "" {
		res.find(Finding{Severity: Warning, What: "packets cannot be sent on: " + c.Error,
			Why: "their connections end", Fix: "realserver status"})
	}
	if len(res.findings) == 0 {
		res.fine("tables of %s", words.Count(len(c.Directors), "director"))
	}
}
