package method

import (
	"net/netip"

	"vstun/encap"
	"vstun/encap/egress"
	"vstun/encap/packet"
)

// tun is the method TUN (Linux ip_vs_xmit.c, ip_vs_tunnel_xmit).
type tun struct {
	tunnel encap.Tunnel
	kind   egress.Kind
	end    egress.Peer // of the tunnel
}

// hopTUN is TUN with Config.Hop.
type hopTUN struct {
	Method // without a hop
	tunnel encap.Tunnel
	end    *egress.Peer
}

// Tunnel returns TUN's tunnel to the realserver at address. Its error names every contradiction in c.
func (c Config) Tunnel(address netip.Addr) (encap.Tunnel, error) {
	return encap.New(encap.Config{Kind: c.Encap, Source: c.Source, Destination: address, Port: c.EncapPort,
		Key: c.Key, HasKey: c.HasKey, Checksum: c.Checksum, Hop: c.Hop})
}

func newTUN(address netip.Addr, c Config) (Method, error) {
	tunnel, err := c.Tunnel(address)
	if err != nil {
		return nil, err
	}
	if c.Hop {
		c.Hop = false
		plain, err := newTUN(address, c)
		return &hopTUN{plain, tunnel, &plain.(*tun).end}, err
	}
	t := &tun{tunnel: tunnel, end: egress.Peer{Dst: address, Src: c.Source, DstPort: c.EncapPort}}
	if !c.Source.IsValid() {
		t.end.Src = netip.IPv4Unspecified()
	}
	switch {
	case c.Encap.UDP():
		t.kind = egress.UDP
	case c.Encap.Sealed():
		t.kind = egress.WireGuard
	}
	return t, nil
}

func (t *tun) Kind() Kind { return TUN }

func (t *tun) Overhead() int { return t.tunnel.Overhead() }

func (t *tun) Out(b *packet.Buf, _ *packet.Info, port uint16) egress.Hop {
	o := t.tunnel.Wrap(b, port)
	return egress.Hop{To: &t.end, Kind: t.kind, SrcPort: port, Class: o.Class, TTL: o.TTL, DF: o.DF}
}

func (t *tun) Seal(s packet.Segment) { t.tunnel.Seal(s) }

func (t *tun) Quoted(q []byte, payload int) ([]byte, bool) { return t.tunnel.MatchQuoted(q, payload) }

// Overhead is the larger one of packets with a hop and without one: what fits does not depend on the flow.
func (t *hopTUN) Overhead() int { return t.tunnel.Overhead() }

func (t *hopTUN) OutHop(b *packet.Buf, port uint16, next [4]byte) egress.Hop {
	o := t.tunnel.WrapHop(b, port, next)
	return egress.Hop{To: t.end, Kind: egress.UDP, SrcPort: port, Class: o.Class, TTL: o.TTL, DF: o.DF}
}

func (t *hopTUN) Quoted(q []byte, payload int) ([]byte, bool) {
	if inner, ok := t.tunnel.MatchQuoted(q, payload); ok {
		return inner, true
	}
	return t.Method.Quoted(q, payload)
}
