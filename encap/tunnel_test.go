package encap

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

var (
	director6   = netip.MustParseAddr("2001:db8:2::2")
	realserver6 = netip.MustParseAddr("2001:db8:11::2")
	client6     = netip.MustParseAddr("2001:db8::7")
	vip6        = netip.MustParseAddr("2001:db8:80::80")
)

// inner6 makes an IPv6 packet of n bytes from the client to the VIP.
func inner6(n int, class, hops byte) []byte {
	b := make(packet.IPv6, n)
	for i := range b {
		b[i] = byte(i)
	}
	packet.IPv6(b).Encode(packet.IPv6Fields{
		TotalLen: packet.IPv6HeaderLen, NextHeader: packet.ProtoUDP, Src: client6.As16(), Dst: vip6.As16(),
	})
	b.SetTrafficClass(class)
	b.SetPayloadLen(n - packet.IPv6HeaderLen)
	b[7] = hops
	return b
}

// configs is every kind of tunnel over both families, with and without what it may have.
func configs() map[string]Config {
	all := map[string]Config{}
	for _, c := range []Config{
		{Kind: KindIPIP},
		{Kind: KindGRE},
		{Kind: KindGRE, Checksum: true},
		{Kind: KindGRE, HasKey: true, Key: 0xdeadbeef},
		{Kind: KindGRE, HasKey: true, Key: 0},
		{Kind: KindGRE, Checksum: true, HasKey: true, Key: 7},
		{Kind: KindGUE, Port: 6080},
		{Kind: KindGUE, Port: 6080, Checksum: true},
		{Kind: KindGUE, Port: 6080, Hop: true},
		{Kind: KindGUE, Port: 6080, Hop: true, Checksum: true},
		{Kind: KindFOU, Port: 5555},
		{Kind: KindFOU, Port: 5555, Checksum: true},
	} {
		name := fmt.Sprintf("%v-%v-%v-%v-%v", c.Kind, c.Checksum, c.HasKey, c.Key, c.Hop)
		c.Source, c.Destination = director, realserver
		all[name+"-over4"] = c
		if c.Hop {
			continue
		}
		c.Source, c.Destination = director6, realserver6
		all[name+"-over6"] = c
	}
	return all
}

func mustNew(t testing.TB, c Config) *Tunnel {
	t.Helper()
	tunnel, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return &tunnel
}

// deliver takes the outer headers off the wrapped packet in b, and takes it through the exit.
func deliver(c Config, b *packet.Buf) drop.Reason {
	e := Decapsulator{Kind: c.Kind, Key: c.Key, HasKey: c.HasKey, Ethernet: c.Ethernet}
	p := b.Bytes()
	var class, proto byte
	if c.Destination.Is4() {
		class, proto = packet.IPv4(p).TOS(), p[9]
		b.Strip(packet.IPv4HeaderLen)
	} else {
		class, proto = packet.IPv6(p).TrafficClass(), p[6]
		b.Strip(packet.IPv6HeaderLen)
	}
	if c.Kind.UDP() {
		b.Strip(packet.UDPHeaderLen)
	}
	if c.Hop {
		_, d := e.DecapHops(b, proto, class)
		return d
	}
	return e.Decap(b, proto, class)
}

// nextHop is the hop of tunnels with Config.Hop.
var nextHop = [4]byte{10, 0, 11, 3}

