package director

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/director/plan"
	"vstun/routing/announce"
	"vstun/routing/announce/bgp"
)

// speaker announces VIPs to routers. A *bgp.Speaker is one.
type speaker interface {
	Set(cfg announce.Config) error
	Announce(routes []announce.Route) error
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

// leave takes part in the election of VRRP until ctx is cancelled. Then it gives the roles up, withdraws the VIPs from
// routers, and returns when packets do not come here any more. It calls leaving when it is about to give the roles up.
func (d *director) leave(ctx context.Context, leaving func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	withdrawn := make(chan error, 1)
	go func() { withdrawn <- d.withdraw(ctx) }()
	err := d.roles.run(ctx, leaving)
	cancel()
	return errors.Join(err, <-withdrawn)
}

// withdraw withdraws the VIPs from routers when ctx is cancelled, and returns when they send no packets here any more.
func (d *director) withdraw(ctx context.Context) error {
	<-ctx.Done()
	if !d.speaker.On() {
		return nil
	}
	d.sync.giveTable(false) // other directors get the flows
	return d.speaker.Leave()
}

// bgpStatus returns the state of the announcement by BGP, or nil without it. It may be called from any goroutine.
func (d *director) bgpStatus() *api.BGP {
	st := d.speaker.Status()
	if !st.Config.On() {
		return nil
	}
	out := &api.BGP{AS: st.Config.AS, RouterID: st.Config.RouterID.String(), State: "announcing",
		Announced: []string{}, Withdrawn: []string{}}
	switch {
	case st.Held:
		out.State = "held"
	case st.Graceful:
		out.State = "graceful_shutdown"
	case st.Standby:
		out.State = "standby"
	}
	announced := map[netip.Addr]bool{}
	for i := range st.Routes {
		announced[st.Routes[i].VIP] = true
		out.Announced = append(out.Announced, st.Routes[i].VIP.String())
	}
	for _, vip := range plan.VIPs(d.controller.state().Config) {
		if !announced[vip] {
			out.Withdrawn = append(out.Withdrawn, vip.String())
		}
	}
	for i := range st.Sessions {
		out.Peers = append(out.Peers, bgpPeer(&st.Sessions[i], st.Config.AS))
	}
	return out
}

func bgpPeer(s *announce.Session, as uint32) api.BGPPeer {
	p := api.BGPPeer{Address: s.Peer.Addr.String(), AS: s.Peer.AS, State: s.State.String(), Since: s.Since.Seconds(),
		Reason: s.Reason, Fault: s.Fault.String(), Announced: s.Announced, Missing: s.Missing, BFD: s.BFD, Ups: s.Ups,
		Downs: s.Downs, Sent: s.Sent, Received: s.Received, HoldTime: s.HoldTime.Seconds()}
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
	return all
}
