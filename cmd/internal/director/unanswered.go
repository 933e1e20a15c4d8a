package director

import (
	"sync"
	"time"

	"vstun/balancer"
	"vstun/balancer/method"
	"vstun/cmd/internal/director/plan"
)

// repliesEvery is the period in which replyWatch looks at the counts.
const repliesEvery = time.Second

// replyWatch follows how many packets the realservers of VS/NAT have got since their last reply. Its zero value is
// ready.
type replyWatch struct {
	mu  sync.Mutex
	all map[plan.RealserverID]sinceReply
}

// sinceReply is a realserver's counts at the first look after its last reply, and at the last look.
type sinceReply struct {
	replies, packets, connections uint64
	asked                         bool   // it has got new connections since, before the last look
	unanswered                    uint64 // packets since
}

// look takes the present counts. An idle realserver may still get packets that need no reply: acknowledgements of its
// last data, and resets. A new connection needs one. So packets count as unanswered only if a connection that is older
// than one look is among them.
func (s *replyWatch) look(services []balancer.ServiceStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := map[plan.RealserverID]sinceReply{}
	for i := range services {
		for _, r := range services[i].Realservers {
			if r.Kind != method.NAT {
				continue
			}
			id := plan.RealserverID{Service: services[i].Name, Realserver: r.ID()}
			was, known := s.all[id]
			if !known || r.Replies != was.replies || r.Packets < was.packets {
				next[id] = sinceReply{replies: r.Replies, packets: r.Packets, connections: r.Connections}
				continue
			}
			if was.asked { // a look ago
				was.unanswered = r.Packets - was.packets
			}
			was.asked = r.Connections > was.connections
			next[id] = was
		}
	}
	s.all = next
}

// unanswered returns the packets that a realserver has got since its last reply, 0 if none of them needs one.
func (s *replyWatch) unanswered(id plan.RealserverID) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all[id].unanswered
}

// followReplies looks at the counts of the realservers, if any of them has VS/NAT.
func (d *director) followReplies() {
	st := d.controller.state()
	var services []balancer.ServiceStatus
	if len(plan.NATServers(st.Config)) > 0 {
		services = st.snapshot.Status()
	}
	d.replies.look(services)
}
