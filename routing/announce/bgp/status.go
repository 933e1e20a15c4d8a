package bgp

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/osrg/gobgp/v4/api"

	"vstun/routing/announce"
)

// Status returns the state of the speaker.
func (s *Speaker) Status() announce.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := announce.Status{Config: s.cfg}
	if s.engine == nil {
		return st
	}
	for i := range s.wanted {
		if r, known := s.inRIB[s.wanted[i].VIP]; known {
			st.Routes = append(st.Routes, r.Route)
			st.Graceful = st.Graceful || r.graceful()
		}
	}
	engine := map[netip.Addr]*api.Peer{}
	_ = s.engine.ListPeer(context.Background(), &api.ListPeerRequest{}, func(p *api.Peer) {
		if a, err := netip.ParseAddr(p.GetState().GetNeighborAddress()); err == nil {
			engine[a] = p
		}
	})
	for i := range s.cfg.Peers {
		st.Sessions = append(st.Sessions, s.session(&s.cfg.Peers[i], engine[s.cfg.Peers[i].Addr], st.Routes))
	}
	return st
}

func (s *Speaker) session(p *announce.Peer, e *api.Peer, routes []announce.Route) announce.Session {
	out := announce.Session{Peer: *p}
	s.sessions.fill(&out)
	if e == nil {
		return out
	}
	state := e.GetState()
	out.Sent, out.Received = state.GetMessages().GetSent().GetTotal(), state.GetMessages().GetReceived().GetTotal()
	if p.BFD.On() {
		out.BFD = bfdStates[state.GetBfdState().GetSessionState()]
	}
	if state.GetSessionState() != api.PeerState_SESSION_STATE_ESTABLISHED {
		out.State = announce.Down
		return out
	}
	out.State, out.Fault, out.Reason = announce.Established, announce.None, ""
	out.Local, _ = netip.ParseAddr(e.GetTransport().GetLocalAddress())
	out.RouterID, _ = netip.ParseAddr(state.GetRouterId())
	out.HoldTime = time.Duration(e.GetTimers().GetState().GetNegotiatedHoldTime()) * time.Second
	for _, f := range e.GetAfiSafis() {
		out.Routes += int(f.GetState().GetReceived())
	}
	has := families(state.GetRemoteCap())
	for i := range routes {
		if vip := routes[i].VIP; p.Carries(vip) && has[vip.Is6()] {
			out.Announced++
		}
	}
	for _, ipv6 := range []bool{false, true} {
		name, configured := "ipv4", p.IPv4
		if ipv6 {
			name, configured = "ipv6", p.IPv6
		}
		crosses := p.Addr.Is6() != ipv6 && !p.NextHop.IsValid()
		if configured && (!has[ipv6] || crosses) &&
			slices.ContainsFunc(routes, func(r announce.Route) bool { return r.VIP.Is6() == ipv6 }) {
			out.Missing = append(out.Missing, name)
		}
	}
	return out
}

var bfdStates = map[api.BfdSessionState]string{
	api.BfdSessionState_BFD_SESSION_STATE_UNSPECIFIED: "down",
	api.BfdSessionState_BFD_SESSION_STATE_UP:          "up",
	api.BfdSessionState_BFD_SESSION_STATE_DOWN:        "down",
	api.BfdSessionState_BFD_SESSION_STATE_INIT:        "init",
	api.BfdSessionState_BFD_SESSION_STATE_ADMIN_DOWN:  "down",
}

// families returns which families a peer has, by whether they are IPv6. A peer without the capability has IPv4 alone
// (RFC 4760, section 8).
func families(list []*api.Capability) map[bool]bool {
	has, any := map[bool]bool{}, false
	for _, c := range list {
		if m := c.GetMultiProtocol(); m != nil {
			any = true
			if f := m.GetFamily(); f.GetSafi() == api.Family_SAFI_UNICAST {
				has[f.GetAfi() == api.Family_AFI_IP6] = true
			}
		}
	}
	if !any {
		has[false] = true
	}
	return has
}
