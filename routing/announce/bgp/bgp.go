// Package bgp announces VIPs to routers by BGP (RFC 4271). GoBGP is its engine.
//
// A Speaker has a session with each peer. It takes no routes from them. Its routes are the VIPs, as /32 and /128, with
// its own address of the session as the next hop. There is no graceful restart (RFC 4724): nothing forwards packets
// while the program does not run, so that routers must forget its routes at once.
package bgp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/server"
	"golang.org/x/sys/unix"

	"vstun/routing/announce"
)

const (
	port         = 179 // of BGP
	connectRetry = 5   // seconds from one attempt to connect to the next; GoBGP varies them
	afterReset   = 2   // seconds from a session's end by BFD to the next attempt
	// keepalives are sent this many times in the hold time.
	keepalives = 3
)

// engine is a running GoBGP.
type engine struct {
	*server.BgpServer
	served chan struct{} // closed when it has ended
}

// start starts GoBGP without peers.
func start(cfg *announce.Config, log *slog.Logger) (*engine, error) {
	e := &engine{BgpServer: server.NewBgpServer(server.LoggerOption(log, new(slog.LevelVar))),
		served: make(chan struct{})}
	go func() {
		defer close(e.served)
		e.Serve()
	}()
	global := &api.Global{Asn: cfg.AS, RouterId: cfg.RouterID.String(), ListenPort: -1,
		Families: []uint32{0, 1}} // IPv4 and IPv6, see unicast
	if cfg.Listen.IsValid() {
		global.ListenPort, global.ListenAddresses = port, []string{cfg.Listen.String()}
	}
	err := e.StartBgp(context.Background(), &api.StartBgpRequest{Global: global})
	if err == nil {
		err = e.setPolicies(cfg.Peers)
	}
	if err == nil {
		err = e.assignPolicies()
	}
	if err != nil {
		e.stop()
		return nil, startError(cfg, err)
	}
	return e, nil
}

// startError says what to do about an error of start.
func startError(cfg *announce.Config, err error) error {
	switch {
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf("bgp: listen %v: %w: give the program CAP_NET_BIND_SERVICE, or leave listen out", cfg.Listen,
			err)
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("bgp: listen %v: %w: stop the other program that speaks BGP, or leave listen out",
			cfg.Listen, err)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("bgp: listen %v: %w: set an address of this host, or leave listen out", cfg.Listen, err)
	}
	return fmt.Errorf("bgp: %w", err)
}

// stop ends the sessions. Peers forget the routes.
func (e *engine) stop() {
	e.Stop()
	<-e.served
}

// The policies' names.
const (
	importPolicy = "import"
	exportPolicy = "export"
)

// setPolicies sets what comes from and goes to peers: no route comes from one, and routes of the family that a session
// does not have get a next hop of this family, if there is one.
func (e *engine) setPolicies(peers []announce.Peer) error {
	r := &api.SetPoliciesRequest{}
	own := &api.Statement{Name: "own", Conditions: &api.Conditions{RouteType: api.Conditions_ROUTE_TYPE_LOCAL},
		Actions: &api.Actions{RouteAction: api.RouteAction_ROUTE_ACTION_ACCEPT}}
	export := &api.Policy{Name: exportPolicy}
	for i := range peers {
		p := &peers[i]
		name := "peer " + p.Addr.String()
		r.DefinedSets = append(r.DefinedSets, &api.DefinedSet{DefinedType: api.DefinedType_DEFINED_TYPE_NEIGHBOR,
			Name: name, List: []string{netip.PrefixFrom(p.Addr, p.Addr.BitLen()).String()}})
		s := &api.Statement{Name: name, Conditions: &api.Conditions{
			NeighborSet: &api.MatchSet{Type: api.MatchSet_TYPE_ANY, Name: name},
			AfiSafiIn:   []*api.Family{unicast(p.Addr.Is4())}},
			Actions: &api.Actions{RouteAction: api.RouteAction_ROUTE_ACTION_REJECT}}
		if p.NextHop.IsValid() {
			s.Actions = &api.Actions{RouteAction: api.RouteAction_ROUTE_ACTION_ACCEPT,
				Nexthop: &api.NexthopAction{Address: p.NextHop.String()}}
		}
		export.Statements = append(export.Statements, s)
	}
	r.Policies = []*api.Policy{{Name: importPolicy, Statements: []*api.Statement{own}}, export}
	return e.SetPolicies(context.Background(), r)
}

