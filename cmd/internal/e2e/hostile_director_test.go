package e2e

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// TestHostileDirector sends tens of thousands of broken and random packets to the VIP. All of them are accounted for.
func TestHostileDirector(t *testing.T) {
	const burst = 400 // fits the TUN device's queue
	total := short(60_000, 10_000)
	s := newSite(t, 2, nil)
	s.startAgents("")
	s.startDirector(`no_service = "drop"`, service{"tcp", "80", "wrr", []int{1, 1}}, service{"udp", "53", "rr",
		[]int{1, 1}})
	for _, web := range s.Webs {
		s.namedEcho(web, 80)
		s.echoUDP(web, 53)
	}
	given := s.count(s.Director, "vs0", lab.Filter{Direction: lab.Out})
	settle := func() {
		t.Helper()
		last := ^uint64(0)
		testkit.Within(t, "the director has read all packets of its device", soon, func() bool {
			n := given()
			settled := s.director.balance().In.Packets == n && n == last
			last = n
			return settled
		})
	}
	s.mustBeServedBy(80, "")
	settle()
	// the director begins to watch the network after it is ready
	pid, descriptors := s.director.Pid(), s.director.descriptors()

	client := s.rawSender(s.Client)
	random := rand.New(rand.NewPCG(3, 4))
	for i := range total {
		client.inject(s.broken(random))
		if i%burst == burst-1 {
			settle()
		}
	}
	settle()

	st := s.director.balance()
	// dropped packets are answered by resets
	in, out, drops := st.In.Packets, st.Out.Packets-st.Resets, sum(st.Drops)+uint64(st.Waiting)
	if in < uint64(total)*5/6 {
		t.Errorf("%d packets in, of %d that were thrown", in, total)
	}
	if in != out+drops {
		t.Errorf("%d packets in, %d out and %d dropped, or fragments that wait: %d are missing", in, out, drops,
			int64(in-out-drops))
	}
	reasons := []string{"truncated", "fragment", "protocol", "icmp", "bad_checksum", "no_service", "no_connection"}
	if !testing.Short() {
		reasons = append(reasons, "reassembly") // fewer fragments than that don't drive others out
	}
	for _, reason := range reasons {
		if st.Drops[reason] == 0 {
			t.Errorf("no packet was dropped as %s: the test does not reach it", reason)
		}
	}
	t.Logf("%d in, %d out, dropped %v, %d connections, %s", in, out, st.Drops, st.Connections.Count, st.SendError)

	// All packets that the director has sent have arrived, and each agent's counters add up, too.
	var sent, received uint64
	for _, svc := range st.Services {
		for _, r := range svc.Realservers {
			sent += r.Forwarded.Packets
		}
	}
	for _, a := range s.agents {
		in := a.intake()
		received += in.In.Packets + in.Overruns
		if in.In.Packets != in.Out.Packets+sum(in.Drops) {
			t.Errorf("%s: %d packets in, %d out, dropped %v", a, in.In.Packets, in.Out.Packets, in.Drops)
		}
	}
	if sent != received+st.Drops["send_error"] || sent == 0 {
		t.Errorf("%d packets were sent to realservers, %d came there, %d were refused by the director's kernel", sent,
			received, st.Drops["send_error"])
	}

	s.mustBeServedBy(80, "")
	if err := exchange(s.dial("udp4", 53), payload(100)); err != nil {
		t.Error(err)
	}
	if now := s.director.balance().Pid; now != pid {
		t.Errorf("the director's process is %d, was %d", now, pid)
	}
	testkit.Within(t, fmt.Sprintf("no more than %d descriptors are open", descriptors), soon,
		func() bool { return s.director.descriptors() <= descriptors })
}

// broken returns a packet to the VIP that is most likely invalid, from the client or a random source. Its IP header is
// valid: routers drop packets with an invalid one.
func (s *site) broken(random *rand.Rand) []byte {
	const tcp, udp, icmp = 6, 17, 1
	options := 0
	if random.IntN(8) == 0 {
		options = 4 * random.IntN(11)
	}
	header := 20 + options
	b := make([]byte, header+random.IntN(1400))
	for i := header; i < len(b); i++ {
		b[i] = byte(random.Uint32())
	}
	for i := 20; i < header; i++ {
		b[i] = 1 // NOP
	}
	b[0], b[1], b[8] = 0x40|byte(header/4), byte(random.Uint32()), byte(5+random.IntN(250))
	copy(b[12:], s.Client.Addr.AsSlice())
	if random.IntN(10) == 0 {
		copy(b[12:], []byte{11, byte(random.Uint32()), byte(random.Uint32()), byte(random.Uint32())})
	}
	copy(b[16:], s.VIP.AsSlice())
	ports := func(port uint16) { // random source, given destination
		if len(b) >= header+4 {
			binary.BigEndian.PutUint16(b[header+2:], port)
		}
	}
	switch random.IntN(8) {
	case 0: // whatever
		b[9] = byte(random.Uint32())
	case 1: // a fragment
		b[9] = tcp
		binary.BigEndian.PutUint16(b[6:], uint16(1+random.IntN(0x3fff)))
	case 2: // TCP, or less than its header
		b = b[:min(len(b), header+random.IntN(40))]
		b[9] = tcp
		ports(80)
	case 3: // UDP, or less than its header
		b = b[:min(len(b), header+random.IntN(16))]
		b[9] = udp
		ports(53)
	case 4:
		b[9] = udp
		ports(53)
	case 5:
		b[9] = tcp
		ports(80)
	case 6: // a port without service
		b[9] = []byte{tcp, udp}[random.IntN(2)]
	case 7: // ICMP, half of it echo requests
		b[9] = icmp
		if len(b) > header+1 && random.IntN(2) == 0 {
			b[header], b[header+1] = 8, 0
		}
	}
	return b
}
