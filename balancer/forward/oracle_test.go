package forward

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/balancer/method"
	"vstun/encap"
	"vstun/encap/packet"
)

// oracleCase is one case of the recordings of a kernel's IPVS. differences lists the deviations.
type oracleCase struct {
	Case  string
	Setup struct {
		VIP     netip.Addr
		Ipvsadm []string
		MTU     int `json:"rs_mtu"`
		Sysctl  map[string]int
	}
	Steps []oracleStep
}

type oracleStep struct {
	Do, From, In string
	Quotes       *struct{ At, Length int }
	Out          []recordedPacket
}

type recordedPacket struct {
	To, Hex  string
	Volatile [][2]int
}

// differences lists the deliberate deviations by file and case, with the steps at which the packets differ.
var differences = []struct {
	name   string
	steps  []int
	reason string
}{
	{"gre/router-fragneeded-quote-48", []int{2}, "a quote without 8 bytes behind the IP header does not help a client"},
	{"gre/router-fragneeded-quote-80", []int{2}, sizeAtOnce},
	{"gre/router-fragneeded-quote-all", []int{2}, sizeAtOnce},
	{"gre/router-fragneeded-tiny", []int{2}, sizeTiny},
	{"gue/router-fragneeded-quote-28", []int{3, 4}, learnedAlways},
	{"gue/router-fragneeded-quote-48", []int{3, 4}, learnedAlways},
	{"gue/router-fragneeded-quote-80", []int{2}, sizeAtOnce},
	{"gue/router-fragneeded-quote-all", []int{2}, sizeAtOnce},
	{"gue/router-fragneeded-tiny", []int{2}, sizeTiny},
	{"ipip/router-fragneeded-quote-28", []int{3, 4}, learnedAlways},
	{"ipip/router-fragneeded-quote-48", []int{2}, sizeAtOnce},
	{"ipip/router-fragneeded-quote-80", []int{2}, sizeAtOnce},
	{"ipip/router-fragneeded-quote-all", []int{2}, sizeAtOnce},
	{"ipip/router-fragneeded-tiny", []int{2}, sizeTiny},
	{"ipip/frag-no-last", []int{2}, "no sender is told that the rest of a packet has not come"},
	{"ipip/options-rr", []int{0}, "the host that forwards into the TUN device fills in options, with the address " +
		"that it has there"},
	{"ipip/options-ts", []int{0}, "the host that forwards into the TUN device fills in options"},
	{"ipip/other-protocols", []int{0}, "SCTP is spoken here, so that it is a port that is unreachable"},
	{"ipip/other-protocols", []int{2, 3}, "the recording's host answers for protocols that no service has"},
	{"ipip/no-service", []int{0}, "a SYN to a port without service is answered with ICMP too, and by no RST"},
	{"ipip/last-service-removed", []int{3, 4}, "IPVS unhooks itself with its last service, and its host answers; " +
		"here on_removal = \"drop\" holds"},
	{"ipip/client-icmp-fragment", []int{1}, "a quote of a later fragment has no ports: the kernel takes its data " +
		"for them"},
	{"ipip/client-icmp-no-service", []int{1}, "there is no schedule_icmp: an ICMP error opens no connection"},
	{"ipip/pmtu_disc-0", []int{0, 1}, "there is no pmtu_disc"},
	{"nat/no-service", []int{0}, "a SYN to a port without service is answered with ICMP too, and by no RST"},
	{"nat6/no-service", []int{0}, "a SYN to a port without service is answered with ICMP too, and by no RST"},
	{"nat/client-icmp-3-1", []int{4, 5}, quotedChecksum},
	{"nat/server-icmp-3-1", []int{4, 5}, quotedChecksum},
	{"nat/client-icmp-3-4", []int{4, 5}, quotedChecksum},
	{"nat/server-icmp-3-4", []int{4, 5}, quotedChecksum},
	{"nat/client-icmp-11-0", []int{4, 5}, quotedChecksum},
	{"nat/server-icmp-11-0", []int{4, 5}, quotedChecksum},
	{"nat/client-icmp-3-3", []int{4, 5}, quotedChecksum},
	{"nat/server-icmp-3-3", []int{4, 5}, quotedChecksum},
	{"nat/server-icmp-own", []int{1}, quotedChecksum},
	{"nat/client-icmp-udp", []int{2}, quotedChecksum},
}

