package forward

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

// natRun is a director of VS/NAT for one case, and the kernel of its host: the rules that lead packets into the TUN
// device, and the hop behind it.
type natRun struct {
	oracleRun
	kernel kernel
}

// kernel forwards what is written into the TUN device.
type kernel struct {
	t   testing.TB
	mtu map[string]int // by link
	out []sentPacket
}

// sentPacket is a packet on a link: "client" or "realserver".
type sentPacket struct {
	to string
	b  []byte
}

func (k *kernel) Write(bufs []*packet.Buf) (int, error) {
	for _, b := range bufs {
		if b.Offload != (packet.Offload{}) {
			k.t.Errorf("work is left to do: %+v", b.Offload)
		}
		k.forward(bytes.Clone(b.Bytes()))
	}
	return len(bufs), nil
}

// forward lowers the packet's TTL and sends it by the link of its destination, in fragments if need be.
func (k *kernel) forward(b []byte) {
	if b = lowered(b); b == nil {
		k.t.Error("a packet with a TTL of 1 is written back")
		return
	}
	to := toRealserver(b)
	mtu := k.mtu[to]
	if len(b) <= mtu {
		k.out = append(k.out, sentPacket{to, b})
		return
	}
	h := packet.IPv4(b)
	if h.Version() != 4 || h.DF() || h.HeaderLen() != packet.IPv4HeaderLen {
		k.t.Errorf("no router may fragment %x", b[:40])
		return
	}
	for at, data := 0, h.Payload(); len(data) > 0; {
		n := min(len(data), (mtu-20)&^7)
		f := packet.IPv4(slices.Concat(b[:20], data[:n]))
		f.SetTotalLen(len(f))
		f.SetFragment(at, n < len(data))
		f.SetChecksum()
		k.out = append(k.out, sentPacket{to, f})
		at, data = at+n, data[n:]
	}
}

// lowered returns b with the TTL that a router leaves it; nil: the router answers it itself.
func lowered(b []byte) []byte { return (&oracleRun{}).hop(b) }

// replayNAT is replay for VS/NAT.
func replayNAT(t *testing.T, c *oracleCase) (differ []string) {
	r := &natRun{oracleRun: oracleRun{t: t, now: 1000, mtu: map[netip.Addr]int{}, least: c.Setup.MTU},
		kernel: kernel{t: t, mtu: map[string]int{"client": 1500, "realserver": c.Setup.MTU}}}
	r.balancer = balancer.New(conntab.New(conntab.Config{Max: 2048, DropRemoved: true}), 1)
	shared := NewShared()
	r.worker = NewWorker(WorkerConfig{Source: &r.in, Raw: &r.out, TUN: &r.kernel, Balancer: r.balancer, Shared: shared,
		Clock: func() conntab.Ticks { return r.now }})
	for _, line := range c.Setup.Ipvsadm {
		r.ipvsadm(line)
	}
	for _, s := range c.Steps {
		switch name, arg, _ := strings.Cut(s.Do, " "); name {
		case "":
			differ = append(differ, r.step(&s, c.Setup.VIP))
		case "ipvsadm":
			r.ipvsadm(arg)
			differ = append(differ, "")
		default:
			t.Fatalf("what is %q?", s.Do)
		}
	}
	return differ
}

// step does one step and returns the differences.
func (r *natRun) step(s *oracleStep, vip netip.Addr) string {
	in, err := hex.DecodeString(s.In)
	if err != nil {
		r.t.Fatal(err)
	}
	if in = lowered(in); in == nil {
		return ""
	}
	r.out.out, r.kernel.out = nil, nil
	if s.From == "client" && destination(in) == vip || s.From == "realserver" && r.ruled(in) {
		r.in.in = [][]byte{in}
		r.worker.answers.init()
		if err := r.worker.Run(); err != nil {
			r.t.Fatal(err)
		}
	} else {
		r.kernel.out = []sentPacket{{toRealserver(in), in}}
	}
	got := r.kernel.out
	for _, b := range r.out.out {
		got = append(got, sentPacket{toRealserver(b), whole(b)})
	}
	var want []sentPacket
	var volatile [][][2]int
	for _, o := range s.Out {
		b, err := hex.DecodeString(o.Hex)
		if err != nil {
			r.t.Fatal(err)
		}
		want = append(want, sentPacket{o.To, r.asDirector(b, vip, in)})
		volatile = append(volatile, o.Volatile)
	}
	return compareNAT(r.t, in, got, want, volatile)
}

// ruled reports whether the rules of a director of VS/NAT lead a realserver's packet into the TUN device: TCP by the
// realserver's port, UDP and ICMP.
func (r *natRun) ruled(b []byte) bool {
	var p packet.Info
	p.Parse(b)
	if p.Flow.Proto != packet.ProtoTCP {
		return true
	}
	for _, s := range r.config.Services {
		for _, rs := range s.Realservers {
			if s.Protocol == packet.ProtoTCP && rs.Address == p.Flow.Src && rs.Port == p.Flow.SrcPort {
				return true
			}
		}
	}
	// The rules of a realserver that has been removed stay while it has connections.
	return slices.ContainsFunc(r.balancer.Leaving(), func(l balancer.Leaving) bool {
		return l.Address == p.Flow.Src
	})
}

