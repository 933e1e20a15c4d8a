package doctor

import (
	"fmt"
	"net/netip"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/words"
	"vstun/encap/wireguard"
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
func (res *result) sealedRoute(where string, endpoint netip.Addr, mtu int) {
	const least = 1280 + 20
	room := mtu - wireguard.Overhead(endpoint.Is6())
	switch {
	case mtu == 0:
		res.find(Finding{Severity: Error, Where: where, What: fmt.Sprintf("there is no route to its endpoint %v",
			endpoint), Why: "packets for it are dropped", Fix: fmt.Sprintf("ip route get %v", endpoint)})
	case room < least:
		res.find(Finding{Severity: Warning, Where: where,
			What: fmt.Sprintf("the route to its endpoint %v has an MTU of %d", endpoint, mtu),
			Why:  "little of it is left for the packets in the tunnel", Fix: fmt.Sprintf("ip route get %v", endpoint)})
	}
}
