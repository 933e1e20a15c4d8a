package neigh

import (
	"bytes"
	"net/netip"
	"testing"
)

var (
	vip4, vip6 = netip.MustParseAddr("10.1.0.80"), netip.MustParseAddr("fd00:1::80")
	left4      = netip.MustParseAddr("10.1.0.81")
	left6      = netip.MustParseAddr("fd00:1::81")
	peer4      = netip.MustParseAddr("10.1.0.9")
	peer6      = netip.MustParseAddr("fd00:1::9")
	ours       = MAC{2, 0, 0, 0, 0, 1}
	theirs     = MAC{2, 0, 0, 0, 0, 9}
)

const onDevice = 7 // the index of the device with the addresses

func testTable() *table {
	return newTable([]Device{{Name: "east", Index: onDevice, MAC: ours, Addrs: []netip.Addr{vip4, vip6},
		Former: []netip.Addr{left4, left6}}})
}

// TestARP: the cases of RFC 826 and RFC 5227.
func TestARP(t *testing.T) {
	t.Parallel()
	zero := netip.IPv4Unspecified()
	ask := func(from, a netip.Addr) []byte { return arpRequest(theirs, from, a) }
	foreign := ask(peer4, vip4)
	foreign[1] = 6 // IEEE 802 instead of Ethernet
	for _, c := range []struct {
		name             string
		packet           []byte
		index            int
		unicast          bool
		answers, claimed bool
	}{
		{"a request", ask(peer4, vip4), onDevice, false, true, false},
		{"a unicast request", ask(peer4, vip4), onDevice, true, true, false},
		{"a probe", ask(zero, vip4), onDevice, false, true, false},
		{"on another device", ask(peer4, vip4), 8, false, false, false},
		{"for another address", ask(peer4, peer4), onDevice, false, false, false},
		{"for a former address", ask(peer4, left4), onDevice, false, false, false},
		{"for a former address, by a neighbour that has it", ask(peer4, left4), onDevice, true, true, false},
		{"an announcement", ask(vip4, vip4), onDevice, false, false, true},
		{"an announcement of a former address", ask(left4, left4), onDevice, false, false, false},
		{"a request by another owner", ask(vip4, peer4), onDevice, false, false, true},
		{"a reply of another owner", (&arpPacket{op: arpAsk, senderMAC: ours, sender: peer4, target: vip4}).
			answer(theirs), onDevice, true, false, true},
		{"our own request", arpRequest(ours, zero, vip4), onDevice, false, false, false},
		{"a multicast sender", arpRequest(MAC{1, 0, 0, 0, 0, 1}, peer4, vip4), onDevice, false, false, false},
		{"cut short", ask(peer4, vip4)[:arpLen-1], onDevice, false, false, false},
		{"with padding", append(ask(peer4, vip4), make([]byte, 18)...), onDevice, false, true, false},
		{"of another hardware", foreign, onDevice, false, false, false},
	} {
		v := testTable().arp(received{c.index, theirs, c.unicast}, c.packet)
		if (v.answer != nil) != c.answers || v.claimed.IsValid() != c.claimed || c.claimed && v.by != theirs {
			t.Errorf("%s: %+v, want an answer: %v, a conflict: %v", c.name, v, c.answers, c.claimed)
		}
		if v.answer == nil {
			continue
		}
		q, _ := parseARP(c.packet)
		p, ok := parseARP(v.answer)
		if want := (arpPacket{arpReply, ours, q.target, theirs, q.sender}); !ok || p != want || v.to != theirs {
			t.Errorf("%s: answer %+v to %v, want %+v", c.name, p, v.to, want)
		}
	}
}

