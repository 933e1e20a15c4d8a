package bgp

import (
	"net/netip"

	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"vstun/routing/announce"
)

// announce announces routes, or changes those that are announced already.
func (e *engine) announce(as uint32, routes []announce.Route, graceful bool) error {
	if len(routes) == 0 {
		return nil
	}
	r := apiutil.AddPathRequest{}
	for i := range routes {
		r.Paths = append(r.Paths, path(as, &routes[i], graceful))
	}
	_, err := e.AddPath(r)
	return err
}

// withdraw withdraws routes.
func (e *engine) withdraw(vips []netip.Addr) error {
	if len(vips) == 0 {
		return nil
	}
	r := apiutil.DeletePathRequest{}
	for _, vip := range vips {
		r.Paths = append(r.Paths, path(0, &announce.Route{VIP: vip}, false))
	}
	return e.DeletePath(r)
}

// path returns a route as GoBGP has it. as is the AS of the speaker. A graceful one has the community
// GRACEFUL_SHUTDOWN, and the local preference 0 (RFC 8326, section 4.2).
func path(as uint32, r *announce.Route, graceful bool) *apiutil.Path {
	p := &apiutil.Path{Family: bgp.RF_IPv4_UC}
	hop := netip.IPv4Unspecified() // the session's own address
	if r.VIP.Is6() {
		p.Family, hop = bgp.RF_IPv6_UC, netip.IPv6Unspecified()
	}
	nlri, _ := bgp.NewIPAddrPrefix(netip.PrefixFrom(r.VIP, r.VIP.BitLen())) // a VIP is valid
	p.Nlri = nlri
	p.Attrs = append(p.Attrs, bgp.NewPathAttributeOrigin(bgp.BGP_ORIGIN_ATTR_TYPE_IGP))
	if next, err := bgp.NewPathAttributeNextHop(hop); err == nil {
		p.Attrs = append(p.Attrs, next)
	}
	if r.Prepend > 0 {
		own := make([]uint32, r.Prepend)
		for i := range own {
			own[i] = as
		}
		p.Attrs = append(p.Attrs, bgp.NewPathAttributeAsPath([]bgp.AsPathParamInterface{
			bgp.NewAs4PathParam(bgp.BGP_ASPATH_ATTR_TYPE_SEQ, own)}))
	}
	if r.MED > 0 {
		p.Attrs = append(p.Attrs, bgp.NewPathAttributeMultiExitDisc(r.MED))
	}
	communities := r.Communities
	switch {
	case graceful:
		communities = append([]announce.Community{announce.GracefulShutdown}, communities...)
		p.Attrs = append(p.Attrs, bgp.NewPathAttributeLocalPref(0))
	case r.LocalPref > 0:
		p.Attrs = append(p.Attrs, bgp.NewPathAttributeLocalPref(r.LocalPref))
	}
	var small []uint32
	var large []*bgp.LargeCommunity
	for _, c := range communities {
		if c.Large {
			large = append(large, bgp.NewLargeCommunity(c.A, c.B, c.C))
		} else {
			small = append(small, c.A<<16|c.B)
		}
	}
	if len(small) > 0 {
		p.Attrs = append(p.Attrs, bgp.NewPathAttributeCommunities(small))
	}
	if len(large) > 0 {
		p.Attrs = append(p.Attrs, bgp.NewPathAttributeLargeCommunities(large))
	}
	return p
}
