package balancer

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vstun/balancer/conntab"
	"vstun/balancer/method"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

// The recordings in testdata/oracle/sched hold what a real kernel's IPVS decided; each is replayed event by event.

type oracleService struct {
	Service struct {
		VIP       string
		Port      uint16
		Proto     string
		FWMark    int
		Scheduler string
		Flags     string // of the scheduler, comma-separated
		OnePacket bool   `json:"one_packet"`

		Persistence int    // s
		Netmask     string // of persistence
	}
	Realservers []oracleRealserver
	Timeouts    struct{ TCP, TCPFin, UDP int }
	Sysctl      map[string]int
}

type oracleRealserver struct {
	Address              string
	Weight, Upper, Lower int
}

type oracleEvent struct {
	Op, Src, Dst, Flags, Reply string
	To                         *string
	oracleRealserver           // of weight, add and remove
	Seconds                    float64
	Realservers                [][4]any // of counts
}

func readLines(t *testing.T, file string) [][]byte {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var lines [][]byte
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		lines = append(lines, slices.Clone(s.Bytes()))
	}
	return lines
}

func decode[T any](t *testing.T, line []byte) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(line, &v); err != nil {
		t.Fatalf("%v: %s", err, line)
	}
	return v
}

func TestOracleSchedulers(t *testing.T) {
	files, _ := filepath.Glob("../testdata/oracle/sched/*") // whatever is there
	if len(files) == 0 {
		t.Fatal("no recordings found")
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".jsonl"), func(t *testing.T) { replay(t, file) })
	}
}

func replay(t *testing.T, file string) {
	lines := readLines(t, file)
	head := decode[oracleService](t, lines[0])
	events := make([]oracleEvent, len(lines)-1)
	cfg := Config{Services: []Service{{Name: "s", Protocol: packet.ProtoTCP, Scheduler: head.Service.Scheduler,
		Flags: Flags{Port: strings.Contains(head.Service.Flags, "-port"),
			Fallback: strings.Contains(head.Service.Flags, "-fallback")},
		OnePacket: head.Service.OnePacket, Ports: []PortRange{{head.Service.Port, head.Service.Port}}}}}
	svc := &cfg.Services[0]
	if n := head.Service.Persistence; n > 0 {
		svc.Persistence = Persistence{Timeout: secs(n), Mask4: 32, Mask6: 128}
	}
	if m := head.Service.Netmask; m != "" {
		svc.Persistence.Mask4, _ = net.IPMask(net.ParseIP(m).To4()).Size()
	}
	proto := head.Service.Proto
	if proto == "udp" {
		svc.Protocol = packet.ProtoUDP
	}
	if head.Service.VIP != "" {
		svc.VIPs = append(svc.VIPs, netip.MustParseAddr(head.Service.VIP))
	}
	ports := map[uint16]bool{}
	for i, l := range lines[1:] {
		events[i] = decode[oracleEvent](t, l)
		if d := events[i].Dst; d != "" { // a service behind a mark: every address that its packets name
			ap := netip.MustParseAddrPort(d)
			if !slices.Contains(svc.VIPs, ap.Addr()) {
				svc.VIPs = append(svc.VIPs, ap.Addr())
			}
			ports[ap.Port()] = true
			if events[i].Flags == "udp" {
				svc.Protocol = packet.ProtoUDP
			}
		}
	}
	if len(ports) > 0 {
		svc.Ports = nil
		for p := range ports {
			svc.Ports = append(svc.Ports, PortRange{p, p})
		}
	}

	reuse := conntab.ReuseClosed
	if mode, ok := head.Sysctl["conn_reuse_mode"]; ok {
		reuse = []conntab.Reuse{conntab.ReuseNever, conntab.ReuseClosed, conntab.ReuseClosing}[mode]
	}
	table := conntab.New(conntab.Config{Max: 100_000, DropRemoved: true, Reuse: reuse,
		ExpireNodest: head.Sysctl["expire_nodest_conn"] == 1,
		Timeouts: conntab.Timeouts{TCP: secs(head.Timeouts.TCP), TCPFin: secs(head.Timeouts.TCPFin),
			UDP: secs(head.Timeouts.UDP)}})
	cfg.Options.ExpireQuiescentTemplate = head.Sysctl["expire_quiescent_template"] == 1
	b := New(table, 1)
	apply := func() {
		t.Helper()
		if err := b.Apply(cfg); err != nil {
			t.Fatal(err)
		}
	}
	apply()
	for _, r := range head.Realservers { // one after the other, as the recorder did
		svc.Realservers = append(slices.Clone(svc.Realservers), oracleReal(r))
		apply()
	}

	var now conntab.Ticks
	packets := 0
	for i, e := range events {
		at := fmt.Sprintf("%s:%d", filepath.Base(file), i+2)
		switch e.Op {
		case "packet":
			packets++
			want := "none"
			if e.To != nil {
				want = *e.To
			}
			got, reply := decide(b, svc, &e, now)
			if got != want {
				t.Fatalf("%s: %s %s goes to %s, want %s", at, e.Src, e.Flags, got, want)
			}
			if reply != e.Reply {
				t.Fatalf("%s: %s %s is answered with %q, want %q", at, e.Src, e.Flags, reply, e.Reply)
			}
		case "weight":
			svc.Realservers = slices.Clone(svc.Realservers)
			for i := range svc.Realservers {
				if svc.Realservers[i].Address.String() == e.Address {
					if svc.Realservers[i].Weight == e.Weight {
						// ipvsadm -e with the weight that it has: a configuration that is read again has no such step,
						// but it moves wrr's position.
						b.services["s"].sched.changed(b.services["s"].list, change{kind: changeWeight})
						settle(b.services["s"].sched, b.services["s"].list)
					}
					svc.Realservers[i] = oracleReal(e.oracleRealserver)
				}
			}
			apply()
		case "add":
			svc.Realservers = append(slices.Clone(svc.Realservers), oracleReal(e.oracleRealserver))
			apply()
		case "remove":
			svc.Realservers = slices.DeleteFunc(slices.Clone(svc.Realservers),
				func(r Realserver) bool { return r.Address.String() == e.Address })
			apply()
		case "sleep":
			// so that what ends first is swept first
			for end := now + conntab.Ticks(e.Seconds*conntab.PerSecond); now != end; now++ {
				table.Sweep(now + 1)
			}
		case "counts":
			var got [][4]any
			for _, d := range b.services["s"].list {
				got = append(got, [4]any{d.Address.String(), float64(d.Weight), float64(d.counts.Active()),
					float64(d.counts.Inactive())})
			}
			if !slices.Equal(got, e.Realservers) {
				t.Fatalf("%s: counts are\n%v, want\n%v", at, got, e.Realservers)
			}
		default:
			t.Fatalf("%s: event %q is not known", at, e.Op)
		}
	}
	if packets == 0 {
		t.Fatal("no packet in the recording")
	}
}

