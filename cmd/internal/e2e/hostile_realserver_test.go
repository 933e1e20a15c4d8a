package e2e

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// trapPort is the port on which the test receives packets that should be refused.
const trapPort = 9999

// TestHostileRealserver sends realservers, from another host, packets that must be refused: with every fault, by every
// tunnel, over IPv4 and IPv6, and then 200,000 of them in random order; a million with VSTUN_FULL=1 (`make long`).
func TestHostileRealserver(t *testing.T) {
	s := newSite(t, 3, nil)
	s.startTunnelEnds()
	s.startDirector("", service{"tcp", "80", "wrr", []int{1, -1, -1}})
	s.namedEcho(s.Webs[0], 80)
	traps := map[*program]net.PacketConn{}
	for _, agent := range s.agents {
		// on the VIPs and on the host's own addresses
		traps[agent] = s.listenUDP(agent.host, ":"+strconv.Itoa(trapPort))
	}
	evil := s.newInjector(s.Webs[2])

	// Packets without the faults below are accepted.
	tunnelEnds, good := s.tunnelEnds(), uint64(0)
	for _, g := range tunnelEnds {
		for version, way := range map[int][2]netip.Addr{4: {s.Client.Addr, s.VIP}, 6: {s.Client.Addr6, s.VIP6}} {
			word := fmt.Sprintf("IPv%d by %s", version, &g)
			evil.injectAll([]*badPacket{{end: g, packet: g.wrap(g.director, version, udpPacket(t, way[0], way[1], 1234,
				trapPort, word))}})
			if got := mustRead(t, traps[g.agent]); got != word {
				t.Fatalf("%q came in, want %q", got, word)
			}
			delete(evil.want[g.agent], "") // valid packets have no reason of a drop
			good++
		}
	}
	entered := func() (n uint64) {
		for _, agent := range s.agents {
			frames, err := agent.host.Received("vs0")
			if err != nil {
				t.Fatal(err)
			}
			n += frames + agent.intake().FastPath.Taken.Packets // the device does not count those
		}
		return n
	}
	testkit.Within(t, fmt.Sprintf("all %d of them have come through vs0", good), soon,
		func() bool { return entered() >= good })
	if n := entered(); n != good {
		t.Fatalf("%d packets came through vs0, want %d", n, good)
	}
	for _, agent := range s.agents {
		switched := os.Getenv(fastPathEnv) == "off" || os.Getenv(fastPathEnv) == "realserver"
		if fast := agent.intake().FastPath; !switched && (!fast.On || fast.Taken.Packets == 0) {
			t.Errorf("%s has no fast path: %+v", agent, fast)
		}
	}

	pid, descriptors, rejections := map[*program]int{}, map[*program]int{}, map[*program]map[string]uint64{}
	for _, agent := range s.agents {
		pid[agent], descriptors[agent], rejections[agent] = agent.Pid(), agent.descriptors(), s.rejections(agent.host)
	}
	var all []*badPacket
	for _, g := range tunnelEnds {
		all = append(all, s.badPackets(g)...)
	}
	t.Logf("%d faults", len(all))
	evil.mustBeRefused(all)
	random := rand.New(rand.NewPCG(1, 2))
	evil.inject(long(1_000_000, 200_000, 100_000), func() *badPacket { return all[random.IntN(len(all))] })
	if !evil.refused() {
		for _, agent := range s.agents {
			t.Errorf("%s refused %v, want %v", agent, agent.intake().Drops, evil.want[agent])
		}
	}

	// Random bytes, and random bytes with parts of a packet.
	evil.inject(short(20_000, 5000), func() *badPacket { return s.garbage(random, tunnelEnds) })
	// A fragment without the other fragments stays in the kernel.
	fragment := tunnelEnds[0].wrap(tunnelEnds[0].director, 4, make([]byte, 24))
	fragment[6] = 1 << 5
	fixChecksum(fragment)
	s.rawSender(s.Webs[2]).inject(fragment)

	for _, agent := range s.agents {
		st, thrown := agent.intake(), evil.thrown[agent]
		if refused := sum(st.Drops); st.In.Packets != thrown || refused+st.Out.Packets != thrown || st.Overruns != 0 {
			t.Errorf("%s received %d packets, refused %d and let %d in, %d overruns; %d were thrown", agent,
				st.In.Packets, refused, st.Out.Packets, st.Overruns, thrown)
		}
		// No ICMP error was sent.
		if now := s.rejections(agent.host); !maps.Equal(now, rejections[agent]) {
			t.Errorf("%s: the kernel's counters moved from %v to %v", agent.host.Name, rejections[agent], now)
		}
		if err := traps[agent].SetReadDeadline(time.Now()); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 2048)
		if n, from, err := traps[agent].ReadFrom(buf); err == nil {
			t.Errorf("%s: %q came in from %s", agent.host.Name, buf[:n], from)
		}
		if agent.Pid() != pid[agent] || st.Pid != pid[agent] {
			t.Errorf("%s is process %d, was %d", agent, st.Pid, pid[agent])
		}
		testkit.Within(t, fmt.Sprintf("%s has no more than %d descriptors open", agent, descriptors[agent]), soon,
			func() bool { return agent.descriptors() <= descriptors[agent] })
	}
	if n := entered(); n != good {
		t.Errorf("%d packets came in through vs0", n-good)
	}
	s.mustBeServedBy(80, "web1")
}