// TestBytes has headers that were put together by hand.
func TestBytes(t *testing.T) {
	// TOS b8, DF, TTL 64, 28 bytes
	in4, _ := hex.DecodeString("45b8001c000040004006" + "0000" + "c0000201c6336450" + "0102030405060708")
	packet.IPv4(in4).SetChecksum()
	const (
		from4, to4 = "0a000202", "0a000b02"
		from6, to6 = "20010db8000200000000000000000002", "20010db8001100000000000000000002"
	)
	in6, _ := hex.DecodeString("6b9000000004113f" + "20010db8000000000000000000000007" +
		"20010db8008000000000000000000080" + "01020304")
	v4 := func(tos string, n int, df, ttl, proto string) string {
		return fmt.Sprintf("45%s%04x0000%s00%s%s0000%s%s", tos, n, df, ttl, proto, from4, to4)
	}
	for name, c := range map[string]struct {
		c      Config
		in     []byte
		hash   uint64
		header string
	}{
		"RFC 2003": {Config{Kind: KindIPIP}, in4, 0, v4("b8", 48, "40", "40", "04")},
		"RFC 4213": {Config{Kind: KindIPIP}, in6, 0, v4("b9", 64, "00", "3f", "29")},
		"RFC 2473, IPv4": {Config{Kind: KindIPIP, Source: director6, Destination: realserver6}, in4, 0,
			"6b800000001c0440" + from6 + to6},
		"RFC 2473, IPv6": {Config{Kind: KindIPIP, Source: director6, Destination: realserver6}, in6, 0,
			"6b900000002c293f" + from6 + to6},
		"RFC 2784":       {Config{Kind: KindGRE}, in4, 0, v4("b8", 52, "40", "40", "2f") + "00000800"},
		"RFC 2784, IPv6": {Config{Kind: KindGRE}, in6, 0, v4("b9", 68, "00", "3f", "2f") + "000086dd"},
		"RFC 2784, over IPv6": {Config{Kind: KindGRE, Source: director6, Destination: realserver6}, in4, 0,
			"6b80000000202f40" + from6 + to6 + "00000800"},
		// The packet's IPv4 header sums to ffff, its payload to 0102+0304+0506+0708 = 1014; with 8000 and 0800 that is
		// 9814, inverted 67eb.
		"RFC 2784, checksum": {Config{Kind: KindGRE, Checksum: true}, in4, 0, v4("b8", 56, "40", "40", "2f") +
			"80000800" + "67eb0000"},
		"RFC 2890, key": {Config{Kind: KindGRE, HasKey: true, Key: 0x01020304}, in4, 0, v4("b8", 56, "40", "40",
			"2f") + "20000800" + "01020304"},
		// As above, with 2000, 0102 and 0304: bc1a, inverted 43e5.
		"RFC 2890, both": {Config{Kind: KindGRE, Checksum: true, HasKey: true, Key: 0x01020304}, in4, 0,
			v4("b8", 60, "40", "40", "2f") + "a0000800" + "43e50000" + "01020304"},
		"GUE": {Config{Kind: KindGUE, Port: 6080}, in4, 0, v4("b8", 60, "40", "40", "11") + "800017c000280000" +
			"00040000"},
		"GUE, IPv6": {Config{Kind: KindGUE, Port: 6080}, in6, 1<<64 - 1, v4("b9", 76, "00", "3f", "11") +
			"ee4717c000380000" + "00290000"},
		// Pseudo-header 0a00+0202+0a00+0b02+0011+0028 = 213d, UDP 8000+17c0+0028 = 97e8, GUE 0004, packet ffff+1014:
		// c93d, inverted 36c2.
		"GUE, checksum": {Config{Kind: KindGUE, Port: 6080, Checksum: true}, in4, 0, v4("b8", 60, "40", "40", "11") +
			"800017c0002836c2" + "00040000"},
		"GUE, GLB's hop": {Config{Kind: KindGUE, Port: 19523, Hop: true}, in4, 0, v4("b8", 68, "40", "40", "11") +
			"80004c4300300000" + "02040000" + "00000001" + "0a000b03"},
		"FOU": {Config{Kind: KindFOU, Port: 5555}, in4, 1 << 63, v4("b8", 56, "40", "40", "11") +
			"b72415b300240000"},
		"FOU, over IPv6": {Config{Kind: KindFOU, Port: 5555, Source: director6, Destination: realserver6}, in6, 0,
			"6b9000000034113f" + from6 + to6 + "800015b300340000"},
		"source of route": {Config{Kind: KindGRE, Destination: realserver}, in4, 0,
			strings.Replace(v4("b8", 52, "40", "40", "2f"), from4, "00000000", 1) + "00000800"},
	} {
		if !c.c.Destination.IsValid() {
			c.c.Source, c.c.Destination = director, realserver
		}
		tunnel := mustNew(t, c.c)
		b := buf(c.in)
		if c.c.Hop {
			tunnel.WrapHop(b, SourcePort(c.hash), nextHop)
		} else {
			tunnel.Wrap(b, SourcePort(c.hash))
		}
		if got := hex.EncodeToString(b.Bytes()); got != c.header+hex.EncodeToString(c.in) {
			t.Errorf("%s:\n%s, want\n%s", name, got[:2*tunnel.Overhead()], c.header)
		}
	}
}