// asDirector is asDirector for both families: the quote of an answer has a TTL that is lowered already.
func (r *natRun) asDirector(b []byte, vip netip.Addr, in []byte) []byte {
	b = asDirector(b, vip, in)
	if h := packet.IPv6(b); h.Version() == 6 && h.NextHeader() == packet.ProtoICMPv6 &&
		h[40] == packet.ICMPv6Unreachable && h[48+7] == in[7]+1 {
		h[48+7]--
		h[42], h[43] = 0, 0
		packet.PutChecksum(h[42:], packet.Sum(h[40:], h.PseudoSum(packet.ProtoICMPv6, len(h)-40)), false)
	}
	return b
}

// compareNAT returns the difference of packets, "" for none. volatile has the bytes of want's packets that differ from
// run to run. Fragments are compared as the packets that they make.
func compareNAT(t *testing.T, in []byte, got, want []sentPacket, volatile [][][2]int) string {
	lines := func(all []sentPacket) (out []string) {
		var packets [][]byte
		for i, p := range all {
			if toRealserver(p.b) != p.to {
				t.Errorf("to the %s went %x", p.to, p.b)
			}
			b := bytes.Clone(p.b)
			if ip := packet.IPv4(b); ip.Version() == 4 {
				if d := ip.Check(); d != drop.Accept {
					t.Errorf("%v: %x", d, b)
				}
				ip.ClearChecksum() // fragments have others
			}
			if len(all) == len(volatile) {
				for _, v := range volatile[i] {
					clear(b[v[0]:][:v[1]])
				}
			}
			packets = append(packets, b)
		}
		for _, b := range together(t, packets) {
			out = append(out, hex.EncodeToString(b))
		}
		return out
	}
	g, w := lines(got), lines(want)
	if slices.Equal(g, w) {
		return ""
	}
	return fmt.Sprintf("in %x\n got %s\nwant %s", in, strings.Join(g, "\n     "), strings.Join(w, "\n     "))
}

// TestOracleStatesNAT replays the states of connections that a kernel's IPVS sees from both sides: after each packet
// the connection's state and timeout, the realserver's counts, and where the packet went.
func TestOracleStatesNAT(t *testing.T) {
	for file, secure := range map[string]bool{"states-nat": false, "states-nat-secure": true} {
		text, err := os.ReadFile("../../testdata/oracle/tcp/" + file + ".jsonl")
		if err != nil {
			t.Fatal(err)
		}
		s, n := newNATSite(t, 1500), 0
		for line := bufio.NewScanner(bytes.NewReader(text)); line.Scan(); n++ {
			var c struct {
				Seq   []string
				After [][5]any
			}
			if err := json.Unmarshal(line.Bytes(), &c); err != nil && n > 0 {
				t.Fatal(err)
			}
			s.worker.balancer = balancer.New(conntab.New(conntab.Config{Max: 64, SecureTCP: secure}), 1)
			if err := s.worker.balancer.Apply(natConfig(1500)); err != nil {
				t.Fatal(err)
			}
			s.worker.resets.init()
			for i, flags := range c.Seq {
				if got := s.stateAfter(t, flags); got != c.After[i] {
					t.Fatalf("%s, %v, packet %d: got %v, want %v", file, c.Seq, i+1, got, c.After[i])
				}
			}
		}
		if n < 500 {
			t.Errorf("%s: only %d sequences", file, n)
		}
	}
}

// stateAfter forwards a packet of a connection and returns what the recordings have: flags beginning with "<" are of
// the realserver's packet.
func (s *natSite) stateAfter(t *testing.T, flags string) (after [5]any) {
	asked, real := flows(packet.ProtoTCP, false)
	flags, reply := strings.CutPrefix(flags, "<")
	f := asked
	if reply {
		f = real.Reverse()
	}
	bits := uint8(0)
	for i, name := range "FSRPAU" {
		if flags != "none" && strings.ContainsRune(flags, name) {
			bits |= 1 << i
		}
	}
	back, raw := s.run(t, packet.Offload{}, made(f, bits, 0))
	for c := range s.worker.balancer.Connections(s.now) {
		after[0], after[1] = c.State.String(), c.Expires.Seconds()
	}
	r := s.worker.balancer.Snapshot().Status()[0].Realservers[0]
	after[2], after[3] = float64(r.Active), float64(r.Inactive)
	switch all := append(back, raw...); {
	case len(all) > 1:
		t.Fatalf("%d packets came out", len(all))
	case len(raw) == 1 && packet.IPv4(raw[0]).Src() == vip && raw[0][33]&packet.FlagRST != 0:
		after[4] = "rst"
	case len(raw) == 1 && destination(raw[0]) == real1:
		after[4] = "rs"
	case len(raw) == 1:
		t.Fatalf("out went %x", raw[0])
	case len(back) == 1 && packet.IPv4(back[0]).Src() == vip:
		after[4] = "client"
	case len(back) == 1:
		after[4] = "plain"
	}
	return after
}