// mustBeRefused sends each packet of a list once, and reports the packets that are not refused for their reason.
func (m *injector) mustBeRefused(list []*badPacket) {
	m.s.t.Helper()
	m.injectAll(list)
	if m.refused() {
		return
	}
	m.s.t.Errorf("%d packets are not refused as they should be", len(list))
	for _, i := range list {
		before := i.end.agent.intake()
		m.injectAll([]*badPacket{i})
		now := i.end.agent.intake()
		if now.Drops[i.reason] == before.Drops[i.reason]+1 {
			continue
		}
		why := fmt.Sprintf("let in %d", now.Out.Packets-before.Out.Packets)
		for reason, n := range now.Drops {
			if n != before.Drops[reason] {
				why = "refused as " + reason
			}
		}
		m.s.t.Errorf("%s: %s, want %s", i.name, why, i.reason)
	}
	m.s.t.FailNow()
}

// garbage returns random bytes in a tunnel, every other time with parts of a packet.
func (s *site) garbage(random *rand.Rand, tunnelEnds []tunnelEnd) *badPacket {
	g := tunnelEnds[random.IntN(len(tunnelEnds))]
	b := make([]byte, random.IntN(200))
	for i := range b {
		b[i] = byte(random.Uint32())
	}
	version := 4 + 2*random.IntN(2)
	if len(b) >= 40 && random.IntN(2) == 0 {
		b[0] = b[0]&0x0f | byte(version)<<4
		if version == 4 {
			copy(b[16:], s.VIP.AsSlice())
		} else {
			copy(b[24:], s.VIP6.AsSlice())
		}
	}
	return &badPacket{end: g, packet: g.wrap(g.director, version, b)}
}

// mustRead returns the next datagram.
func mustRead(t *testing.T, c net.PacketConn) string {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(soon)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2048)
	n, _, err := c.ReadFrom(buf)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:n])
}

// rejections returns a host's counters of sent ICMP errors, and of datagrams to closed ports.
func (s *site) rejections(h *lab.Host) map[string]uint64 {
	s.t.Helper()
	all, some := s.counters(h), map[string]uint64{}
	for _, name := range []string{"Icmp:OutMsgs", "Udp:NoPorts", "Icmp6OutDestUnreachs", "Icmp6OutTimeExcds",
		"Icmp6OutParmProblems", "Udp6NoPorts"} {
		n, known := all[name]
		if !known {
			s.t.Fatalf("no counter %s among %v", name, all)
		}
		some[name] = n
	}
	return some
}

// counters returns the kernel's counters of a host's protocols, proc(5): "Icmp:OutMsgs", "Icmp6OutMsgs".
func (s *site) counters(h *lab.Host) map[string]uint64 {
	s.t.Helper()
	var text, text6 []byte
	err := h.Do(func() (err error) {
		if text, err = os.ReadFile("/proc/thread-self/net/snmp"); err == nil {
			text6, err = os.ReadFile("/proc/thread-self/net/snmp6")
		}
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	all := map[string]uint64{}
	keep := func(name, value string) {
		if n, err := strconv.ParseUint(value, 10, 64); err == nil { // some are -1
			all[name] = n
		}
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	for i := 0; i+1 < len(lines); i += 2 {
		names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
		for j := 1; j < len(names); j++ {
			keep(names[0]+names[j], values[j])
		}
	}
	for line := range strings.Lines(string(text6)) {
		if words := strings.Fields(line); len(words) == 2 {
			keep(words[0], words[1])
		}
	}
	return all
}
