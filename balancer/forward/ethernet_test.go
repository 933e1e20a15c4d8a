package forward

import (
	"bytes"
	"testing"

	"vstun/balancer/conntab"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/encap/packet/stats"
)

// putFrame puts a packet with an Ethernet header in front into buffer i of the worker.
func (w *Worker) putFrame(i int, from byte, p []byte) {
	w.put(i, p, packet.Offload{})
	packet.Ethernet(w.bufs[i].Before(packet.EthernetHeaderLen)).SetSrc([6]byte{2, 0, 0, 0, 1, from})
}

// withTTL returns a copy of p with another TTL or hop limit.
func withTTL(p []byte, ttl byte) []byte {
	p = bytes.Clone(p)
	if packet.Version(p) == 6 {
		packet.IPv6(p).SetHopLimit(ttl)
		return p
	}
	packet.IPv4(p).SetTTL(ttl)
	packet.IPv4(p).SetChecksum()
	return p
}

// TestEthernet: the worker lowers the TTL of packets from an Ethernet network. Its answers, time exceeded among them,
// go to the source of the frame, and have an ID if routers may fragment them.
func TestEthernet(t *testing.T) {
	var f frames
	now := conntab.Ticks(1)
	w, s := newDirect(t, 1500, nearLink, &f, &now)
	w.ethernet = true
	ping := ip(packet.ProtoICMP, false, []byte{8, 0, 0, 0, 0, 1, 0, 1})
	packet.ICMP(ping[20:]).SetChecksum(0)
	request := tcp(80, packet.FlagSYN, 0)
	in := [][]byte{request, udp6(53, 20), withTTL(request, 2), withTTL(request, 1), withTTL(udp6(53, 20), 1),
		withTTL(ping, 1), segment(false, 81, packet.FlagACK, 0, false), tcp(81, packet.FlagSYN, 0),
		withTTL(errorAbout(flipped(request), 100, 3, 4, 1400), 1)}
	for i, p := range in {
		w.putFrame(i, byte(i), p)
	}
	w.forward(w.bufs[:len(in)])
	if len(s.out) != 0 || len(f.out) != len(in)-1 {
		t.Fatalf("%d of %d packets by the link, %d otherwise: %+v", len(f.out), len(in)-1, len(s.out), f.to)
	}
	for i, want := range [][]byte{withTTL(in[0], in[0][8]-1), withTTL(in[1], in[1][7]-1), withTTL(in[2], 1)} {
		if !bytes.Equal(f.out[i], want) || f.to[i].MAC != nearLink.MAC {
			t.Errorf("packet %d: %x to %x, want %x", i, f.out[i], f.to[i].MAC, want)
		}
	}
	for i := 3; i < len(f.out); i++ {
		a, want := f.out[i], in[i]
		if f.to[i].MAC != [6]byte{2, 0, 0, 0, 1, byte(i)} {
			t.Errorf("answer %d goes to %x", i, f.to[i].MAC)
		}
		if packet.Version(a) == 6 {
			if m := packet.ICMP(a[packet.IPv6HeaderLen:]); m.Type() != packet.ICMPv6TimeExceeded || m.Code() != 0 ||
				packet.IPv6(a).Src() != vip6 || !bytes.Equal(m.Payload(), want) {
				t.Errorf("answer %d: %x", i, a)
			}
			continue
		}
		h := packet.IPv4(a)
		if h.Check() != drop.Accept || h.Src() != vip || h.Dst() != client || !h.DF() && h.ID() == 0 {
			t.Errorf("answer %d: %x", i, a)
		}
		if m := packet.ICMP(h.Payload()); i == 3 && (m.Type() != packet.ICMPTimeExceeded || m.Code() != 0 ||
			!bytes.Equal(m.Payload(), want)) {
			t.Errorf("answer %d: %x", i, a)
		}
	}
	var tally stats.Tally
	w.Read(&tally)
	if tally.Drops[drop.TTL] != 3 || tally.Resets != 1 {
		t.Errorf("counted %+v", tally)
	}
}

// TestEthernetAllocatesNothing: neither packets nor answers.
func TestEthernetAllocatesNothing(t *testing.T) {
	now := conntab.Ticks(1)
	w, _ := newDirect(t, 1500, nearLink, discard{}, &now)
	w.ethernet = true
	request, stray := tcp(80, packet.FlagSYN, 0), segment(false, 81, packet.FlagACK, 0, false)
	if n := testing.AllocsPerRun(100, func() {
		now += conntab.PerSecond
		w.putFrame(0, 1, request)
		w.putFrame(1, 1, stray)
		w.putFrame(2, 1, withTTLInPlace(request, 1))
		w.forward(w.bufs[:3])
		withTTLInPlace(request, 64)
	}); n != 0 {
		t.Errorf("%v allocations a batch", n)
	}
}

func withTTLInPlace(p packet.IPv4, ttl byte) packet.IPv4 {
	p.SetTTL(ttl)
	p.SetChecksum()
	return p
}