// TestND: the cases of RFC 4861 and of RFC 4862, section 5.4.
func TestND(t *testing.T) {
	t.Parallel()
	ask := func(edit func(p *ndPacket)) []byte {
		p := &ndPacket{kind: solicitation, src: peer6, dst: solicitedNode(vip6), target: vip6, mac: theirs,
			hasMAC: true}
		edit(p)
		return p.bytes()
	}
	good := ask(func(*ndPacket) {})
	damaged := func(offset int, value byte) []byte {
		b := bytes.Clone(good)
		b[offset] = value
		return b
	}
	resum := func(b []byte) []byte { // for damage that the checksum does not show
		b[42], b[43] = 0, 0
		sum := ndChecksum(b)
		b[42], b[43] = byte(sum>>8), byte(sum)
		return b
	}
	solicit, advert := uint8(solicited|override), uint8(override)
	for _, c := range []struct {
		name    string
		packet  []byte
		unicast bool
		flags   uint8 // of the answer; 0: there is none
		dst     netip.Addr
		to      MAC
		claimed bool
	}{
		{"a solicitation", good, false, solicit, peer6, theirs, false},
		{"without its option", ask(func(p *ndPacket) { p.hasMAC = false }), false, solicit, peer6, theirs, false},
		{"a unicast probe", ask(func(p *ndPacket) { p.dst = vip6 }), true, solicit, peer6, theirs, false},
		{"duplicate address detection", ndProbe(vip6), false, advert, allNodes, groupMAC(allNodes), false},
		{"the same to another group", ask(func(p *ndPacket) { p.src, p.hasMAC, p.dst = unspecified, false, allNodes }),
			false, 0, peer6, theirs, false},
		{"the same with an option", ask(func(p *ndPacket) { p.src = unspecified }), false, 0, peer6, theirs, false},
		{"for another address", ask(func(p *ndPacket) { p.target = peer6 }), false, 0, peer6, theirs, false},
		{"for a former address", ask(func(p *ndPacket) { p.target = left6 }), false, 0, peer6, theirs, false},
		{"for a former address, by a neighbour that has it", ask(func(p *ndPacket) { p.target = left6 }), true, solicit,
			peer6, theirs, false},
		{"detection of a former address", ndProbe(left6), false, 0, peer6, theirs, false},
		{"an option with a group's address", ask(func(p *ndPacket) { p.mac = broadcast }), false, solicit, peer6,
			theirs, false},
		{"an announcement", ndAnnouncement(theirs, vip6), false, 0, peer6, theirs, true},
		{"our own announcement", ndAnnouncement(ours, vip6), false, 0, peer6, theirs, false},
		{"a solicitation by another owner", ask(func(p *ndPacket) { p.src, p.target = vip6, peer6 }), false, 0, peer6,
			theirs, true},
		{"with a wrong checksum", damaged(43, good[43]+1), false, 0, peer6, theirs, false},
		{"from behind a router", damaged(7, 254), false, 0, peer6, theirs, false},
		{"with a code", resum(damaged(41, 1)), false, 0, peer6, theirs, false},
		{"with an option of no length", resum(damaged(65, 0)), false, 0, peer6, theirs, false},
		{"with an option that is too long", resum(damaged(65, 2)), false, 0, peer6, theirs, false},
		{"another message", resum(damaged(40, 134)), false, 0, peer6, theirs, false},
		{"a length beyond its end", damaged(5, good[5]+1), false, 0, peer6, theirs, false},
		{"with padding", append(bytes.Clone(good), 1, 2, 3), false, solicit, peer6, theirs, false},
	} {
		v := testTable().nd(received{onDevice, theirs, c.unicast}, c.packet)
		if (v.answer != nil) != (c.flags != 0) || v.claimed.IsValid() != c.claimed || c.claimed && v.by != theirs {
			t.Errorf("%s: %+v", c.name, v)
		}
		if v.answer == nil {
			continue
		}
		q, _ := parseND(c.packet)
		want := ndPacket{advertisement, c.flags, q.target, c.dst, q.target, ours, true}
		if p, ok := parseND(v.answer); !ok || p != want || v.to != c.to {
			t.Errorf("%s: answer %+v to %v, want %+v to %v", c.name, p, v.to, want, c.to)
		}
	}
	if v := testTable().nd(received{8, theirs, false}, good); v.answer != nil {
		t.Error("an answer on another device")
	}
}

// TestProbed: while a host probes an address, it leaves it to another host that probes it and has a lower MAC address.
// A unicast probe, as switches send it to hosts that they know, and a probe for another address count for nothing.
func TestProbed(t *testing.T) {
	t.Parallel()
	lower := MAC{2, 0, 0, 0, 0, 0}
	zero := netip.IPv4Unspecified()
	for _, c := range []struct {
		name    string
		from    MAC
		addr    netip.Addr
		unicast bool
		want    bool
	}{
		{"lower", lower, vip4, false, true}, {"lower, IPv6", lower, vip6, false, true},
		{"higher", theirs, vip4, false, false}, {"higher, IPv6", theirs, vip6, false, false},
		{"unicast", lower, vip4, true, false}, {"unicast, IPv6", lower, vip6, true, false},
		{"another address", lower, peer4, false, false}, {"another address, IPv6", lower, peer6, false, false},
		{"a former address", lower, left4, false, false}, {"a former address, IPv6", lower, left6, false, false},
		{"our own", ours, vip4, false, false}, {"our own, IPv6", ours, vip6, false, false},
	} {
		v := verdict{}
		if r := (received{onDevice, c.from, c.unicast}); c.addr.Is4() {
			v = testTable().arp(r, arpRequest(c.from, zero, c.addr))
		} else {
			v = testTable().nd(r, ndProbe(c.addr))
		}
		if v.probed.IsValid() != c.want || c.want && (v.probed != c.addr || v.by != lower) || v.claimed.IsValid() {
			t.Errorf("%s: %+v", c.name, v)
		}
	}
	v := testTable().arp(received{onDevice, lower, false}, arpRequest(lower, peer4, vip4))
	if v.probed.IsValid() {
		t.Errorf("an ordinary request is a probe: %+v", v)
	}
}

// FuzzFrames: no frame is answered that does not ask for an address of the table, and every answer is valid.
func FuzzFrames(f *testing.F) {
	f.Add(true, true, arpRequest(theirs, peer4, vip4))
	f.Add(true, false, arpRequest(theirs, netip.IPv4Unspecified(), vip4))
	f.Add(true, false, arpRequest(theirs, vip4, vip4))
	f.Add(false, true, ndProbe(vip6))
	f.Add(false, true, ndAnnouncement(theirs, vip6))
	f.Add(false, false, (&ndPacket{kind: solicitation, src: peer6, dst: vip6, target: vip6, mac: theirs,
		hasMAC: true}).bytes())
	table := testTable()
	f.Fuzz(func(t *testing.T, arp, unicast bool, b []byte) {
		r := received{onDevice, theirs, unicast}
		v, at := table.nd(r, b), ndTarget
		if arp {
			v, at = table.arp(r, b), arpTarget
		}
		if v.answer == nil {
			return
		}
		size := 4
		if !arp {
			size = 16
		}
		asked, _ := netip.AddrFromSlice(b[at : at+size])
		if active, known := table.devices[onDevice].active[asked]; !known || !active && !unicast {
			t.Fatalf("an answer about %v", asked)
		}
		if arp {
			if p, ok := parseARP(v.answer); !ok || p.sender != asked || p.senderMAC != ours || !v.to.isHost() {
				t.Fatalf("answer %+v to %v", p, v.to)
			}
		} else if p, ok := parseND(v.answer); !ok || p.target != asked || p.mac != ours {
			t.Fatalf("answer %+v", p)
		}
	})
}
