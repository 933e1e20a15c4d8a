package doctor

import (
	"fmt"
	"net/netip"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/doctor/nft"
	"vstun/cmd/internal/words"
	"vstun/encap/wireguard"
	"vstun/routing/query"
)

// longHandshake is the age of a handshake, in seconds, after which no packet can be sent without another one
// (RejectAfterTime of WireGuard).
const longHandshake = 180

// wireguard examines the handshakes of a running program. peer is what its peers are: "realserver" or "director".
// handshakes is the number of refused handshakes.
func (res *result) wireguard(peer string, cfg *config.WireGuard, st *api.WireGuard, handshakes uint64) {
	if st == nil {
		return
	}
	if st.Error != "" {
		res.find(Finding{Severity: Warning, Where: "wireguard", What: "the kernel has refused a datagram: " + st.Error,
			Why: "packets in the tunnel are lost", Fix: "ip route get",
			Remarks: []string{"look whether a firewall of this host refuses what it sends"}})
	}
	idle := 0
	for i := range st.Peers {
		p := &st.Peers[i]
		switch {
		case p.Handshake != nil && *p.Handshake > longHandshake:
			idle++
		case p.Handshake != nil:
		case p.Endpoint == "":
			res.find(notCome(peer, p))
		default:
			res.find(noHandshake(peer, p, cfg.Listen, handshakes))
		}
	}
	if len(res.findings) == 0 {
		text := words.Count(len(st.Peers), peer)
		if idle > 0 {
			text += fmt.Sprintf(", of which %d had no handshake for 3 minutes, as it is without packets", idle)
		}
		res.fine("handshakes with %s", text)
	}
}

// notCome returns the finding about a peer whose endpoint is not known.
func notCome(peer string, p *api.WireGuardPeer) Finding {
	return Finding{Severity: Error, Where: fmt.Sprintf("%s %s", peer, p.Address),
		What: "it has no endpoint here, and has not come by itself", Why: "no packet can be sent to it",
		Causes: []string{"its program does not run", "it has no endpoint of this host, or no keepalive",
			"a firewall drops its datagrams to this host's UDP port", "one end has another key of the other"},
		On: "it", Fix: peerStatus(peer)}
}

// noHandshake returns the finding about a peer of known endpoint without a handshake.
func noHandshake(peer string, p *api.WireGuardPeer, port uint16, refused uint64) Finding {
	f := Finding{Severity: Error, Where: fmt.Sprintf("%s %s at %s", peer, p.Address, p.Endpoint),
		What: "there was no handshake with it", Why: "no packet gets through the tunnel",
		Causes: []string{"its program does not run, or has another port",
			fmt.Sprintf("a firewall drops UDP to its port, or to port %d here", port),
			"one end has another key of the other, or another preshared key",
			"its clock was set back, so that its handshakes are older than the last one"},
		On: p.Endpoint, Fix: peerStatus(peer)}
	if refused > 0 {
		f.Remarks = []string{fmt.Sprintf("this end has refused %s since its start: so keys or clocks differ",
			words.Count(refused, "handshake"))}
	}
	return f
}

// peerStatus is the command to run on a peer.
func peerStatus(peer string) string { return peer + " status; " + peer + " keys" }

// portChecks returns the datagrams between this end's UDP port and the peers of cfg: one in each direction for each IP
// version, of the first peer whose endpoint has it and is on no device of this host.
func portChecks(cfg *config.WireGuard, lookup func(netip.Addr) (query.Path, bool, error)) (all []pathCheck) {
	seen, handshake := map[bool]bool{}, make([]byte, wireguard.InitiationSize)
	for _, p := range cfg.Peers {
		six := p.Endpoint.Addr().Is6()
		if !p.Endpoint.IsValid() || seen[six] {
			continue
		}
		path, ok, err := lookup(p.Endpoint.Addr())
		if err != nil || !ok || path.Local || !path.Source.IsValid() {
			continue
		}
		seen[six] = true
		own := netip.AddrPortFrom(path.Source, cfg.Listen)
		all = append(all, pathCheck{name: fmt.Sprintf("WireGuard's datagrams to UDP port %d", cfg.Listen), grade: Error,
			why: "no peer can begin a handshake", hooks: []nft.Hook{nft.Prerouting, nft.Input},
			spec: nft.PacketSpec{Packet: datagram(p.Endpoint, own, handshake), IIF: path.Link, State: nft.New,
				ReversePath: true},
			nft: fmt.Sprintf("udp dport %d", cfg.Listen), xtables: fmt.Sprintf("-p udp --dport %d", cfg.Listen)},
			pathCheck{name: fmt.Sprintf("WireGuard's datagrams to %v", p.Endpoint), grade: Error,
				why: "no handshake gets to the peer", hooks: []nft.Hook{nft.Output, nft.Postrouting},
				spec: nft.PacketSpec{Packet: datagram(own, p.Endpoint, handshake), OIF: path.Link, State: nft.New},
				nft:  fmt.Sprintf("udp sport %d", cfg.Listen), xtables: fmt.Sprintf("-p udp --sport %d", cfg.Listen)})
	}
	return all
}

// lookup asks the kernel for the path to an address.
func lookup(a netip.Addr) (query.Path, bool, error) { return query.Lookup(a, netip.Addr{}) }

// endpoints returns where the peers are according to the configuration, by their address in the tunnel. The zero Addr
// is one that comes by itself.
func endpoints(cfg *config.Director) map[netip.Addr]netip.Addr {
	all := map[netip.Addr]netip.Addr{}
	for _, p := range cfg.WireGuard.Peers {
		all[p.Address] = p.Endpoint.Addr()
	}
	return all
}

// sealedRoute examines the path to the endpoint of a realserver of WireGuard.
func (res *result) sealedRoute(where string, endpoint netip.Addr, path query.Path) {
	const least = 1280 + 20
	mtu := path.MTU
	room := mtu - wireguard.Overhead(endpoint.Is6())
	switch {
	case path.Local:
		res.find(Finding{Severity: Warning, Where: where,
			What: fmt.Sprintf("its endpoint %v is an address of this host", endpoint),
			Why:  "handshakes do not get to the realserver, unless it runs on this host at another port",
			Fix:  "director keys", Remarks: []string{"set the endpoint to an address of the realserver's host"}})
	case mtu == 0:
		res.find(Finding{Severity: Error, Where: where, What: fmt.Sprintf("there is no route to its endpoint %v",
			endpoint), Why: "packets for it are dropped", Fix: fmt.Sprintf("ip route get %v", endpoint)})
	case room < least:
		res.find(Finding{Severity: Warning, Where: where,
			What: fmt.Sprintf("the route to its endpoint %v has an MTU of %d", endpoint, mtu),
			Why:  "little of it is left for the packets in the tunnel", Fix: fmt.Sprintf("ip route get %v", endpoint)})
	}
}