const (
	sizeAtOnce    = "a client is told the size that a router has named at once, and not what was right before"
	sizeTiny      = "a client is told no size below 68; the way's, which the kernel bounds, comes with its next packet"
	learnedAlways = "the MTU of a way is learned from quotes of every length"

	quotedChecksum = "in a quote the transport checksum is translated, too (RFC 5508): the packet is as it was sent"
)

// TestOracle replays every recording through a worker, and errors from the realservers' side through a relay, and
// compares what comes out, byte by byte, but for what the kernel fills in or makes up. Five rules hold for all of it,
// on purpose or since a director is no host for the VIP:
//   - Packets with a TTL of 1 are answered by the host that forwards them into the TUN device, as it lowers the TTL.
//   - So a "port unreachable" quotes a packet whose TTL is lowered already.
//   - A packet marked CE has an outer header with CE (RFC 6040), and not with ECT(0).
//   - ICMPv6 errors have the VIP as source, as those of IPv4 have, and not an address of the host's.
//   - The outer TTLs of a flow's datagrams take turns (TestDatagramsStayApart); here each is the flow's first.
func TestOracle(t *testing.T) {
	files, err := filepath.Glob("../../testdata/oracle/wire/*.jsonl")
	if err != nil || len(files) < 9 {
		t.Fatalf("%d files, %v; want 9", len(files), err)
	}
	found, n := map[string]bool{}, 0
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".jsonl")
		for _, c := range readOracle(t, file) {
			n++
			replay := replay
			if strings.HasPrefix(name, "nat") {
				replay = replayNAT
			}
			name := name + "/" + c.Case
			found[name] = true
			t.Run(name, func(t *testing.T) {
				for i, what := range replay(t, &c) {
					switch reason := listed(name, i); {
					case what != "" && reason == "":
						t.Errorf("step %d: %s", i, what)
					case what == "" && reason != "":
						t.Errorf("step %d is as recorded, though listed: %s", i, reason)
					}
				}
			})
		}
	}
	for _, d := range differences {
		if !found[d.name] {
			t.Errorf("there is no case %s", d.name)
		}
	}
	if n < 300 {
		t.Errorf("%d cases, want at least 300", n)
	}
}

// listed returns the reason for a deliberate difference at that step.
func listed(name string, step int) string {
	for _, d := range differences {
		if d.name == name && slices.Contains(d.steps, step) {
			return d.reason
		}
	}
	return ""
}

func readOracle(t *testing.T, file string) (all []oracleCase) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s := bufio.NewScanner(bytes.NewReader(text))
	s.Buffer(nil, 1<<22)
	for s.Scan() {
		var c oracleCase
		dec := json.NewDecoder(bytes.NewReader(s.Bytes()))
		if err := dec.Decode(&c); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		all = append(all, c)
	}
	return all
}

// oracleRun is a director for one case.
type oracleRun struct {
	t        *testing.T
	now      conntab.Ticks
	config   balancer.Config
	mtu      map[netip.Addr]int // of the ways to the realservers, else least
	least    int
	balancer *balancer.Balancer
	worker   *Worker
	relay    *Relay
	in, out  script
	errors   script
	last     []byte // the first packet towards the realservers of the latest step that sent any
}

