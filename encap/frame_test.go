package encap

import (
	"bytes"
	"encoding/hex"
	"testing"

	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

// frame makes an Ethernet frame with VLAN tags around a packet of an Ethernet type.
func frame(kind uint16, tags int, payload []byte) []byte {
	b := bytes.Repeat([]byte{2}, 12)
	for range tags {
		b = append(b, 0x81, 0, 0, 7)
	}
	return append(append(b, byte(kind>>8), byte(kind)), payload...)
}

// TestWrapFrame: the headers before a frame are those that Linux's gretap writes, for each format and family.
func TestWrapFrame(t *testing.T) {
	arp := frame(packet.EtherTypeARP, 0, []byte("who has it?")) // 25 bytes
	for name, c := range map[string]struct {
		c      Config
		header string // hexadecimal, with class 0xb8 and TTL 64
	}{
		"gre": {Config{Kind: KindGRE}, "45b8003100000000402f0000 0a000202 0a000b02 0000 6558"},
		"gre, key": {Config{Kind: KindGRE, HasKey: true, Key: 7},
			"45b8003500000000402f00000a0002020a000b022000655800000007"},
		"gue": {Config{Kind: KindGUE, Port: 6080}, "45b8003d00000000401100000a0002020a000b02" +
			"8000 17c0 0029 0000 002f0000 0000 6558"},
		"fou": {Config{Kind: KindFOU, Port: 4754}, "45b8003900000000401100000a0002020a000b02" +
			"8000 1292 0025 0000 0000 6558"},
		"wireguard": {Config{Kind: KindWireGuard}, "45b8003100000000402f00000a0002020a000b0200006558"},
		"gre, over IPv6": {Config{Kind: KindGRE, Source: director6, Destination: realserver6},
			"6b800000001d2f40" + hex.EncodeToString(director6.AsSlice()) + hex.EncodeToString(realserver6.AsSlice()) +
				"00006558"},
	} {
		if !c.c.Destination.IsValid() {
			c.c.Source, c.c.Destination = director, realserver
		}
		c.c.Ethernet, c.c.TTL = true, 64
		tunnel := mustNew(t, c.c)
		b := buf(arp)
		o := tunnel.WrapFrame(b, 32768, 0xb8)
		want := hex.EncodeToString(unhex(t, c.header))
		if got := hex.EncodeToString(b.Bytes()); got != want+hex.EncodeToString(arp) {
			t.Errorf("%s:\n%s, want\n%s", name, got, want)
		}
		if want := (Outer{Class: 0xb8, TTL: 64, DF: c.c.Destination.Is6()}); o != want {
			t.Errorf("%s: %+v, want %+v", name, o, want)
		}
		if tunnel.Overhead() != len(want)/2 {
			t.Errorf("%s: overhead %d, want %d", name, tunnel.Overhead(), len(want)/2)
		}
		if d := deliver(c.c, b); d != drop.Accept || !bytes.Equal(b.Bytes(), arp) {
			t.Errorf("%s: unwrapping gives %v, %x", name, d, b.Bytes())
		}
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(string(bytes.ReplaceAll([]byte(s), []byte(" "), nil)))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestUnwrapRefusesFrames goes through what is wrong with a tunnel of frames.
func TestUnwrapRefusesFrames(t *testing.T) {
	good := frame(packet.EtherTypeIPv4, 0, inner(60, 0, 64, false))
	join := func(head string, b []byte) []byte { return append(unhex(t, head), b...) }
	gre, gue := Decapsulator{Kind: KindGRE, Ethernet: true}, Decapsulator{Kind: KindGUE, Ethernet: true}
	fou, wg := Decapsulator{Kind: KindFOU, Ethernet: true}, Decapsulator{Kind: KindWireGuard, Ethernet: true}
	for name, c := range map[string]struct {
		end   Decapsulator
		proto byte
		b     []byte
		want  drop.Reason
	}{
		"gre":                 {gre, 47, join("00006558", good), drop.Accept},
		"gre, IP":             {gre, 47, join("00000800", good[14:]), drop.TunnelHeader},
		"gre, by another":     {gre, 17, join("00006558", good), drop.Outer},
		"gre, key unasked":    {gre, 47, join("2000655800000001", good), drop.TunnelKey},
		"gre, no frame":       {gre, 47, join("00006558", good[:13]), drop.Truncated},
		"gre, damaged":        {gre, 47, join("8000655812340000", good), drop.TunnelChecksum},
		"gue":                 {gue, 17, join("002f000000006558", good), drop.Accept},
		"gue, IP":             {gue, 17, join("00040000", good[14:]), drop.TunnelHeader},
		"gue, variant 1":      {gue, 17, good[14:], drop.TunnelHeader},
		"gue, cut":            {gue, 17, []byte{0, 47}, drop.TunnelHeader},
		"gue, IP in GRE":      {gue, 17, join("002f000000000800", good[14:]), drop.TunnelHeader},
		"fou":                 {fou, 17, join("00006558", good), drop.Accept},
		"fou, IP":             {fou, 17, good[14:], drop.TunnelHeader},
		"wireguard":           {wg, 47, join("00006558", good), drop.Accept},
		"wireguard, IP in IP": {wg, 4, good[14:], drop.Outer},
	} {
		b := buf(c.b)
		if d := c.end.Decap(b, c.proto, 0); d != c.want {
			t.Errorf("%s: %v, want %v", name, d, c.want)
		}
	}
}

// TestFrameECN: CE of the outer header gets into an IP packet that can carry it, behind VLAN tags, too.
func TestFrameECN(t *testing.T) {
	end := Decapsulator{Kind: KindGRE, Ethernet: true}
	for _, c := range []struct {
		name  string
		frame []byte
		want  drop.Reason
		at    int // of the IPv4 packet that gets CE; 0: none
	}{
		{"capable", frame(packet.EtherTypeIPv4, 0, inner(60, 2, 64, false)), drop.Accept, 14},
		{"not capable", frame(packet.EtherTypeIPv4, 0, inner(60, 0, 64, false)), drop.Congestion, 0},
		{"tagged", frame(packet.EtherTypeIPv4, 1, inner(60, 2, 64, false)), drop.Accept, 18},
		{"tagged twice", frame(packet.EtherTypeIPv4, 2, inner(60, 2, 64, false)), drop.Accept, 22},
		{"IPv6, not capable", frame(packet.EtherTypeIPv6, 0, inner6(60, 0, 64)), drop.Congestion, 0},
		{"ARP", frame(packet.EtherTypeARP, 0, []byte("who has it?")), drop.Accept, 0},
		{"no packet", frame(packet.EtherTypeIPv4, 0, nil), drop.Accept, 0},
		{"cut", frame(packet.EtherTypeIPv4, 0, inner(60, 2, 64, false)[:30]), drop.Accept, 0},
	} {
		b := buf(append(unhex(t, "00006558"), c.frame...))
		if d := end.Decap(b, packet.ProtoGRE, 3); d != c.want {
			t.Errorf("%s: %v, want %v", c.name, d, c.want)
		}
		if c.at == 0 {
			continue
		}
		ip := packet.IPv4(b.Bytes()[c.at:])
		if ip.TOS() != 3 || ip.Check() != drop.Accept {
			t.Errorf("%s: TOS %#x, header %v", c.name, ip.TOS(), ip.Check())
		}
	}
}

// TestTTL: the outer TTL is the configured one, whatever the inner one is.
func TestTTL(t *testing.T) {
	for _, c := range []Config{
		{Source: director, Destination: realserver, TTL: 64},
		{Kind: KindGRE, Source: director6, Destination: realserver6, TTL: 64},
	} {
		tunnel := mustNew(t, c)
		b := buf(inner(60, 0, 1, false))
		o := tunnel.Wrap(b, 0)
		got := b.Bytes()[8]
		if c.Destination.Is6() {
			got = b.Bytes()[7]
		}
		if got != 64 || o.TTL != 64 {
			t.Errorf("%v: TTL %d, reported %d, want 64", c.Destination, got, o.TTL)
		}
	}
}
