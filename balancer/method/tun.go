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
	hop    egress.Hop // of every packet, except its source port and what its own header decides
}

func newTUN(address netip.Addr, c Config) (Method, error) {
	tunnel, err := encap.New(encap.Config{Kind: c.Encap, Source: c.Source, Destination: address, Port: c.Port,
		Key: c.Key, HasKey: c.HasKey, Checksum: c.Checksum})
	if err != nil {
		return nil, err
	}
	t := &tun{tunnel: tunnel, hop: egress.Plain(c.Source, address)}
	if !c.Source.IsValid() {
		t.hop.Src = netip.IPv4Unspecified()
	}
	if c.Encap.UDP() {
		t.hop.Kind, t.hop.DstPort = egress.UDP, c.Port
	}
	return t, nil
}

func (t *tun) Kind() Kind { return TUN }

func (t *tun) Overhead() int { return t.tunnel.Overhead() }

func (t *tun) Out(b *packet.Buf, _ *packet.Info, port uint16) egress.Hop {
	outer, h := t.tunnel.Wrap(b, port), t.hop
	h.SrcPort, h.Class, h.TTL, h.DF = port, outer.Class, outer.TTL, outer.DF
	return h
}

func (t *tun) Seal(s packet.Segment) { t.tunnel.Seal(s) }

func (t *tun) Quoted(q []byte, payload int) ([]byte, bool) { return t.tunnel.MatchQuoted(q, payload) }