// replay returns the differences at each step, "" for none.
func replay(t *testing.T, c *oracleCase) (differ []string) {
	r := &oracleRun{t: t, now: 1000, mtu: map[netip.Addr]int{}, least: c.Setup.MTU}
	r.balancer = balancer.New(conntab.New(conntab.Config{Max: 2048, DropRemoved: true,
		SloppyTCP:    c.Setup.Sysctl["sloppy_tcp"] != 0,
		ExpireNodest: c.Setup.Sysctl["expire_nodest_conn"] != 0}), 1)
	shared, clock := NewShared(), func() conntab.Ticks { return r.now }
	r.worker = testWorker(&r.in, &r.out, nil, r.balancer, shared, clock)
	r.relay = NewRelay(&r.errors, &r.out, r.balancer, shared, clock)
	for _, line := range c.Setup.Ipvsadm {
		r.ipvsadm(line)
	}
	for _, s := range c.Steps {
		if name, arg, _ := strings.Cut(s.Do, " "); name == "sleep" {
			seconds, err := strconv.ParseFloat(arg, 64)
			if err != nil {
				t.Fatal(err)
			}
			r.now += conntab.Ticks(seconds * conntab.PerSecond)
			shared.Sweep(r.now)
		} else if name == "ipvsadm" {
			r.ipvsadm(arg)
		} else if name != "" {
			t.Fatalf("what is %q?", s.Do)
		}
		differ = append(differ, r.step(&s, c.Setup.VIP))
	}
	return differ
}

// ipvsadm does what the options of a line say, of those that the recordings have.
func (r *oracleRun) ipvsadm(line string) {
	f := strings.Fields(line)
	option := func(name string) string {
		if i := slices.Index(f, name); i >= 0 && i+1 < len(f) {
			return f[i+1]
		}
		return ""
	}
	proto, at := uint8(packet.ProtoTCP), option("-t")
	if at == "" {
		proto, at = packet.ProtoUDP, option("-u")
	}
	vip, err := netip.ParseAddrPort(at)
	if err != nil {
		r.t.Fatalf("ipvsadm %s: %v", line, err)
	}
	name := at + packet.ProtoName(proto)
	i := slices.IndexFunc(r.config.Services, func(s balancer.Service) bool { return s.Name == name })
	real := realserverOf(r.t, option("-r"))
	r.config.Services = slices.Clone(r.config.Services)
	switch f[0] {
	case "-A":
		r.config.Services = append(r.config.Services, balancer.Service{Name: name, VIPs: []netip.Addr{vip.Addr()},
			Protocol: proto,
			Ports:    []balancer.PortRange{{First: vip.Port(), Last: vip.Port()}}, Scheduler: option("-s")})
	case "-D":
		r.config.Services = slices.Delete(r.config.Services, i, i+1)
	case "-a":
		rs := balancer.Realserver{Address: real.Addr(), Weight: 1, Config: method.Config{
			Source: netip.MustParseAddr("10.0.3.2"), MTU: r.least,
			// Remote checksum offload leaves a checksum where, as here, there is nothing to offload.
			Checksum: slices.Contains(f, "--tun-csum") || slices.Contains(f, "--tun-remcsum")}}
		if w := option("-w"); w != "" {
			rs.Weight, _ = strconv.Atoi(w)
		}
		if !real.Addr().Is4() {
			rs.Source = netip.MustParseAddr("fd13::2")
		}
		if slices.Contains(f, "-m") {
			rs.Config = method.Config{Kind: method.NAT, Port: real.Port(), MTU: r.least}
		}
		if kind := option("--tun-type"); kind != "" {
			rs.Encap, _ = encap.ParseKind(kind)
		}
		if port, err := strconv.Atoi(option("--tun-port")); err == nil {
			rs.EncapPort = uint16(port)
		}
		r.config.Services[i].Realservers = append(slices.Clone(r.config.Services[i].Realservers), rs)
	case "-d":
		r.config.Services[i].Realservers = slices.DeleteFunc(slices.Clone(r.config.Services[i].Realservers),
			func(rs balancer.Realserver) bool { return rs.Address == real.Addr() })
	case "-e":
		list := slices.Clone(r.config.Services[i].Realservers)
		at := slices.IndexFunc(list, func(rs balancer.Realserver) bool { return rs.Address == real.Addr() })
		list[at].Weight, _ = strconv.Atoi(option("-w"))
		r.config.Services[i].Realservers = list
	default:
		r.t.Fatalf("ipvsadm %s?", line)
	}
	r.apply()
}

