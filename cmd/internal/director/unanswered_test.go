package director

import (
	"net/netip"
	"testing"

	"vstun/balancer"
	"vstun/balancer/method"
	"vstun/cmd/internal/director/plan"
)

// TestUnanswered: packets of new connections without a reply are counted, and neither packets that need no reply, nor
// connections whose reply may still come.
func TestUnanswered(t *testing.T) {
	r := balancer.RealserverStatus{Realserver: balancer.Realserver{Address: netip.MustParseAddr("10.0.11.2"),
		Config: method.Config{Kind: method.NAT, Port: 8080}}}
	id := plan.RealserverID{Service: "web", Realserver: r.ID()}
	var s replyWatch
	for i, c := range []struct{ connections, packets, replies, want uint64 }{
		{10, 100, 90, 0},  // of the time before the first look
		{10, 100, 90, 0},  // idle
		{10, 130, 90, 0},  // acknowledgements and resets
		{10, 140, 90, 0},  //
		{11, 150, 90, 0},  // a connection, which may be new
		{11, 155, 91, 0},  // it is answered
		{12, 160, 91, 0},  //
		{13, 170, 91, 15}, // the one before has got no answer
		{13, 180, 91, 25}, // its SYN is repeated
		{13, 180, 91, 25}, // silence
		{13, 181, 92, 0},  // a reply
		{13, 181, 92, 0},  //
		{1, 2, 0, 0},      // counts that begin anew
	} {
		r.Connections, r.Packets, r.Replies = c.connections, c.packets, c.replies
		s.look([]balancer.ServiceStatus{{Service: balancer.Service{Name: "web"},
			Realservers: []balancer.RealserverStatus{r}}})
		if got := s.unanswered(id); got != c.want {
			t.Errorf("look %d: %d packets, want %d", i, got, c.want)
		}
	}
	r.Kind = method.TUN
	s.look([]balancer.ServiceStatus{{Service: balancer.Service{Name: "web"},
		Realservers: []balancer.RealserverStatus{r}}})
	if len(s.all) != 0 {
		t.Errorf("a realserver that has left: %+v", s.all)
	}
}
