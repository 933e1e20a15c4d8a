package e2e

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"vstun/cmd/internal/lab"
)

// trapPort is where the test waits for packets that should not get in.
const trapPort = 9999

// attack is a kind of packet that a realserver must refuse.
type attack struct {
	name   string
	outer  netip.Addr // source
	inside []byte
	tos    uint8  // of the outer header
	reason string // under which it is counted; "" is any
}

// TestHostileRealserver throws at a realserver, from other hosts, what must not get in.
func TestHostileRealserver(t *testing.T) {
	const each = 20
	s := newRunningSite(t, 2, service{"tcp", "80", "wrr", []int{1, -1}})
	s.parrot(s.Webs[0], 80)
	agent, web := s.agents[0], s.Webs[0]
	trap := s.listenUDP(web, ":"+strconv.Itoa(trapPort)) // on the VIP and on the host's own address
	evil, client := s.thrower(s.Webs[1]), s.thrower(s.Client)
	tunnel := func(source netip.Addr, tos uint8, inside []byte) []byte {
		outer := ip4(source, web.Addr, layers.IPProtocolIPv4)
		outer.TOS = tos
		return build(t, outer, gopacket.Payload(inside))
	}

	// What all the packets below are like, were it not for their one fault, gets in.
	good := udpPacket(t, s.Client.Addr, s.VIP, 1234, trapPort, "let me in")
	idle := agent.intake().Out.Packets
	evil.throw(tunnel(s.Director.Addr, 0, good))
	if err := trap.SetReadDeadline(time.Now().Add(soon)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2048)
	if n, _, err := trap.ReadFrom(buf); err != nil || string(buf[:n]) != "let me in" {
		t.Fatalf("a packet without a fault did not get in: %q, %v", buf[:n], err)
	}
	eventually(t, "the agent has counted it", soon, func() bool { return agent.intake().Out.Packets == idle+1 }) // it does so after the batch

	before, descriptors, pid := agent.intake(), agent.descriptors(), agent.Pid()
	protocols := s.snmp(web)
	entered := s.count(web, "vs0", lab.Filter{Direction: lab.In})
	attacks := s.attacks(good)
	want, total := map[string]uint64{}, uint64(0)
	for _, a := range attacks {
		sender := evil
		if a.outer == s.Client.Addr {
			sender = client
		}
		for range each {
			sender.throw(tunnel(a.outer, a.tos, a.inside))
		}
		// Each kind by itself, so that none is counted in place of another.
		total += each
		eventually(t, "the agent has received "+a.name, soon, func() bool { return agent.intake().In.Packets-before.In.Packets >= total })
		if a.reason != "" {
			want[a.reason] += each
			if got := agent.intake().Drops[a.reason]; got != want[a.reason] {
				t.Errorf("%s: %d packets are counted as %s, want %d", a.name, got, a.reason, want[a.reason])
			}
		}
	}
	if st := agent.intake(); !maps.Equal(st.Drops, want) || st.Out != before.Out {
		t.Errorf("refused %v and let %d packets in, want %v and 0", st.Drops, st.Out.Packets-before.Out.Packets, want)
	}

	// Random bytes as the inner packet, and random ones that look a bit like a packet.
	random := rand.New(rand.NewPCG(1, 2))
	for i := range short(5000, 1000) {
		b := make([]byte, random.IntN(200))
		for j := range b {
			b[j] = byte(random.Uint32())
		}
		if len(b) >= 20 && i%2 == 0 {
			copy(b, good[:random.IntN(10)]) // never the checksum
			copy(b[12:20], good[12:20])
		}
		evil.throw(tunnel(s.Director.Addr, 0, b))
		total++
		if i%200 == 199 {
			eventually(t, "the agent has received the random packets", soon, func() bool { return agent.intake().In.Packets-before.In.Packets >= total })
		}
	}
	// A fragment whose rest never comes stays in the kernel.
	outer := ip4(s.Director.Addr, web.Addr, layers.IPProtocolIPv4)
	outer.Id, outer.Flags = 4711, layers.IPv4MoreFragments
	evil.throw(build(t, outer, gopacket.Payload(good[:24])))

	st := agent.intake()
	if in, refused := st.In.Packets-before.In.Packets, sum(st.Drops); in != total || refused != total || st.Out != before.Out || st.Overruns != 0 {
		t.Errorf("received %d packets, refused %d, let %d in, %d overruns; want %d, %d, 0 and 0",
			in, refused, st.Out.Packets-before.Out.Packets, st.Overruns, total, total)
	}
	if n := entered(); n != 0 {
		t.Errorf("%d packets came in through vs0", n)
	}
	// No datagram was delivered, and no ICMP told the sender anything.
	if now := s.snmp(web); !maps.Equal(now, protocols) {
		t.Errorf("the kernel's counters of UDP and ICMP moved from %v to %v", protocols, now)
	}
	if err := trap.SetReadDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	if n, from, err := trap.ReadFrom(buf); err == nil {
		t.Errorf("%q came in from %s", buf[:n], from)
	}

	s.mustParrot(80, web.Name)
	if agent.Pid() != pid || agent.intake().Pid != pid {
		t.Errorf("the agent's process is %d, was %d", agent.intake().Pid, pid)
	}
	eventually(t, fmt.Sprintf("no more than %d descriptors are open", descriptors), soon, func() bool { return agent.descriptors() <= descriptors })
}