// realserverOf reads an address, with or without a port.
func realserverOf(t *testing.T, s string) netip.AddrPort {
	if s == "" {
		return netip.AddrPort{}
	}
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return netip.AddrPortFrom(a, 0)
	}
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (r *oracleRun) apply() {
	for i := range r.config.Services {
		list := slices.Clone(r.config.Services[i].Realservers)
		for j := range list {
			if mtu := r.mtu[list[j].Address]; mtu != 0 {
				list[j].MTU = mtu
			}
		}
		r.config.Services[i].Realservers = list
	}
	if err := r.balancer.Apply(r.config); err != nil {
		r.t.Fatal(err)
	}
}

// step does one step and returns the differences.
func (r *oracleRun) step(s *oracleStep, vip netip.Addr) string {
	in, err := hex.DecodeString(s.In)
	if err != nil {
		r.t.Fatal(err)
	}
	r.out.out = nil
	switch s.From {
	case "client":
		if in = r.hop(in); in == nil {
			return ""
		}
		r.in.in = [][]byte{in}
		r.worker.sendBy(&r.out) // which also begins TTLs anew
		if err := r.worker.Run(); err != nil {
			r.t.Fatal(err)
		}
	case "realserver":
		in = bytes.Clone(in)
		if s.Quotes != nil {
			copy(in[s.Quotes.At:][:s.Quotes.Length], r.last)
			t := packet.IPv4(in).Payload()
			t[2], t[3] = 0, 0
			binary.BigEndian.PutUint16(t[2:], packet.Checksum(t))
		}
		r.errors.in = [][]byte{in}
		if err := r.relay.Run(); err != nil {
			r.t.Fatal(err)
		}
		select {
		case <-r.worker.shared.TooBig: // the kernel has learned, and is asked
			q, _ := packet.QuotedFlow(in)
			const minPMTU = 552 // net.ipv4.route.min_pmtu
			r.mtu[q.Flow.Dst] = max(q.MTU, minPMTU)
			r.config.Services = slices.Clone(r.config.Services)
			r.apply()
		default:
		}
	}
	var got, want []string
	for _, b := range together(r.t, r.out.out) {
		if to := toRealserver(b); to == "realserver" && len(got) == 0 {
			r.last = whole(b)
		}
		got = append(got, toRealserver(b)+" "+hex.EncodeToString(plain(r.t, b)))
	}
	var recorded [][]byte
	for _, o := range s.Out {
		b, err := hex.DecodeString(o.Hex)
		if err != nil {
			r.t.Fatal(err)
		}
		recorded = append(recorded, b)
	}
	for _, b := range together(r.t, recorded) {
		if b = asDirector(b, vip, in); b != nil {
			want = append(want, toRealserver(b)+" "+hex.EncodeToString(plain(r.t, b)))
		}
	}
	if slices.Equal(got, want) {
		return ""
	}
	return fmt.Sprintf("in %x\n got %s\nwant %s", in, strings.Join(got, "\n     "), strings.Join(want, "\n     "))
}

// hop returns a packet as the host forwards it into the TUN device: nil for one that it answers itself.
func (r *oracleRun) hop(in []byte) []byte {
	b := bytes.Clone(in)
	switch {
	case len(b) >= 40 && b[0]>>4 == 6:
		if b[7]--; b[7] == 0 {
			return nil
		}
	case len(b) >= 20 && packet.IPv4(b).Version() == 4:
		if b[8] <= 1 {
			return nil
		}
		if h := packet.IPv4(b); h.HeaderLen() >= 20 && h.HeaderLen() <= len(b) &&
			packet.Checksum(b[:h.HeaderLen()]) == 0 {
			b[8]--
			h.SetChecksum()
		}
	}
	return b
}

