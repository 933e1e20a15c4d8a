package forward

import (
	"bytes"
	"net/netip"
	"testing"

	"vstun/balancer"
	"vstun/encap/packet"
)

// TestForeign: what belongs to no connection and is for no VIP is written back as it came. A packet for a former VIP is
// not, nor is any where nothing is translated.
func TestForeign(t *testing.T) {
	former := netip.MustParseAddr("198.51.100.99")
	echo := []byte{packet.ICMPEcho, 0, 0xf7, 0xff, 0, 0, 0, 0}
	ping := ip(packet.ProtoICMP, false, echo)
	copy(ping[12:], real1.AsSlice())
	copy(ping[16:], client.AsSlice())
	ping.SetChecksum()
	damaged := bytes.Clone(ping)
	damaged[22]++
	for _, six := range []bool{false, true} {
		asked, real := flows(packet.ProtoUDP, six)
		about := made(real, 0, 100)
		about[len(about)-80] = 0
		unknown := errorAbout(about, 60, 3, 1, 0) // no connection yet
		toFormer := made(packet.Flow{Src: real1, Dst: former, SrcPort: 8080, DstPort: 1, Proto: packet.ProtoTCP},
			packet.FlagACK, 0)
		in := [][]byte{made(real.Reverse(), 0, 10), ping, damaged, unknown,
			made(packet.Flow{Src: real1, Dst: client, SrcPort: 1, DstPort: 2, Proto: packet.ProtoTCP}, 0, 9),
			made(packet.Flow{Src: client, Dst: real1, SrcPort: 1, DstPort: 2, Proto: packet.ProtoUDP}, 0, 9)}
		s := newNATSite(t, 1500)
		cfg := natConfig(1500)
		cfg.LeftVIPs = []netip.Addr{former}
		if err := s.worker.balancer.Apply(cfg); err != nil {
			t.Fatal(err)
		}
		got, raw := s.run(t, packet.Offload{}, append(clone(in), toFormer)...)
		if len(raw) != 1 || packet.IPv4(raw[0]).Src() != former || len(got) != len(in) {
			t.Fatalf("%v: %d packets written back, want %d, and %x, want a RST", asked, len(got), len(in), raw)
		}
		for i := range in {
			if !bytes.Equal(got[i], raised(in[i])) {
				t.Errorf("%x became %x", in[i], got[i])
			}
		}
		s.worker.balancer = balancerOf(t, balancer.Config{Services: cfg.Services[5:]})
		if got, raw := s.run(t, packet.Offload{}, clone(in)...); len(got)+len(raw) != 0 {
			t.Errorf("nothing is translated, and out went %x and %x", got, raw)
		}
	}
}

// TestEarlyReplies: while connections of other directors may be missing, a realserver's packet of an unknown connection
// is not sent on untranslated. One that begins a connection is, and so are all of other hosts.
func TestEarlyReplies(t *testing.T) {
	s, cfg := newNATSite(t, 1500), natConfig(1500)
	_, request := flows(packet.ProtoTCP, false)
	server := request.Reverse()
	other := server
	other.SrcPort = 9
	for _, incomplete := range []bool{false, true} {
		cfg.Options.Incomplete = incomplete
		if err := s.worker.balancer.Apply(cfg); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			p     []byte
			waits bool
		}{
			{made(server, packet.FlagSYN|packet.FlagACK, 0), true}, {made(server, packet.FlagACK, 100), true},
			{made(server, packet.FlagSYN, 0), false}, {made(other, packet.FlagACK, 0), false},
		} {
			got, raw := s.run(t, packet.Offload{}, clone([][]byte{c.p})...)
			if sent := len(got) == 1; sent == (c.waits && incomplete) || len(raw) > 0 {
				t.Errorf("incomplete %v: %x: written back %v, and %x", incomplete, c.p, sent, raw)
			}
		}
	}
}

// TestOthersBeforeSnapshot: another packet of a realserver is sent on as it came while the rules for VS/NAT are there
// and the snapshot is not. One for a VIP is not sent on, and without such rules no packet is.
func TestOthersBeforeSnapshot(t *testing.T) {
	s, tunnel := newNATSite(t, 1500), natConfig(1500).Services[5]
	tunnel.VIPs = append(tunnel.VIPs, vip6)
	s.worker.balancer = balancerOf(t, balancer.Config{Services: []balancer.Service{tunnel}})
	for _, real := range []netip.Addr{real1, real6} {
		to, served := client, vip
		if real.Is6() {
			to, served = client6, vip6
		}
		f := packet.Flow{Proto: packet.ProtoUDP, Src: real, SrcPort: 4711, Dst: to, DstPort: 123}
		other := made(f, 0, 100)
		f.Dst = served
		for _, expected := range []bool{false, true} {
			s.worker.shared.ExpectOthers(expected)
			back, _ := s.run(t, packet.Offload{}, other)
			if sent := len(back) == 1; sent != expected {
				t.Errorf("%v, expected %v: %d packets are written back", real, expected, len(back))
			}
			if back, _ = s.run(t, packet.Offload{}, made(f, 0, 100)); len(back) > 0 {
				t.Errorf("%v, expected %v: a packet for a VIP is written back", real, expected)
			}
		}
	}
}
