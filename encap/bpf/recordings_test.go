package bpf

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"net/netip"
	"os"
	"testing"

	"github.com/vishvananda/netlink"

	"vstun/encap"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/testdata/testkit"
)

// recorded is a packet that a kernel's IPVS has forwarded, and what it became.
type recorded struct {
	name     string
	in, out  []byte
	volatile [][2]int // offset and length of bytes of out that differ from run to run
}

// recordings reads the steps of a file of recordings that have one packet out.
func recordings(t *testing.T, file string) (all []recorded) {
	t.Helper()
	text, err := os.ReadFile("../../testdata/oracle/wire/" + file + ".jsonl")
	must(t, err)
	s := bufio.NewScanner(bytes.NewReader(text))
	s.Buffer(nil, 1<<22)
	for s.Scan() {
		var c struct {
			Case  string
			Steps []struct {
				Do, In string
				Out    json.RawMessage
			}
		}
		must(t, json.Unmarshal(s.Bytes(), &c))
		for _, step := range c.Steps {
			var out []struct {
				Hex      string
				Volatile [][2]int
			}
			if step.Do != "" || json.Unmarshal(step.Out, &out) != nil || len(out) != 1 {
				continue
			}
			in, _ := hex.DecodeString(step.In)
			to, _ := hex.DecodeString(out[0].Hex)
			if len(in) > 0 && len(to) > 0 {
				all = append(all, recorded{c.Case, in, to, out[0].Volatile})
			}
		}
	}
	must(t, s.Err())
	return all
}

// TestRecordings: of the packets of recordings of a kernel's IPVS, those that the program takes become what they became
// there, but for volatile bytes. The others are unchanged.
func TestRecordings(t *testing.T) {
	needRoot(t)
	testkit.NewNamespace(t)
	prepare(t)
	sysctl(t, "ipv4/conf/lo/forwarding", "1")
	sysctl(t, "ipv6/conf/all/forwarding", "1")
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "client"}, PeerName: "peer"}))
	up(t, "peer")
	up(t, "client", "192.0.2.1/24", "2001:db8:77::1/64")
	route(t, "0.0.0.0/0", "192.0.2.2", 0)
	route(t, "::/0", "2001:db8:77::2", 0)
	for _, of := range []struct {
		file   string
		config *encap.Config // nil: NAT
		least  int           // packets that the program takes
	}{
		{"ipip", &encap.Config{Kind: encap.KindIPIP}, 100}, {"gre", &encap.Config{Kind: encap.KindGRE}, 45},
		{"gue", &encap.Config{Kind: encap.KindGUE, Port: 5555}, 50},
		{"ip6ip6", &encap.Config{Kind: encap.KindIPIP}, 25}, {"nat", nil, 90}, {"nat6", nil, 35},
	} {
		d := newTestDirector(t)
		taken, all := 0, recordings(t, of.file)
		for _, r := range all {
			if r.name == "pmtu_disc-0" { // net.ipv4.vs.pmtu_disc=0: never DF
				continue
			}
			if replay(t, d, of.config, r) {
				taken++
			}
		}
		t.Logf("%s: %d of %d packets", of.file, taken, len(all))
		if taken < of.least {
			t.Errorf("%s: the program takes %d packets of %d, want %d", of.file, taken, len(all), of.least)
		}
	}
}

// replay runs the program on a recorded packet, and reports whether it takes it.
func replay(t *testing.T, d *Director, c *encap.Config, r recorded) bool {
	t.Helper()
	f, p, ok := decided(t, c, r)
	if !ok {
		return false
	}
	ref, err := d.Add(p)
	must(t, err)
	defer d.Remove(ref)
	f.Path = ref
	_, err = d.Set([]Flow{f})
	must(t, err)
	in := frame(r.in)
	action, out := run(t, d.objects.Director, in)
	if action == next {
		if !bytes.Equal(out, in) {
			t.Errorf("%s: %x is left as %x", r.name, in, out)
		}
		return false
	}
	got, want := out[packet.EthernetHeaderLen:], bytes.Clone(r.out)
	if len(got) != len(want) {
		t.Errorf("%s:\n got %x\nwant %x", r.name, got, want)
		return true
	}
	if c != nil && packet.Version(want) == 4 {
		if packet.IPv4(got).Check() != drop.Accept {
			t.Errorf("%s: outer header %x", r.name, got[:20])
		}
		if r.in[1]&3 == 3 { // we copy CE; the kernel sends it on as ECT(0): RFC 6040
			want[1] |= 1
		}
		finishOuter(want, got)
	} else if c != nil && r.in[1]&0x30 == 0x30 {
		want[1] |= 0x10
	}
	for _, v := range r.volatile {
		copy(want[v[0]:][:v[1]], got[v[0]:])
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: %x:\n got %x\nwant %x", r.name, r.in, got, want)
	}
	return true
}

// decided returns the flow of a recorded packet and its path, by the packet that it became.
func decided(t *testing.T, c *encap.Config, r recorded) (f Flow, p Path, ok bool) {
	t.Helper()
	var in, out packet.Info
	if in.Parse(r.in) != drop.Accept || out.Parse(r.out) != drop.Accept {
		return f, p, false
	}
	f.Flow = in.Flow
	p = Path{IPv6: in.Flow.Src.Is6(), Device: loopback, TUN: loopback, MTU: 1500}
	switch {
	case c != nil:
		if len(r.out) <= len(r.in) || out.Flow.Dst == in.Flow.Src {
			return f, p, false // no tunnel: an answer
		}
		c := *c
		c.Source, c.Destination = out.Flow.Src, out.Flow.Dst
		tunnel, err := encap.New(c)
		must(t, err)
		p.Kind, p.Tunnel, f.Port = Tunnel, &tunnel, out.Flow.SrcPort
	case in.Flow.Src == out.Flow.Src && in.Flow.Proto == out.Flow.Proto:
		p.Kind, p.Realserver = NAT, netip.AddrPortFrom(out.Flow.Dst, out.Flow.DstPort)
	case in.Flow.Dst == out.Flow.Dst && in.Flow.Proto == out.Flow.Proto:
		p.Kind, p.Realserver = NAT, netip.AddrPortFrom(in.Flow.Src, in.Flow.SrcPort)
		f.VIP, f.Port = out.Flow.Src, out.Flow.SrcPort
	default:
		return f, p, false
	}
	return f, p, true
}
