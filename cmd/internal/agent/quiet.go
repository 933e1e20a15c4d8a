package agent

import (
	"errors"
	"slices"
	"strings"

	"vstun/cmd/internal/config"
	"vstun/encap/packet"
	"vstun/encap/wire"
	"vstun/routing"
	"vstun/routing/query"
)

// takesIPIP reports whether the agent takes packets of IP protocol 4 over IPv4. Then the kernel's IPIP driver is kept
// quiet.
func takesIPIP(cfg *config.Realserver) bool { return slices.ContainsFunc(sockets(cfg), isIPIP) }

func isIPIP(s wire.Socket) bool { return s == wire.Socket{Protocol: packet.ProtoIPIP} }

// warnLoudDrivers warns of the kernel's drivers that answer packets for the agent, except those that
// routing.State.QuietIPIP keeps quiet. Drivers may be loaded at any time: it is called repeatedly, and logs a warning
// once in a row. After the start a.mu is held. vstun's director ignores such an answer; IPVS relays it to the client.
func (a *agent) warnLoudDrivers() {
	devices, err := query.KernelTunnels()
	quiet, err2 := query.LinkExists(routing.QuietLink)
	loud := strings.Join(answering(sockets(a.setup.Load().cfg), devices, quiet), " ")
	warning := loud
	if err = errors.Join(err, err2); err != nil {
		warning += err.Error()
	}
	switch {
	case warning == a.warned:
	case err != nil:
		a.log.Warn("cannot find out whether the kernel's own tunnel drivers answer tunnel packets", "error", err)
	case loud != "":
		a.log.Warn("the kernel's own tunnel drivers answer every tunnel packet with ICMP port unreachable, which a " +
			"director that is IPVS relays to the clients: remove them (modprobe -r " + loud + ")")
	}
	a.warned = warning
}

// answering returns the drivers of devices that answer packets for the sockets take with ICMP port unreachable. If
// quiet is set, packets of protocol 4 are not answered.
func answering(take []wire.Socket, devices []query.Tunnel, quiet bool) (modules []string) {
	for _, s := range take {
		if quiet && isIPIP(s) {
			continue
		}
		for _, d := range devices {
			if answers(d.Module, s) && !slices.Contains(modules, d.Module) {
				modules = append(modules, d.Module)
			}
		}
	}
	return modules
}

// answers reports whether the kernel answers packets for s once this driver is loaded. The code that ipip and sit share
// answers both protocols (net/ipv4/tunnel4.c, over IPv6 net/ipv6/tunnel6.c).
func answers(module string, s wire.Socket) bool {
	plain, gre := s.Protocol == packet.ProtoIPIP || s.Protocol == packet.ProtoIPv6, s.Protocol == packet.ProtoGRE
	switch module {
	case "ipip", "sit":
		return !s.Over6 && plain
	case "ip6_tunnel":
		return s.Over6 && plain
	case "ip_gre":
		return !s.Over6 && gre
	case "ip6_gre":
		return s.Over6 && gre
	}
	return false
}
