package method

import (
	"net/netip"

	"vstun/encap"
	"vstun/encap/packet"
)

// tun is the method TUN (Linux ip_vs_xmit.c, ip_vs_tunnel_xmit).
type tun struct{ tunnel encap.Tunnel }

func newTUN(address netip.Addr, c Config) (Method, error) {
	t, err := encap.New(encap.Config{Kind: c.Encap, Source: c.Source, Destination: address, Port: c.Port, Key: c.Key,
		HasKey: c.HasKey, Checksum: c.Checksum})
	if err != nil {
		return nil, err
	}
	return &tun{t}, nil
}

func (t *tun) Kind() Kind { return TUN }

func (t *tun) Overhead() int { return t.tunnel.Overhead() }

func (t *tun) Out(b *packet.Buf, _ *packet.Info, port uint16) { t.tunnel.Wrap(b, port) }

func (t *tun) Seal(s packet.Segment) { t.tunnel.Seal(s) }

func (t *tun) Quoted(q []byte, payload int) ([]byte, bool) { return t.tunnel.MatchQuoted(q, payload) }