// TestWrapUnwrap wraps and unwraps packets of both families, and compares what is between with what gopacket makes of
// the same fields.
func TestWrapUnwrap(t *testing.T) {
	for name, c := range configs() {
		t.Run(name, func(t *testing.T) {
			tunnel := mustNew(t, c)
			for tos := range 256 {
				for _, in := range [][]byte{inner(100+tos, byte(tos), 33, tos&1 != 0), inner6(100+tos, byte(tos), 44)} {
					b := buf(in)
					hash := uint64(tos) << 55
					if c.Hop {
						tunnel.WrapHop(b, SourcePort(hash), nextHop)
					} else {
						tunnel.Wrap(b, SourcePort(hash))
					}
					if b.Len() != len(in)+tunnel.Overhead() {
						t.Fatalf("%d bytes before the packet, want %d", b.Len()-len(in), tunnel.Overhead())
					}
					got := bytes.Clone(b.Bytes())
					if tunnel.outerIs4() {
						packet.IPv4(got).SetChecksum() // the kernel's part
					}
					if want := reference(t, c, in, SourcePort(hash)); !bytes.Equal(got, want) {
						t.Fatalf("TOS %d:\n%x, gopacket has\n%x", tos, got, want)
					}
					if d := deliver(c, b); d != drop.Accept || !bytes.Equal(b.Bytes(), in) {
						t.Fatalf("TOS %d: unwrapping gives %v %d", tos, d, d)
					}
				}
			}
		})
	}
}

// reference is the packet in in a tunnel, as gopacket writes it.
func reference(t *testing.T, c Config, in []byte, port uint16) []byte {
	t.Helper()
	six := in[0]>>4 == 6
	class, ttl, df, inside, ether := in[1], in[8], in[6]&0x40 != 0, layers.IPProtocolIPv4, layers.EthernetTypeIPv4
	if six {
		class, ttl, df, inside, ether = in[0]<<4|in[1]>>4, in[7], false, layers.IPProtocolIPv6, layers.EthernetTypeIPv6
	}
	proto := map[Kind]layers.IPProtocol{
		KindIPIP: inside, KindGRE: layers.IPProtocolGRE, KindGUE: layers.IPProtocolUDP, KindFOU: layers.IPProtocolUDP,
	}[c.Kind]
	udp := &layers.UDP{SrcPort: layers.UDPPort(port), DstPort: layers.UDPPort(c.Port)}
	var outer []gopacket.SerializableLayer
	if c.Destination.Is4() {
		ip := &layers.IPv4{Version: 4, IHL: 5, TOS: class, TTL: ttl, Protocol: proto, SrcIP: c.Source.AsSlice(),
			DstIP: c.Destination.AsSlice()}
		if df {
			ip.Flags = layers.IPv4DontFragment
		}
		_ = udp.SetNetworkLayerForChecksum(ip)
		outer = append(outer, ip)
	} else {
		ip := &layers.IPv6{Version: 6, TrafficClass: class, HopLimit: ttl, NextHeader: proto, SrcIP: c.Source.AsSlice(),
			DstIP: c.Destination.AsSlice()}
		_ = udp.SetNetworkLayerForChecksum(ip)
		outer = append(outer, ip)
	}
	payload := bytes.Clone(in)
	switch c.Kind {
	case KindGRE:
		outer = append(outer, &layers.GRE{Protocol: ether, ChecksumPresent: c.Checksum, KeyPresent: c.HasKey,
			Key: c.Key})
	case KindGUE:
		outer = append(outer, udp)
		payload = append([]byte{0, byte(inside), 0, 0}, in...)
		if c.Hop { // docs/development/gue-header.md of GLB: type 0, next hop 0, 1 hop
			payload = append([]byte{2, byte(inside), 0, 0, 0, 0, 0, 1, 10, 0, 11, 3}, in...)
		}
	case KindFOU:
		outer = append(outer, udp)
	}
	s := gopacket.NewSerializeBuffer()
	options := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(s, options, append(outer, gopacket.Payload(payload))...); err != nil {
		t.Fatal(err)
	}
	p := s.Bytes()
	if c.Kind.UDP() && !c.Checksum {
		at := map[bool]int{true: packet.IPv4HeaderLen, false: packet.IPv6HeaderLen}[c.Destination.Is4()]
		p[at+6], p[at+7] = 0, 0
	}
	return p
}