// decide returns the realserver that the event's packet goes to, "none" for none, and the answer that its client gets
// then: see forward.Worker.
func decide(b *Balancer, svc *Service, e *oracleEvent, now conntab.Ticks) (to, reply string) {
	src := netip.MustParseAddrPort(e.Src)
	dst := netip.AddrPortFrom(svc.VIPs[0], svc.Ports[0].First)
	if e.Dst != "" {
		dst = netip.MustParseAddrPort(e.Dst)
	}
	p := packet.Info{Len: 40, Flow: packet.Flow{Src: src.Addr(), Dst: dst.Addr(), SrcPort: src.Port(),
		DstPort: dst.Port(), Proto: packet.ProtoTCP}}
	if e.Flags == "udp" {
		p.Flow.Proto = packet.ProtoUDP
	} else {
		p.TCPFlags = tcpFlags(e.Flags)
	}
	d, reason := b.Snapshot().Decide(&p, now)
	switch {
	case reason == drop.Accept:
		return d.Address.String(), ""
	case reason == drop.NoConnection && p.TCPFlags&packet.FlagRST == 0:
		return "none", "tcp-rst"
	case reason == drop.NoRealserver && src.Addr().Is4():
		return "none", "icmp 3/3"
	case reason == drop.NoRealserver:
		return "none", "icmp 1/4"
	}
	return "none", ""
}

func oracleReal(r oracleRealserver) Realserver {
	rs := Realserver{Address: netip.MustParseAddr(r.Address), Weight: r.Weight, Upper: r.Upper, Lower: r.Lower,
		Config: method.Config{MTU: 1500}}
	if rs.Address.Is6() {
		rs.Source = netip.MustParseAddr("fd00::1")
	}
	return rs
}

func secs(n int) time.Duration { return time.Duration(n) * time.Second }

func tcpFlags(s string) (f uint8) {
	for _, c := range s {
		f |= map[rune]uint8{'F': packet.FlagFIN, 'S': packet.FlagSYN, 'R': packet.FlagRST, 'P': packet.FlagPSH,
			'A': packet.FlagACK, 'U': packet.FlagURG}[c]
	}
	return f
}
