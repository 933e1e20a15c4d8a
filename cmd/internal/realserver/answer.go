package realserver

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"vstun/cmd/internal/control"
	"vstun/encap"
	"vstun/encap/endpoint"
	"vstun/encap/query"
)

// Bounds of answers to directors' questions: one each answerPace, and as many questions wait as questionsWaiting.
// Workers drop the others.
const (
	answerPace       = 10 * time.Millisecond
	questionsWaiting = 64
)

// answerer answers directors' questions: what this agent accepts, and what came from the director that asks. It sends
// each answer to the outer source of its question, which the policy has let in, and an answer is no longer than its
// question.
type answerer struct {
	questions chan endpoint.Asked
	sockets   map[bool]*net.UDPConn // by whether they are IPv6's
}

// newAnswerer opens the sockets that send answers. They receive nothing.
func newAnswerer() (*answerer, error) {
	a := &answerer{make(chan endpoint.Asked, questionsWaiting), map[bool]*net.UDPConn{}}
	for six, network := range map[bool]string{false: "udp4", true: "udp6"} {
		c, err := net.ListenUDP(network, nil)
		if six && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)) { // no IPv6
			continue
		}
		if err != nil {
			return nil, errors.Join(err, a.close())
		}
		a.sockets[six] = c
		_ = c.SetReadBuffer(1)
	}
	return a, nil
}

func (a *answerer) close() error {
	var errs []error
	for _, c := range a.sockets {
		if err := c.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// run answers until ctx ends. status is what the agent accepts now.
func (a *answerer) run(ctx context.Context, status func() control.RealserverStatus) error {
	pace := time.NewTicker(answerPace)
	defer pace.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case q := <-a.questions:
			st := status()
			if c := a.sockets[q.From.Addr().Is6()]; c != nil {
				// the director asks again
				_, _ = c.WriteToUDPAddrPort(query.AppendAnswer(nil, answerTo(q, &st)), q.From)
			}
		}
		select {
		case <-ctx.Done():
		case <-pace.C:
		}
	}
}

// answerTo is the answer to q of an agent with this status.
func answerTo(q endpoint.Asked, st *control.RealserverStatus) *query.Answer {
	a := &query.Answer{Version: query.Version, First: q.First, Nonce: q.Nonce, Age: query.NoAge,
		Total: uint16(len(st.VIPs)), EncapPort: st.EncapPort, Program: st.Version}
	for _, name := range st.Encap {
		if kind, ok := encap.ParseKind(name); ok {
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