func TestTunnelSays(t *testing.T) {
	for _, c := range []struct {
		c        Config
		overhead int
		four     bool
	}{
		{Config{Kind: KindIPIP, Source: director, Destination: realserver}, 20, true},
		{Config{Kind: KindIPIP, Source: director6, Destination: realserver6}, 40, false},
		{Config{Kind: KindGRE, Source: director, Destination: realserver}, 24, true},
		{Config{Kind: KindGRE, Source: director, Destination: realserver, Checksum: true}, 28, true},
		{Config{Kind: KindGRE, Source: director6, Destination: realserver6, Checksum: true, HasKey: true}, 52, false},
		{Config{Kind: KindGUE, Source: director, Destination: realserver, Port: 1}, 32, true},
		{Config{Kind: KindGUE, Source: director, Destination: realserver, Port: 1, Hop: true}, 40, true},
		{Config{Kind: KindGUE, Source: director6, Destination: realserver6, Port: 1}, 52, false},
		{Config{Kind: KindGUE, Source: director6, Destination: realserver6, Port: 1, Ethernet: true, TTL: 1},
			MaxOverhead, false},
		{Config{Kind: KindFOU, Source: director, Destination: realserver, Port: 1}, 28, true},
	} {
		tunnel := mustNew(t, c.c)
		if tunnel.Overhead() != c.overhead || tunnel.outerIs4() != c.four || tunnel.Kind() != c.c.Kind {
			t.Errorf("%+v: %v, %d bytes, IPv4 %v", c.c, tunnel.Kind(), tunnel.Overhead(), tunnel.outerIs4())
		}
	}
	if MaxOverhead > packet.Headroom {
		t.Errorf("MaxOverhead is %d, Headroom %d", MaxOverhead, packet.Headroom)
	}
}

func TestNewRefuses(t *testing.T) {
	four := Config{Source: director, Destination: realserver}
	for want, edit := range map[string]func(c *Config){
		"kind 9: want one of [ipip gre gue fou wireguard]": func(c *Config) { c.Kind = 9 },
		"destination invalid IP":                           func(c *Config) { c.Destination = netip.Addr{} },
		"destination ::ffff:10.0.11.2": func(c *Config) {
			c.Destination = netip.MustParseAddr("::ffff:10.0.11.2")
		},
		"destination fe80::1%eth0": func(c *Config) {
			c.Source, c.Destination = director6,
				netip.MustParseAddr("fe80::1%eth0")
		},
		"source 2001:db8:2::2: want": func(c *Config) { c.Source = director6 },
		"no source: needed over IPv6": func(c *Config) {
			c.Source, c.Destination = netip.Addr{},
				realserver6
		},
		"no source: needed for a UDP checksum": func(c *Config) {
			*c = Config{Kind: KindGUE, Destination: realserver,
				Port: 1, Checksum: true}
		},
		"port 0: want one from 1":                func(c *Config) { c.Kind = KindFOU },
		"port 7: want one from 1":                func(c *Config) { c.Port = 7 },
		"needed for wireguard":                   func(c *Config) { c.Kind, c.Source = KindWireGuard, netip.Addr{} },
		"ipip has none":                          func(c *Config) { c.Checksum = true },
		"only gre has one":                       func(c *Config) { c.HasKey = true },
		"Ethernet: ipip carries IP packets only": func(c *Config) { c.Ethernet, c.TTL = true, 64 },
		"hop: only gue over IPv4 has one":        func(c *Config) { c.Kind, c.Port, c.Hop = KindFOU, 1, true },
		"TTL 0: a frame has none to copy":        func(c *Config) { c.Kind, c.Ethernet = KindGRE, true },
	} {
		c := four
		edit(&c)
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", c, err, want)
		}
	}
}

