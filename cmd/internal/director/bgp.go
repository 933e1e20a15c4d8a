package director

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/director/plan"
	"vstun/routing/announce"
	"vstun/routing/announce/bgp"
)

// routers is the director's part in BGP. The zero value has no speaker: newSpeaker makes it.
type routers struct {
	*bgp.Speaker
	give func(whole bool) // sends connections to the peers, before they get the packets: see peerSync.giveTable
}

// newSpeaker returns the BGP speaker, which has no configuration yet.
func newSpeaker(log *slog.Logger) *bgp.Speaker {
	return bgp.New(func(e bgp.Event) {
		switch {
		case e.Up:
			log.Info("BGP session up", "peer", e.Peer)
		case e.Ended:
			log.Warn("BGP session down", "peer", e.Peer, "reason", e.Reason)
		default:
			log.Warn("no BGP session", "peer", e.Peer, "reason", e.Reason)
		}
	})
}

func (r *routers) name() string { return "BGP" }

// set puts the speaker's configuration in force. On an error sessions may have ended.
func (r *routers) set(d *plan.Desired) error { return r.Set(d.Speaker) }

func (r *routers) announce(_, is *state) error { return r.Announce(is.Routes) }

func (r *routers) shared() bool { return r.On() }

func (r *routers) standby(bool) {} // the plan yields the routes

// leave withdraws the VIPs, and returns when routers send no packets here any more.
func (r *routers) leave() error {
	if !r.On() {
		return nil
	}
	r.give(false)
	return r.Leave()
}

func (r *routers) close() error { return r.Close() }

// status sets the state of the announcement by BGP, if there is one.
func (r *routers) status(of *state, st *api.DirectorStatus) {
	is := r.Status()
	if !is.Config.On() {
		return
	}
	out := &api.BGP{AS: is.Config.AS, RouterID: is.Config.RouterID.String(), State: "announcing",
		Announced: []string{}, Withdrawn: []string{}}
	switch {
	case of.inputs.Held:
		out.State = "held"
	case of.inputs.Standby && is.Graceful:
		out.State = "graceful_shutdown"
	case of.inputs.Standby:
		out.State = "standby"
	}
	announced := map[netip.Addr]bool{}
	for i := range is.Routes {
		announced[is.Routes[i].VIP] = true
		out.Announced = append(out.Announced, is.Routes[i].VIP.String())
	}
	withdrawn := slices.DeleteFunc(plan.VIPs(of.Config), func(vip netip.Addr) bool { return announced[vip] })
	out.Withdrawn = append(out.Withdrawn, names(withdrawn)...)
	out.Elsewhere = names(of.inputs.Elsewhere(withdrawn))
	for i := range is.Sessions {
		out.Peers = append(out.Peers, bgpPeer(&is.Sessions[i], is.Config.AS))
	}
	st.BGP = out
}

func bgpPeer(s *announce.Session, as uint32) api.BGPPeer {
	p := api.BGPPeer{Address: s.Peer.Addr.String(), AS: s.Peer.AS, State: s.State.String(), Since: s.Since.Seconds(),
		Reason: s.Reason, Fault: s.Fault.String(), Announced: s.Announced, Missing: s.Missing,
		Routes: s.Routes, BFD: s.BFD, Ups: s.Ups, Downs: s.Downs, Sent: s.Sent, Received: s.Received,
		HoldTime: s.HoldTime.Seconds()}
	if s.Local.IsValid() {
		p.Local = s.Local.String()
	}
	if s.RouterID.IsValid() {
		p.RouterID = s.RouterID.String()
	}
	p.Fix = strings.Join(sessionFixes(s, as), "; ")
	return p
}

// sessionFixes returns what to do about a session that is down, or that lacks something.
func sessionFixes(s *announce.Session, as uint32) (all []string) {
	switch s.Fault {
	case announce.Refused:
		all = append(all, "start BGP at the peer; let TCP port 179 pass")
	case announce.Unanswered:
		all = append(all, "let TCP port 179 pass in both directions; set the same password at both, or at neither")
	case announce.Unreachable:
		if s.Peer.Multihop == 0 && !s.Peer.Internal(as) {
			all = append(all, "check the peer's address and cable; set multihop if it is no neighbour")
		} else {
			all = append(all, "check the peer's address and the route to it; raise multihop")
		}
	case announce.Closed:
		all = append(all, "add this director's address as a neighbour at the peer")
	case announce.WrongAS:
		all = append(all, "set as of the peer to the peer's own AS")
	case announce.Rejected:
		all = append(all, "look in the peer's log; set this director's AS there")
	case announce.HoldTimer, announce.BFDDown:
		all = append(all, "check that the peer runs, and the link to it")
	case announce.Unacceptable, announce.NoSocket:
		all = append(all, "look in the log of the director and of the peer")
	}
	for _, f := range s.Missing {
		if s.Peer.Addr.Is4() == (f == "ipv4") || s.Peer.NextHop.IsValid() {
			all = append(all, "switch "+f+" unicast on at the peer, or leave it out of families")
		} else {
			all = append(all, "set next_hop of the peer for "+f+", or leave it out of families")
		}
	}
	if s.Routes >= announce.ManyRoutes {
		all = append(all, fmt.Sprintf("let the router send no routes: the director keeps %d, and uses none", s.Routes))
	}
	return all
}