// attacks lists packets with one fault each. Good is the one without.
func (s *site) attacks(good []byte) []attack {
	director, web := s.Director.Addr, s.Webs[0].Addr
	addr := netip.MustParseAddr
	inner := func(src, dst netip.Addr) []byte { return udpPacket(s.t, src, dst, 1234, trapPort, "let me in") }
	edited := func(edit func(b []byte) []byte) []byte { return edit(append([]byte(nil), good...)) }
	var list []attack
	add := func(name, reason string, outer netip.Addr, inside []byte) {
		list = append(list, attack{name: name, outer: outer, inside: inside, reason: reason})
	}
	for _, outer := range []netip.Addr{s.Webs[1].Addr, s.Client.Addr, addr("203.0.113.9"), addr("10.0.2.3")} {
		add("a packet from "+outer.String(), "not_director", outer, good)
	}
	add("bytes from elsewhere", "not_director", addr("203.0.113.9"), []byte("no packet"))
	for _, dst := range []netip.Addr{web, s.Webs[1].Addr, director, addr("198.51.100.81"), addr("127.0.0.1"), addr("224.0.0.1"), addr("255.255.255.255"), addr("0.0.0.0")} {
		add("a packet to "+dst.String(), "inner_destination", director, inner(s.Client.Addr, dst))
	}
	for _, src := range []netip.Addr{s.VIP, addr("127.0.0.1"), addr("224.0.0.1"), addr("239.1.2.3"), addr("0.0.0.0"), addr("0.1.2.3"), addr("240.0.0.1"), addr("255.255.255.255")} {
		add("a packet that comes from "+src.String(), "inner_source", director, inner(src, s.VIP))
	}
	for _, p := range []layers.IPProtocol{layers.IPProtocolIPv4, layers.IPProtocolIPv6, layers.IPProtocolGRE} {
		add(fmt.Sprintf("a tunnel of protocol %d in the tunnel", p), "inner_protocol", director,
			build(s.t, ip4(s.Client.Addr, s.VIP, p), gopacket.Payload(good)))
	}
	add("nothing", "truncated", director, nil)
	add("one byte", "truncated", director, good[:1])
	add("half a header", "truncated", director, good[:19])
	add("half a packet", "truncated", director, good[:24])
	add("all but one byte", "truncated", director, good[:len(good)-1])
	add("a byte too many", "trailing_bytes", director, append(append([]byte(nil), good...), 0))
	add("IPv6", "not_ipv4", director, edited(func(b []byte) []byte { b[0] = 0x65; return b }))
	add("a header of 16 bytes", "bad_header", director, edited(func(b []byte) []byte { b[0] = 0x44; return fixChecksum(b) }))
	add("a packet shorter than its header", "bad_header", director, edited(func(b []byte) []byte {
		binary.BigEndian.PutUint16(b[2:], 19)
		return fixChecksum(b)
	}))
	add("a wrong checksum", "bad_checksum", director, edited(func(b []byte) []byte { b[10] ^= 1; return b }))
	options := func(o ...byte) []byte {
		b := append(append(append([]byte(nil), good[:20]...), o...), good[20:]...)
		b[0] += byte(len(o) / 4)
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		return fixChecksum(b)
	}
	add("a loose source route", "source_route", director, options(131, 7, 4, 10, 0, 11, 2, 0))
	add("a strict source route", "source_route", director, options(137, 7, 4, 10, 0, 11, 2, 0))
	add("an option without end", "bad_header", director, options(7, 40, 4, 0))
	// Explicit congestion on the way, and a packet that can't carry it (RFC 6040, section 4.2).
	list = append(list, attack{name: "congestion", outer: director, inside: good, tos: 3, reason: "congestion"})
	return list
}

// snmp is the kernel's counters of what UDP and ICMP have received and sent on a host, proc(5).
func (s *site) snmp(h *lab.Host) map[string]string {
	s.t.Helper()
	var text []byte
	err := h.Do(func() (err error) {
		text, err = os.ReadFile("/proc/thread-self/net/snmp")
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	counters := map[string]string{}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	for i := 0; i+1 < len(lines); i += 2 {
		names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
		if names[0] != "Udp:" && names[0] != "Icmp:" {
			continue
		}
		for j := 1; j < len(names); j++ {
			counters[names[0]+names[j]] = values[j]
		}
	}
	if _, ok := counters["Udp:InDatagrams"]; !ok {
		s.t.Fatalf("no counters in %s", text)
	}
	return counters
}