func TestKinds(t *testing.T) {
	for _, k := range []Kind{KindIPIP, KindGRE, KindGUE, KindFOU, KindWireGuard} {
		if got, ok := ParseKind(k.String()); !ok || got != k {
			t.Errorf("%v is parsed as %v, %v", k, got, ok)
		}
	}
	if _, ok := ParseKind("vxlan"); ok || Kind(5).String() != "unknown" {
		t.Error("vxlan is known")
	}
}

func TestSourcePort(t *testing.T) {
	if a, b := SourcePort(0), SourcePort(1<<64-1); a != 32768 || b != 60999 {
		t.Errorf("from %d to %d", a, b)
	}
}

// TestSeal cuts a GSO packet in every kind of tunnel: what arrives is what goes in when packets are wrapped one by
// one.
func TestSeal(t *testing.T) {
	for name, c := range configs() {
		t.Run(name, func(t *testing.T) {
			if !c.Destination.Is4() {
				return // TestSealOver6
			}
			tunnel := mustNew(t, c)
			b, p := super(t, packet.ProtoTCP, 9001, 1000, packet.FlagACK, 12)
			cut, _ := packet.NewCut(b, p, 1400)
			tunnel.Wrap(b, 99)
			cut.Overhead = tunnel.Overhead()
			segs, _ := packet.Split(nil, b, p, cut,
				make([]byte, packet.PieceRoom+10*MaxOverhead))
			if len(segs) != 10 {
				t.Fatal(len(segs))
			}
			for _, s := range segs {
				tunnel.Seal(s)
				sealed(t, tunnel, s)
			}
		})
	}
}

// TestSealOver6 puts together segments as Split does.
func TestSealOver6(t *testing.T) {
	for name, c := range configs() {
		t.Run(name, func(t *testing.T) {
			tunnel := mustNew(t, c)
			for n := range 40 {
				whole := inner6(60+n, 2, 64)
				b := buf(whole)
				b.Offload.GSO = packet.GSOTCP
				tunnel.Wrap(b, 99)
				head := bytes.Clone(b.Bytes()[:tunnel.Overhead()+48])
				s := packet.Segment{Head: head, Body: whole[48:]}
				tunnel.Seal(s)
				sealed(t, tunnel, s)
			}
		})
	}
}

// sealed compares a segment with its inner packet, wrapped alone.
func sealed(t *testing.T, tunnel *Tunnel, s packet.Segment) {
	t.Helper()
	got := append(bytes.Clone(s.Head), s.Body...)
	alone := buf(got[tunnel.Overhead():])
	tunnel.Wrap(alone, 99)
	if !bytes.Equal(got, alone.Bytes()) {
		t.Fatalf("sealed\n%x, wrapped alone\n%x", got[:tunnel.Overhead()], alone.Bytes()[:tunnel.Overhead()])
	}
}

