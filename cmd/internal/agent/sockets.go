package agent

import (
	"iter"
	"net/netip"
	"slices"

	"vstun/cmd/internal/config"
	"vstun/cmd/internal/tunnel"
	"vstun/encap"
	"vstun/encap/packet"
	"vstun/encap/wire"
)

// decapsulators returns the far ends of the tunnels of cfg whose packets come by sockets: one for each encapsulation.
func decapsulators(cfg *config.Realserver) (all []encap.Decapsulator) {
	for _, name := range cfg.Encaps {
		kind, _ := encap.ParseKind(name)
		if kind.Sealed() {
			continue
		}
		e := encap.Decapsulator{Kind: kind}
		if kind == encap.KindGRE {
			e.Key, e.HasKey = cfg.Key, cfg.HasKey
		}
		all = append(all, e)
	}
	return all
}

// hasFamilies reports which families addrs are of.
func hasFamilies(addrs iter.Seq[netip.Addr]) (v4, v6 bool) {
	for a := range addrs {
		v4, v6 = v4 || a.Is4(), v6 || a.Is6()
	}
	return v4, v6
}

// directors yields the address of each director, or of its prefix, in cfg.
func directors(cfg *config.Realserver) iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		for _, d := range cfg.Directors {
			if !yield(d.Addr()) {
				return
			}
		}
	}
}

// senders yields the address of each host, or of its prefix, whose tunnel packets cfg accepts: directors, and the other
// realservers of second chances.
func senders(cfg *config.Realserver) iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		for a := range directors(cfg) {
			if !yield(a) {
				return
			}
		}
		for _, p := range cfg.SecondChance.Peers {
			if cfg.SecondChance.On && !yield(p.Addr()) {
				return
			}
		}
	}
}

// sockets returns the sockets that the tunnels of cfg need: over the senders' families, and with protocols 4 and 41
// for the VIPs' families.
func sockets(cfg *config.Realserver) (all []wire.Socket) {
	vip4, vip6 := hasFamilies(slices.Values(cfg.VIPs))
	over4, over6 := hasFamilies(senders(cfg))
	for _, six := range []bool{false, true} {
		if six && !over6 || !six && !over4 {
			continue
		}
		for _, e := range decapsulators(cfg) {
			switch {
			case e.Kind.UDP():
				all = append(all, wire.Socket{Protocol: packet.ProtoUDP, Over6: six, Port: cfg.EncapPort})
			case e.Kind == encap.KindGRE:
				all = append(all, wire.Socket{Protocol: packet.ProtoGRE, Over6: six})
			default:
				if vip4 {
					all = append(all, wire.Socket{Protocol: packet.ProtoIPIP, Over6: six})
				}
				if vip6 {
					all = append(all, wire.Socket{Protocol: packet.ProtoIPv6, Over6: six})
				}
			}
		}
	}
	return all
}

// allSockets returns those sockets, and those of point-to-point tunnels.
func allSockets(cfg *config.Realserver) []wire.Socket {
	all := sockets(cfg)
	for _, s := range tunnel.Sockets(cfg.Tunnels) {
		if !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	return all
}

// encapPort returns the UDP port of the directors' tunnels, 0 for none.
func encapPort(cfg *config.Realserver) uint16 {
	if slices.ContainsFunc(decapsulators(cfg), func(e encap.Decapsulator) bool { return e.Kind.UDP() }) {
		return cfg.EncapPort
	}
	return 0
}
