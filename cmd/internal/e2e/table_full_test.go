package e2e

import (
	"testing"

	"vstun/testdata/testkit"
)

// TestFullTable opens more flows than the connection table holds: new ones are refused, old ones stay.
func TestFullTable(t *testing.T) {
	t.Parallel()
	const room, flows = 1024, 3000
	s := newSite(t, 1, nil)
	s.startAgents("")
	s.startDirector("[connections]\nmax = 1024", service{"tcp", "80", "wrr", []int{1}}, service{"udp", "53", "rr",
		[]int{1}})
	s.namedEcho(s.Webs[0], 80)
	s.listenUDP(s.Webs[0], s.at(53)) // takes all, answers nothing
	old := s.dial("tcp", 80)
	if _, err := askName(old, "before"); err != nil {
		t.Fatal(err)
	}
	before := s.director.balance()
	client := s.rawSender(s.Client)
	for i := range flows {
		client.inject(udpPacket(t, s.Client.Addr, s.VIP, uint16(10_000+i), 53, "?"))
		if i%300 == 299 {
			testkit.Within(t, "the director has read the datagrams", soon, func() bool {
				return s.director.balance().In.Packets >= before.In.Packets+uint64(i)+1
			})
		}
	}
	st := s.director.balance()
	const refused = flows - (room - 1)
	if st.Connections.Count != room || st.Connections.Max != room || st.Drops["table_full"] != refused ||
		sum(st.Drops) != refused {
		t.Errorf("%d connections of %d, dropped %v; want %d and table_full %d", st.Connections.Count,
			st.Connections.Max, st.Drops, room, refused)
	}
	if n := st.Services[1].Realservers[0].Connections; n != room-1 {
		t.Errorf("%d flows were let in, want %d", n, room-1)
	}
	if _, err := askName(old, "after"); err != nil {
		t.Errorf("the connection from before: %v", err)
	}
	// Flows in the table are served as before, new connections are not.
	client.inject(udpPacket(t, s.Client.Addr, s.VIP, 10_000, 53, "again"))
	client.inject(udpPacket(t, s.Client.Addr, s.VIP, 20_000, 53, "new"))
	testkit.Within(t, "one more datagram is sent on and one is refused", soon, func() bool {
		now := s.director.balance()
		return now.Services[1].Realservers[0].Forwarded.Packets == room && now.Drops["table_full"] == refused+1
	})
	if in := s.agents[0].intake(); in.Overruns != 0 || len(in.Drops) != 0 {
		t.Errorf("the agent dropped %v, %d overruns", in.Drops, in.Overruns)
	}
}

// TestTableEmpties fills the table and waits until its connections have expired.
func TestTableEmpties(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, nil)
	s.startAgents("")
	s.startDirector("[connections]\nmax = 1024\ntimeouts = { udp = \"2s\" }", service{"udp", "53", "rr", []int{1}})
	s.echoUDP(s.Webs[0], 53)
	client := s.rawSender(s.Client)
	for i := range 1100 {
		client.inject(udpPacket(t, s.Client.Addr, s.VIP, uint16(10_000+i), 53, "?"))
		if i%300 == 299 {
			testkit.Within(t, "the director has read the datagrams", soon,
				func() bool { return s.director.balance().In.Packets > uint64(i) })
		}
	}
	testkit.Within(t, "the table refuses", soon, func() bool { return s.director.balance().Drops["table_full"] > 0 })
	testkit.Within(t, "the table is empty again", soon, func() bool {
		return s.director.balance().Connections.Count == 0
	})
	if err := exchange(s.dial("udp4", 53), payload(10)); err != nil {
		t.Error(err)
	}
}
