package agent

import (
	"slices"
	"strings"

	"vstun/encap/packet"
	"vstun/encap/wire"
	"vstun/routing"
	"vstun/routing/query"
)

// keepQuiet keeps the kernel's own drivers from answering packets that the agent takes, and warns of those that answer
// all the same. It is called again and again, as drivers may be loaded at any time. After the start a.mu is held.
// vstun's director ignores such an answer; IPVS relays it to the client.
func (a *agent) keepQuiet() {
	take := sockets(a.setup.Load().cfg)
	quiet, err := false, error(nil)
	if slices.Contains(take, wire.Socket{Protocol: packet.ProtoIPIP}) {
		quiet, err = routing.Quiet()
		a.quiet = a.quiet || quiet
	} else if a.quiet { // since a reload the agent doesn't take them any more
		err = a.endQuiet()
		a.quiet = err != nil
	}
	devices, failed := query.KernelTunnels()
	if err == nil {
		err = failed
	}
	loud := strings.Join(answering(take, devices, quiet), " ")
	warn := loud
	if err != nil {
		warn += err.Error()
	}
	switch {
	case warn == a.warned:
	case loud != "":
		args := []any{}
		if err != nil {
			args = append(args, "error", err)
		}
		a.log.Warn("the kernel's own tunnel drivers answer every tunnel packet with ICMP port unreachable, which a "+
			"director that is IPVS tells the clients: remove them (modprobe -r "+loud+")", args...)
	case err != nil:
		a.log.Warn("it is not known whether the kernel's own tunnel drivers answer tunnel packets", "error", err)
	}
	a.warned = warn
}

// answering are the drivers, known by their devices, that answer what is for sockets with ICMP port unreachable. quiet
// tells that Quiet keeps them from that.
func answering(take []wire.Socket, devices []query.Tunnel, quiet bool) (modules []string) {
	for _, s := range take {
		if quiet && s == (wire.Socket{Protocol: packet.ProtoIPIP}) {
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

// answers reports whether the kernel answers what is for s once this driver is loaded. What ipip and sit have in common
// does it for both protocols (net/ipv4/tunnel4.c), over IPv6 net/ipv6/tunnel6.c.
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

// endQuiet undoes keepQuiet.
func (a *agent) endQuiet() error {
	if !a.quiet {
		return nil
	}
	return routing.Unquiet()
}
