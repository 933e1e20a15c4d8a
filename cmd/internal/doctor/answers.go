package doctor

import (
	"fmt"
	"net/netip"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/routing/query"
)

// answers examines the routes of answers: whether there is a default route and, if the agent runs, whether answers use
// the agent's routing table, which lowers the MSS.
func (res *result) answers(cfg *config.Realserver, st *api.RealserverStatus) {
	running := st.Program != ""
	for _, six := range []bool{false, true} {
		var vips []netip.Addr
		for _, vip := range cfg.VIPs {
			if vip.Is6() == six {
				vips = append(vips, vip)
			}
		}
		if len(vips) == 0 {
			continue
		}
		hop, ok, err := query.Lookup(outside[six], netip.Addr{})
		if res.failed(err) {
			return
		}
		if !ok || hop.Link == cfg.TUN {
			res.find(Finding{Severity: Warning, Where: map[bool]string{false: "IPv4", true: "IPv6"}[six],
				What: "there is no default route", Why: "answers reach no client beyond this host's own networks",
				Fix: fmt.Sprintf("ip %sroute show", map[bool]string{true: "-6 "}[six]),
				Remarks: []string{fmt.Sprintf("add one: ip %sroute add default via GATEWAY",
					map[bool]string{true: "-6 "}[six])}})
			continue
		}
		if !running {
			res.fine("clients are answered by %s", hop.Link)
			continue
		}
		for _, vip := range vips {
			res.answersOf(cfg, st, vip)
		}
	}
}

// answersOf examines the route of answers from one VIP.
func (res *result) answersOf(cfg *config.Realserver, st *api.RealserverStatus, vip netip.Addr) {
	if _, local, err := query.LocalLink(vip); err != nil || !local {
		if err == nil && cfg.ForeignVIPs && cfg.MSS != config.MSSOff {
			res.forwardedAnswers(cfg, st, vip)
		}
		return // another check records that
	}
	hop, ok, err := query.Lookup(outside[vip.Is6()], vip)
	if res.failed(err) {
		return
	}
	mss := st.MSS
	if vip.Is6() {
		mss = st.MSS6
	}
	where := fmt.Sprintf("VIP %s", vip)
	switch {
	case !ok:
		res.find(Finding{Severity: Error, Where: where, What: "there is no route for its answers",
			Why: "clients get no answer",
			Fix: fmt.Sprintf("ip route get %s from %s; ip rule; ip route show table %d", outside[vip.Is6()], vip,
				cfg.Table)})
	case hop.Link == cfg.TUN:
		res.find(Finding{Severity: Error, Where: where, What: fmt.Sprintf("its answers go back into %s", cfg.TUN),
			Why:     "the agent refuses them there: if it forwarded them, they would come back",
			Fix:     fmt.Sprintf("ip rule; ip route get %s from %s", outside[vip.Is6()], vip),
			Remarks: []string{"remove the rule that leads there"}})
	case cfg.MSS == config.MSSOff:
		res.fine("from %s by %s; mss is off", vip, hop.Link)
	case hop.Table != cfg.Table:
		res.find(Finding{Severity: Warning, Where: where, What: fmt.Sprintf("its answers use routing table %d, not "+
			"%d, the agent's", hop.Table, cfg.Table),
			Why: "servers advertise an MSS with which clients' packets do not fit the tunnel: uploads hang, or are " +
				"slow",
			Fix: "ip rule",
			Remarks: []string{fmt.Sprintf("a rule before priority %d takes them: ip rule del priority NUMBER",
				cfg.Table),
				"or set table to a smaller number"}})
	case hop.AdvMSS == 0 || hop.AdvMSS > mss:
		res.find(Finding{Severity: Warning, Where: where, What: fmt.Sprintf("servers advertise an MSS of %d, and %d "+
			"fits the tunnel", hop.AdvMSS, mss), Why: "clients' packets do not fit the tunnel",
			Fix: "systemctl restart vstun-realserver"})
	default:
		res.fine("from %s by %s, MSS %d", vip, hop.Link, hop.AdvMSS)
	}
}
