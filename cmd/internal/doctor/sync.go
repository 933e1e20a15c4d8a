package doctor

import (
	"fmt"
	"net/netip"
	"slices"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/words"
)

// sync examines the running director's exchange of connections. others are the addresses of peers in cfg that are of
// other hosts.
func (res *result) sync(cfg *config.Sync, others []netip.Addr, s *api.Sync) {
	if s == nil {
		return
	}
	if s.SendErrors > 0 && s.Error != "" && s.ErrorAge <= recent {
		res.find(Finding{Severity: Error, Where: "sync", What: "its datagrams cannot be sent: " + s.Error,
			Why: "connections end when another director takes over", Fix: "director peers",
			Remarks: []string{lastFailed(s.ErrorAge)}})
	}
	refused := map[string]bool{} // nothing is taken from these, and the causes of unheard are not theirs
	for _, r := range s.Senders {
		if r.Last <= recent && !usual(r.Reason, s.Peers, r.Address) {
			refused[r.Address] = true
			res.find(Finding{Severity: Warning, Where: "sync with " + r.Address,
				What: "its datagrams are refused: " + r.Reason,
				Why:  "this director does not have the connections of that one", Fix: "director peers",
				Remarks: []string{r.Fix, fmt.Sprintf("the last one was refused %.0f s ago", r.Last)}})
		}
	}
	for i := range s.Peers {
		if p := &s.Peers[i]; p.State == "silent" && s.Mode == "vstun" && !refused[p.Address] {
			res.find(unheard(p.Address, cfg.Port, "nothing has come from it for "+words.Count(int(p.Heard), "second")))
		}
	}
	for _, a := range others {
		if !refused[a.String()] &&
			!slices.ContainsFunc(s.Peers, func(p api.SyncPeer) bool { return p.Address == a.String() }) {
			f := unheard(a.String(), cfg.Port, "nothing has come from it")
			if s.Mode == "ipvs" { // a kernel director without traffic is silent
				f.Severity = Hint
			}
			res.find(f)
		}
	}
	if len(s.Peers) == 0 && len(others) == 0 && len(refused) == 0 {
		f := unheard("", cfg.Port, "no other director has been heard")
		if f.Where = "sync"; s.Mode == "ipvs" {
			f.Severity = Hint
		}
		res.find(f)
	}
	for _, reason := range []string{"unknown_service", "unknown_realserver"} {
		if n := s.Refused[reason]; n > 0 {
			res.find(Finding{Severity: Hint, Where: "sync",
				What:    fmt.Sprintf("%s of peers refused since the start: %s", words.Count(n, "record"), reason),
				Why:     "those connections end when this director takes over",
				Remarks: []string{"configure the same services and realservers at all directors"}})
		}
	}
	if len(res.findings) == 0 {
		res.fine("%s, and %s lost", words.Count(len(s.Peers), "peer"), words.Count(s.Lost, "datagram"))
	}
}

// lastFailed says how old an error of sending is, in seconds.
func lastFailed(age float64) string { return fmt.Sprintf("the last one failed %.0f s ago", age) }

// usual reports whether a refusal of the sender's datagrams is no fault: datagrams that come twice or late, of a peer
// whose others are taken, or that come before it is known.
func usual(reason string, peers []api.SyncPeer, sender string) bool {
	return reason == "unverified" || reason == "replayed" && slices.ContainsFunc(peers, func(p api.SyncPeer) bool {
		return p.Address == sender && p.State == "alive"
	})
}

// unheard returns the finding that nothing comes from another director.
func unheard(address string, port int, what string) Finding {
	return Finding{Severity: Warning, Where: "sync with " + address, What: what,
		Why: "connections end when one director takes over from the other",
		Causes: []string{"the other director does not run, or has no [sync]",
			"the other director has another group, port or interface, or not this one among its peers",
			fmt.Sprintf("a firewall drops UDP port %d between them", port)},
		On: address, Fix: "director peers"}
}
