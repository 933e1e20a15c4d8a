package e2e

import (
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// burst is the number of packets that an injector sends before it waits for their arrival. An agent's sockets can hold
// them.
const burst = 2000

// injector sends packets from a host to agents, many at once, as frames: the test makes all headers.
type injector struct {
	s       *site
	host    *lab.Host
	blaster *lab.Blaster
	head    []byte                         // Ethernet header without its type
	thrown  map[*program]uint64            // at each agent
	want    map[*program]map[string]uint64 // of these, by the reason for which they must be refused
}

func (s *site) newInjector(h *lab.Host) *injector {
	s.t.Helper()
	m := &injector{s: s, host: h, thrown: map[*program]uint64{}, want: map[*program]map[string]uint64{}}
	for _, agent := range s.agents {
		m.want[agent] = map[string]uint64{}
	}
	err := h.Do(func() (err error) {
		m.blaster, err = lab.NewBlaster("")
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(m.blaster.Close)
	gateway, err := s.Router.MAC(h.Name)
	if err != nil {
		s.t.Fatal(err)
	}
	m.head = slices.Concat(gateway, m.blaster.MAC())
	return m
}

// inject sends n packets that pick returns, and waits until the agents have received them.
func (m *injector) inject(n int, pick func() *badPacket) {
	m.s.t.Helper()
	frames := make([][]byte, 0, burst)
	for left := n; left > 0; {
		frames = frames[:0]
		for range min(left, burst) {
			i := pick()
			m.thrown[i.end.agent]++
			m.want[i.end.agent][i.reason]++
			if i.frame == nil {
				i.frame = m.frame(i.packet)
			}
			frames = append(frames, i.frame)
		}
		left -= len(frames)
		m.send(frames...)
		for _, agent := range m.s.agents {
			testkit.Within(m.s.t, agent.String()+" has received the packets", soon, func() bool {
				st := agent.intake()
				if st.Overruns > 0 {
					m.s.t.Fatalf("%s: %d overruns", agent, st.Overruns)
				}
				return st.In.Packets >= m.thrown[agent]
			})
		}
	}
}

// send sends all frames.
func (m *injector) send(frames ...[]byte) {
	m.s.t.Helper()
	err := m.host.Do(func() error {
		for len(frames) > 0 {
			sent, err := m.blaster.Send(min(len(frames), lab.Burst), func(i int) []byte { return frames[i] })
			if err != nil {
				return err
			}
			frames = frames[sent:]
		}
		return nil
	})
	if err != nil {
		m.s.t.Fatal(err)
	}
}

// injectAll sends each packet of a list once.
func (m *injector) injectAll(list []*badPacket) {
	m.s.t.Helper()
	next := 0
	m.inject(len(list), func() *badPacket {
		next++
		return list[next-1]
	})
}

// refused reports whether every packet so far has been refused for its own reason.
func (m *injector) refused() bool {
	m.s.t.Helper()
	for _, agent := range m.s.agents {
		if st := agent.intake(); st.In.Packets != m.thrown[agent] || !maps.Equal(st.Drops, m.want[agent]) {
			return false
		}
	}
	return true
}

// frame returns a frame with packet.
func (m *injector) frame(packet []byte) []byte {
	etherType := uint16(unix.ETH_P_IP)
	if packet[0]>>4 == 6 {
		etherType = unix.ETH_P_IPV6
	}
	return slices.Concat(m.head, words(etherType), packet)
}