func TestFragment6(t *testing.T) {
	for name, c := range configs() {
		if c.Destination.Is4() {
			continue
		}
		tunnel := mustNew(t, c)
		for _, mtu := range []int{MinMTU6, 1281, 1500, 9000} {
			for _, size := range []int{mtu - 39, mtu, 3 * mtu, 65535 - MaxOverhead} {
				b := buf(inner6(size, 0xb9, 9))
				tunnel.Wrap(b, 5)
				want := bytes.Clone(b.Bytes())
				segs := Fragment6(nil, b.Bytes(), mtu, 0x12345678, make([]byte, packet.MaxPieces*packet.IPv4HeaderLen))
				if len(segs) < 2 {
					t.Fatalf("%d fragments", len(segs))
				}
				var defrag []byte
				for i, s := range segs {
					h := append(bytes.Clone(s.Head), s.Body...)
					field := binary.BigEndian.Uint16(h[42:])
					more, offset := field&1 != 0, int(field&^7)
					if len(h) > mtu || packet.IPv6(h).TotalLen() != len(h) || !bytes.Equal(h[:4], want[:4]) ||
						h[6] != 44 || !bytes.Equal(h[7:40], want[7:40]) ||
						h[40] != want[6] || h[41] != 0 || field&6 != 0 || more != (i < len(segs)-1) ||
						offset != len(defrag) ||
						binary.BigEndian.Uint32(h[44:]) != 0x12345678 {
						t.Fatalf("%s: fragment %d of %d: %x", name, i, len(segs), s.Head)
					}
					defrag = append(defrag, s.Body...)
				}
				if !bytes.Equal(defrag, want[40:]) {
					t.Error("the fragments do not make the packet")
				}
			}
		}
	}
}

func TestTunnelsAllocateNothing(t *testing.T) {
	for name, c := range configs() {
		tunnel := mustNew(t, c)
		in := inner6(1000, 0, 64)
		b := buf(in)
		if n := testing.AllocsPerRun(100, func() {
			b.SetLen(copy(b.Room(), in))
			tunnel.Wrap(b, 1)
			deliver(c, b)
		}); n != 0 {
			t.Errorf("%s: %v allocations a packet", name, n)
		}
	}
}

func BenchmarkWrap(b *testing.B) {
	for name, c := range map[string]Config{
		"ipip":     {Kind: KindIPIP},
		"gre":      {Kind: KindGRE},
		"gre-csum": {Kind: KindGRE, Checksum: true},
		"gue":      {Kind: KindGUE, Port: 6080},
		"gue-csum": {Kind: KindGUE, Port: 6080, Checksum: true},
		"gue-hop":  {Kind: KindGUE, Port: 6080, Hop: true},
	} {
		b.Run(name, func(b *testing.B) {
			c.Source, c.Destination = director, realserver
			tunnel := mustNew(b, c)
			p := buf(inner(1400, 0, 64, true))
			for i := 0; b.Loop(); i++ {
				tunnel.Wrap(p, uint16(i))
				p.Strip(tunnel.Overhead())
			}
		})
	}
}

// TestHeader: Header is what Wrap puts before a packet whose fields are 0, but for lengths.
func TestHeader(t *testing.T) {
	for _, outer := range []string{"10.0.2.2", "fd00:2::2"} {
		for _, kind := range Kinds() {
			c := Config{Kind: kind, Source: netip.MustParseAddr(outer), Destination: netip.MustParseAddr(outer)}
			if kind.UDP() {
				c.Port = 6080
			}
			c.HasKey, c.Key = kind.HasKey(), 9
			if !c.HasKey {
				c.Key = 0
			}
			tunnel, err := New(c)
			if err != nil {
				t.Fatal(err)
			}
			for _, version := range []int{4, 6} {
				b := &packet.NewBufs(1)[0]
				b.SetLen(40)
				clear(b.Bytes())
				b.Bytes()[0] = byte(version << 4)
				b.Offload.GSO = packet.GSOTCP // without Seal
				tunnel.Wrap(b, 0)
				want := b.Bytes()[:tunnel.Overhead()]
				if got := tunnel.Header(version); !bytes.Equal(got, want) {
					t.Errorf("%v over %s, IPv%d: %x, want %x", kind, outer, version, got, want)
				}
			}
			if tunnel.Checksum() {
				t.Errorf("%v has a checksum", kind)
			}
		}
	}
}
