package doctor

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"vstun/encap"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/encap/query"
)

// TestProbes reads the probes with gopacket, and takes them out of their tunnels.
func TestProbes(t *testing.T) {
	c := newCookie()
	for _, f := range []struct{ from, to, realserver, source string }{
		{"10.0.2.2", "198.51.100.80", "10.0.11.2", "10.0.2.2"},
		{"2001:db8:2::2", "2001:db8:100::80", "10.0.11.2", "10.0.2.2"},
		{"10.0.2.2", "198.51.100.80", "fd00::11", "fd00::2"},
	} {
		from, to := netip.MustParseAddr(f.from), netip.MustParseAddr(f.to)
		for _, inner := range [][]byte{
			echoRequest(from, to, 1001, 0xdeadbeef, c),
			segment(netip.AddrPortFrom(from, 61001), netip.AddrPortFrom(to, 80), 7, 8, packet.FlagSYN|packet.FlagACK),
			datagram(netip.AddrPortFrom(from, 61001), netip.AddrPortFrom(to, query.Port),
				query.AppendQuestion(nil, query.Question{Version: query.Version, Nonce: 9})),
		} {
			var info packet.Info
			if d := info.Parse(inner); d != drop.Accept || info.Flow.Src != from || info.Flow.Dst != to {
				t.Errorf("%s to %s: %v, %v", from, to, d, info.Flow)
			}
			first := layers.LayerTypeIPv4
			if to.Is6() {
				first = layers.LayerTypeIPv6
			}
			p := gopacket.NewPacket(inner, first, gopacket.Default)
			if bad := p.ErrorLayer(); bad != nil {
				t.Errorf("%s to %s: %v", from, to, bad.Error())
			}
			if tcp, ok := p.TransportLayer().(*layers.TCP); ok && (!tcp.SYN || !tcp.ACK || tcp.RST ||
				tcp.SrcPort != 61001 || tcp.DstPort != 80 || tcp.Seq != 7 || tcp.Ack != 8) {
				t.Errorf("%+v", tcp)
			}
			if udp, ok := p.TransportLayer().(*layers.UDP); ok {
				if q, err := query.ParseQuestion(udp.Payload); err != nil || q.Nonce != 9 ||
					udp.DstPort != query.Port || udp.SrcPort != 61001 {
					t.Errorf("%+v: %+v, %v", udp, q, err)
				}
			}
			if again := serialize(t, p); !bytes.Equal(again, inner) {
				t.Errorf("%s to %s: gopacket makes of it, with its checksums\n%x, not\n%x", from, to, again, inner)
			}
			for kind, port := range map[encap.Kind]uint16{encap.KindIPIP: 0, encap.KindGRE: 0, encap.KindGUE: 6080,
				encap.KindFOU: 5555} {
				tunnel := encap.Config{Kind: kind, Source: netip.MustParseAddr(f.source),
					Destination: netip.MustParseAddr(f.realserver), Port: port}
				outside, err := wrap(tunnel, inner)
				if err != nil {
					t.Fatal(err)
				}
				if len(outside) != len(inner)+overhead(tunnel) || !bytes.HasSuffix(outside, inner) {
					t.Errorf("%v: %d bytes about %d", kind, len(outside), len(inner))
				}
				if tunnel.Destination.Is4() && (outside[6]&0x40 == 0 || outside[9] != outer(tunnel, to)) ||
					tunnel.Destination.Is6() && outside[6] != outer(tunnel, to) {
					t.Errorf("%v: %x", kind, outside[:20])
				}
			}
		}
	}
	if _, err := wrap(encap.Config{Kind: encap.KindGUE, Destination: netip.MustParseAddr("10.0.11.2")},
		nil); err == nil {
		t.Error("a tunnel without a port is one")
	}
}

// serialize makes a packet again, with lengths and checksums of gopacket's.
func serialize(t *testing.T, p gopacket.Packet) []byte {
	t.Helper()
	var all []gopacket.SerializableLayer
	for _, l := range p.Layers() {
		if c, ok := l.(interface {
			SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
		}); ok {
			if err := c.SetNetworkLayerForChecksum(p.NetworkLayer()); err != nil {
				t.Fatal(err)
			}
		}
		all = append(all, l.(gopacket.SerializableLayer))
		if six, ok := l.(*layers.ICMPv6); ok { // its own layer of an echo request forgets the data
			all = append(all, gopacket.Payload(six.Payload))
			break
		}
	}
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		all...); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// What is advised on is counted somewhere.
func TestAdvice(t *testing.T) {
	names := map[string]bool{}
	for d := drop.Accept + 1; d < drop.NumReasons; d++ {
		names[d.String()] = true
	}
	for _, all := range []map[string]advice{directorAdvice(), realserverAdvice()} {
		for name, a := range all {
			if !names[name] || a.why == "" || a.fix == "" {
				t.Errorf("%s: %+v", name, a)
			}
		}
	}
}
