package agent

import (
	"context"
	"net"
	"net/netip"
	"time"

	"vstun/cmd/internal/api"
	"vstun/encap"
	"vstun/encap/endpoint"
	"vstun/encap/query"
)

// Bounds of answers to directors' questions: one answer each answerPace, and questionsWaiting waiting questions.
// Workers drop further questions.
const (
	answerPace       = 10 * time.Millisecond
	questionsWaiting = 64
)

// answerQuestions answers directors' questions until ctx ends: which packets this agent accepts, and how many came from
// the director that asks. status returns the agent's present status. Each answer goes to the outer source of its
// question, which the policy has accepted. It is no longer than the question.
func answerQuestions(ctx context.Context, questions <-chan endpoint.Asked,
	status func() api.RealserverStatus) error {
	pace := time.NewTicker(answerPace)
	defer pace.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case q := <-questions:
			st := status()
			// A director that gets no answer asks again. A socket for each answer leaves the ports to servers.
			if c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(q.From)); err == nil {
				_, _ = c.Write(query.AppendAnswer(nil, answerTo(q, &st)))
				c.Close()
			}
		}
		select {
		case <-ctx.Done():
		case <-pace.C:
		}
	}
}

// answerTo returns the answer to q of an agent with this status.
func answerTo(q endpoint.Asked, st *api.RealserverStatus) *query.Answer {
	a := &query.Answer{Version: query.Version, First: q.First, Nonce: q.Nonce, Age: query.NoAge,
		Total: uint16(len(st.VIPs)), EncapPort: st.EncapPort, Program: st.Version}
	for _, name := range st.Encap {
		if kind, ok := encap.ParseKind(name); ok && !kind.Sealed() {
			a.Tunnels |= 1 << kind
		}
	}
	for _, s := range st.FromDirectors {
		if s.Address == q.From.Addr().String() {
			a.Packets, a.Age = s.Packets, uint32(s.Last)
		}
	}
	a.First = min(a.First, a.Total)
	for _, vip := range st.VIPs[a.First:] {
		if addr, err := netip.ParseAddr(vip); err == nil {
			a.VIPs = append(a.VIPs, addr)
		}
	}
	return a
}
