package agent

import (
	"context"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vstun/cmd/internal/api"
	"vstun/encap"
	"vstun/encap/endpoint"
	"vstun/encap/query"
)

// anAgent is the status of an agent with VIPs, tunnels and packets.
func anAgent() api.RealserverStatus {
	return api.RealserverStatus{Version: "1.2.3", VIPs: []string{"198.51.100.80", "2001:db8::80"},
		Encap: []string{"ipip", "gue"}, EncapPort: 6080,
		FromDirectors: []api.Counted{{Address: "10.0.2.9", Packets: 1},
			{Address: "127.0.0.1", Packets: 42, Last: 7.9}}}
}

// TestAnswerTo: an answer has the accepted VIPs from the requested one on, the tunnels, and the count of packets from
// the director that asks.
func TestAnswerTo(t *testing.T) {
	st := anAgent()
	want := query.Answer{Version: query.Version, First: 1, Nonce: 9, Packets: 42, Age: 7, Total: 2, EncapPort: 6080,
		Tunnels: 1<<encap.KindIPIP | 1<<encap.KindGUE,
		Program: "1.2.3", VIPs: []netip.Addr{netip.MustParseAddr("2001:db8::80")}}
	from := netip.MustParseAddrPort("127.0.0.1:4711")
	ask := func(first uint16, from netip.AddrPort) query.Answer {
		return *answerTo(endpoint.Asked{Question: query.Question{Version: 9, First: first, Nonce: 9}, From: from}, &st)
	}
	if diff := cmp.Diff(want, ask(1, from), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if a := ask(200, netip.MustParseAddrPort("10.0.2.2:1")); a.First != 2 || len(a.VIPs) != 0 || a.Packets != 0 ||
		a.Age != query.NoAge {
		t.Errorf("beyond the last VIP, of another director: %+v", a)
	}
}

// TestAnswers: questions are answered by UDP, over both families, no faster than the bound, and by no more bytes than
// they have.
func TestAnswers(t *testing.T) {
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		director, err := net.ListenPacket("udp", at)
		if err != nil {
			t.Skipf("SKIPPED: needs the address: %v", err)
		}
		defer director.Close()
		questions := make(chan endpoint.Asked, questionsWaiting)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- answerQuestions(ctx, questions, anAgent) }()
		const n = 20
		begin := time.Now()
		for i := range n {
			questions <- endpoint.Asked{Question: query.Question{Version: query.Version, Nonce: uint64(i)},
				From: director.LocalAddr().(*net.UDPAddr).AddrPort()}
		}
		b := make([]byte, 2*query.Len)
		for i := range n {
			if err := director.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
				t.Fatal(err)
			}
			size, _, err := director.ReadFrom(b)
			if err != nil {
				t.Fatal(err)
			}
			got, err := query.ParseAnswer(b[:size])
			if err != nil || got.Nonce != uint64(i) || size > query.Len || len(got.VIPs) != 2 {
				t.Errorf("%d bytes: %+v, %v", size, got, err)
			}
		}
		if took := time.Since(begin); took < (n-2)*answerPace {
			t.Errorf("%d answers in %v", n, took)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// TestHeard: the time of the last packet is the time of the last change of the count.
func TestHeard(t *testing.T) {
	w, addr := endpoint.NewWorker(nil, nil, new(atomic.Pointer[endpoint.Policy]), false),
		netip.MustParseAddr("10.0.2.2")
	h := heard{of: (*endpoint.Worker).Directors}
	now := time.Now()
	if all := h.look([]*endpoint.Worker{w}, nil, now); len(all) != 0 {
		t.Errorf("%+v", all)
	}
	h.seen = map[netip.Addr]mark{addr: {packets: 5, at: now.Add(-time.Minute)}, addr.Next(): {packets: 1}}
	counts := func(n uint64, at time.Time) []api.Counted { return h.counted(map[netip.Addr]uint64{addr: n}, at) }
	want := func(n uint64, last float64) []api.Counted {
		return []api.Counted{{Address: "10.0.2.2", Packets: n, Last: last}}
	}
	for _, c := range []struct {
		n    uint64
		at   time.Time
		last float64
	}{{5, now, 60}, {6, now, 0}, {6, now.Add(3 * time.Second), 3}, {7, now.Add(4 * time.Second), 0}} {
		if diff := cmp.Diff(want(c.n, c.last), counts(c.n, c.at)); diff != "" {
			t.Errorf("%d packets (-want +got):\n%s", c.n, diff)
		}
	}
	if len(h.seen) != 1 {
		t.Errorf("%d addresses are remembered that are not counted any more", len(h.seen)-1)
	}
}