// assignPolicies puts the policies in force. It is called once: they keep their names.
func (e *engine) assignPolicies() error {
	for _, a := range []*api.PolicyAssignment{
		{Name: "global", Direction: api.PolicyDirection_POLICY_DIRECTION_IMPORT,
			Policies:      []*api.Policy{{Name: importPolicy}},
			DefaultAction: api.RouteAction_ROUTE_ACTION_REJECT},
		{Name: "global", Direction: api.PolicyDirection_POLICY_DIRECTION_EXPORT,
			Policies:      []*api.Policy{{Name: exportPolicy}},
			DefaultAction: api.RouteAction_ROUTE_ACTION_ACCEPT},
	} {
		r := &api.SetPolicyAssignmentRequest{Assignment: a}
		if err := e.SetPolicyAssignment(context.Background(), r); err != nil {
			return err
		}
	}
	return nil
}

// unicast returns the unicast routes of IPv6, or of IPv4.
func unicast(ipv6 bool) *api.Family {
	f := &api.Family{Afi: api.Family_AFI_IP, Safi: api.Family_SAFI_UNICAST}
	if ipv6 {
		f.Afi = api.Family_AFI_IP6
	}
	return f
}

// add begins a session with a peer, without BFD.
func (e *engine) add(p *announce.Peer) error {
	return e.AddPeer(context.Background(), &api.AddPeerRequest{Peer: peerRequest(p)})
}

// setBFD switches BFD to a peer on or off, without effect on the session.
func (e *engine) setBFD(p *announce.Peer, on bool) error {
	r := peerRequest(p)
	if on {
		interval := uint32(p.BFD.Interval.Microseconds())
		r.Bfd = &api.BfdPeerConfig{Enabled: true, DesiredMinimumTxInterval: interval, RequiredMinimumReceive: interval,
			DetectionMultiplier: uint32(p.BFD.Multiplier)}
	}
	_, err := e.UpdatePeer(context.Background(), &api.UpdatePeerRequest{Peer: r})
	return err
}

// remove ends a session.
func (e *engine) remove(p *announce.Peer) error {
	if p.Password != "" { // DeletePeer would leave it at the listening socket
		open := *p
		open.Password = ""
		if _, err := e.UpdatePeer(context.Background(), &api.UpdatePeerRequest{Peer: peerRequest(&open)}); err != nil {
			return err
		}
	}
	return e.DeletePeer(context.Background(), &api.DeletePeerRequest{Address: p.Addr.String()})
}

// resend sends a peer the routes again, which new policies have changed.
func (e *engine) resend(a netip.Addr) error {
	return e.ResetPeer(context.Background(), &api.ResetPeerRequest{Address: a.String(), Soft: true,
		Direction: api.ResetPeerRequest_DIRECTION_OUT})
}

// peerRequest returns a peer without BFD.
func peerRequest(p *announce.Peer) *api.Peer {
	hold := uint64(p.HoldTime.Seconds())
	r := &api.Peer{
		Conf:      &api.PeerConf{NeighborAddress: p.Addr.String(), PeerAsn: p.AS, AuthPassword: p.Password},
		Transport: &api.Transport{},
		Timers: &api.Timers{Config: &api.TimersConfig{HoldTime: hold, KeepaliveInterval: max(hold/keepalives, 1),
			ConnectRetry: connectRetry, IdleHoldTimeAfterReset: afterReset}},
		EbgpMultihop: &api.EbgpMultihop{Enabled: p.Multihop > 0, MultihopTtl: uint32(p.Multihop)},
		TtlSecurity:  &api.TtlSecurity{Enabled: p.TTLSecurity},
	}
	if p.Source.IsValid() {
		r.Transport.LocalAddress = p.Source.String()
	}
	if p.TTLSecurity {
		r.TtlSecurity.TtlMin = 255
	}
	for ipv6, on := range map[bool]bool{false: p.IPv4, true: p.IPv6} {
		if on {
			r.AfiSafis = append(r.AfiSafis, &api.AfiSafi{Config: &api.AfiSafiConfig{Family: unicast(ipv6),
				Enabled: true}})
		}
	}
	return r
}