// whole returns b with the fields that a kernel fills in on a raw socket.
func whole(b []byte) []byte {
	b = bytes.Clone(b)
	if b[0]>>4 == 4 {
		packet.IPv4(b).SetChecksum()
	}
	return b
}

// together puts packets together that are fragments, by the obvious way, and leaves others as they are.
func together(t *testing.T, in [][]byte) (out [][]byte) {
	for _, b := range in {
		b = bytes.Clone(b)
		h := packet.IPv4(b)
		if h.Version() != 4 || !h.Fragment() {
			out = append(out, b)
			continue
		}
		field := binary.BigEndian.Uint16(h[6:])
		if at := int(field&0x1fff) * 8; at > 0 {
			first := packet.IPv4(out[len(out)-1])
			if len(first)-20 != at || first.ID() != h.ID() {
				t.Fatalf("fragments out of order: %x", b)
			}
			first = append(first, h.Payload()...)
			first.SetTotalLen(len(first))
			out[len(out)-1] = first
		} else {
			h[6] &^= 0x20
			out = append(out, h)
		}
	}
	return out
}

func toRealserver(b []byte) string {
	if d := destination(b); netip.MustParsePrefix("10.3.0.0/16").Contains(d) ||
		netip.MustParsePrefix("fd03::/64").Contains(d) {
		return "realserver"
	}
	return "client"
}

func destination(b []byte) netip.Addr {
	if b[0]>>4 == 6 {
		return packet.IPv6(b).Dst()
	}
	return packet.IPv4(b).Dst()
}

// plain returns b without the fields that differ from run to run: IDs and UDP source ports of tunnels, and so
// checksums, which are checked.
func plain(t *testing.T, b []byte) []byte {
	b = bytes.Clone(b)
	if b[0]>>4 == 6 {
		return b
	}
	h := packet.IPv4(b)
	h[4], h[5], h[10], h[11] = 0, 0, 0, 0
	if toRealserver(b) == "realserver" && h.Protocol() == packet.ProtoUDP {
		u := h.Payload()
		if u[6]|u[7] != 0 {
			if packet.Fold(packet.Sum(u, h.PseudoSum(len(u)))) != 0xffff {
				t.Errorf("wrong UDP checksum: %x", b)
			}
			u[6], u[7] = 0xff, 0xff
		}
		u[0], u[1] = 0, 0
	}
	return b
}

// asDirector returns the packet that a director sends in answer to in, in place of the recorded b, since it is no host
// for the VIP; nil: none.
func asDirector(b []byte, vip netip.Addr, in []byte) []byte {
	if toRealserver(b) == "realserver" {
		if h := packet.IPv6(b); b[0]>>4 == 6 && len(in) >= 40 && packet.IPv6(in).TrafficClass()&3 == 3 {
			h.SetTrafficClass(h.TrafficClass() | 3)
		} else if b[0]>>4 == 4 && len(in) >= 20 && in[1]&3 == 3 {
			b[1] |= 3
		}
		return b
	}
	if h := packet.IPv6(b); b[0]>>4 == 6 {
		if h.NextHeader() == packet.ProtoICMPv6 && h[40] < packet.ICMPv6Echo {
			copy(h[8:24], vip.AsSlice())
			h[42], h[43] = 0, 0
			packet.PutChecksum(h[42:], packet.Sum(h[40:], h.PseudoSum(packet.ProtoICMPv6, len(h)-40)), false)
		}
		return b
	}
	h := packet.IPv4(b)
	if t := h.Payload(); h.Protocol() == packet.ProtoICMP && t[0] == packet.ICMPUnreachable &&
		t[1] == packet.ICMPCodePort && t[8+8] == in[8]+1 {
		quote := packet.IPv4(t[8:])
		quote[8]--
		quote.SetChecksum()
		t[2], t[3] = 0, 0
		binary.BigEndian.PutUint16(t[2:], packet.Checksum(t))
	}
	return b
}
