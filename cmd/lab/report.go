package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/lab"
)

// settleTimeout is the time for the counters to agree after the last answer: the client gets its answer before a
// connection's last packets are sent.
const settleTimeout = 10 * time.Second

// counters count packets on the hosts' links, independently of the programs.
type counters struct {
	requests *lab.Counter   // at the director, to the VIP
	passed   *lab.Counter   // at the director, from the VIP
	replies  *lab.Counter   // at the client, from the VIP
	reached  []*lab.Counter // at each web server, to the VIP
}

// count starts counting.
func (s *show) count() (*counters, error) {
	t := &counters{}
	passing := lab.Filter{Source: s.vip()}
	if s.lan { // the director's own neighbour advertisements have the VIP as source, too
		passing.Direction = lab.In
	}
	for _, link := range []struct {
		counter **lab.Counter
		host    *lab.Host
		filter  lab.Filter
	}{
		{&t.requests, s.lab.Director, lab.Filter{Destination: s.vip(), Direction: lab.In}},
		{&t.passed, s.lab.Director, passing},
		{&t.replies, s.lab.Client, lab.Filter{Source: s.vip(), Direction: lab.In}},
	} {
		c, err := link.host.Count("eth0", link.filter)
		if err != nil {
			t.Close()
			return nil, err
		}
		*link.counter = c
	}
	for _, web := range s.lab.Webs {
		c, err := web.Count("eth0", lab.Filter{Destination: s.vip(), Direction: lab.In})
		if err != nil {
			t.Close()
			return nil, err
		}
		t.reached = append(t.reached, c)
	}
	return t, nil
}

// Close ends the counting.
func (t *counters) Close() {
	for _, c := range append([]*lab.Counter{t.requests, t.passed, t.replies}, t.reached...) {
		if c != nil {
			c.Close()
		}
	}
}

// numbers are the values of all counters, read at about the same time.
type numbers struct {
	director                  api.DirectorStatus
	agents                    []api.RealserverStatus
	requests, passed, replies uint64
	reached                   []uint64 // packets to the VIP on the web servers' eth0: none through a tunnel
}

func (s *show) read(ctx context.Context, t *counters) (n numbers, err error) {
	if err := s.director.status(ctx, &n.director); err != nil {
		return n, fmt.Errorf("status of %s: %w", s.director, err)
	}
	n.agents = make([]api.RealserverStatus, len(s.agents))
	for i, p := range s.agents {
		if err := p.status(ctx, &n.agents[i]); err != nil {
			return n, fmt.Errorf("status of %s: %w", p, err)
		}
	}
	for _, c := range t.reached {
		packets, err := c.Packets()
		if err != nil {
			return n, err
		}
		n.reached = append(n.reached, packets)
	}
	var errs [3]error
	n.requests, errs[0] = t.requests.Packets()
	n.passed, errs[1] = t.passed.Packets()
	n.replies, errs[2] = t.replies.Packets()
	return n, errors.Join(errs[:]...)
}

// settled reports whether all packets that reached the director have reached a web server: they have come out of a
// tunnel or, with VS/DR, have come as they were.
func (n *numbers) settled() bool {
	var unwrapped uint64
	for i, a := range n.agents {
		unwrapped += a.Out.Packets + n.reached[i]
	}
	return n.requests == n.director.In.Packets && n.director.In.Packets == n.director.Out.Packets &&
		n.director.Out.Packets == unwrapped
}

// report prints the counters. Its error names unexpected values.
func (s *show) report(ctx context.Context, t *counters) error {
	settle, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	var n numbers
	for {
		var err error
		if n, err = s.read(ctx, t); err != nil {
			return err
		}
		if n.settled() {
			break
		}
		select {
		case <-tick.C:
			continue
		case <-settle.Done():
		}
		break
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	s.table(&n)

	var errs []error
	if n.requests == 0 {
		errs = append(errs, errors.New("no request was seen on the director's eth0: the counter proves nothing"))
	}
	if n.replies == 0 {
		errs = append(errs, errors.New("no reply was seen on the client's eth0: the counter proves nothing"))
	}
	if s.lan && (len(n.director.Announced) != 1 || n.director.Neighbours.Answers == 0) {
		errs = append(errs, errors.New("the director has answered no neighbour that asked for the VIP"))
	}
	if n.passed != 0 {
		errs = append(errs, fmt.Errorf("%d packets from the VIP passed the director: replies must go straight to "+
			"the client", n.passed))
	}
	return errors.Join(errs...)
}

func (s *show) table(n *numbers) {
	s.printf("Packets on their paths                              packets       bytes   counted by\n")
	line := func(what string, t api.Traffic, by string) {
		s.printf("  %-46s %10d  %10d   %s\n", what, t.Packets, t.Bytes, by)
	}
	kernel := func(what string, packets uint64) {
		s.printf("  %-46s %10d  %10s   the kernel\n", what, packets, "")
	}
	kernel("requests, on the director's eth0", n.requests)
	line("into the director", n.director.In, "director")
	if s.lan {
		line("out of the director, to MAC addresses", n.director.Out, "director")
		for i, packets := range n.reached {
			kernel("requests, on the eth0 of "+s.agents[i].host.Name, packets)
		}
	} else {
		line("out of the director, encapsulated", n.director.Out, "director")
		for i, a := range n.agents {
			line("unwrapped by "+s.agents[i].host.Name, a.Out, "its realserver")
		}
	}
	kernel("replies, on the client's eth0", n.replies)
	kernel("replies that passed the director: on its eth0", n.passed)

	for _, a := range n.director.Announced {
		s.printf("\n%s is announced on the director's %s: %d announcements, %d answers to neighbours\n", a.VIP,
			strings.Join(a.Devices, ", "), n.director.Neighbours.Announcements, n.director.Neighbours.Answers)
	}
	s.printf("\nService  Realserver      Weight  Active  Inactive  Connections  Packets\n")
	for _, service := range n.director.Services {
		for _, r := range service.Realservers {
			s.printf("%-8s %-15s %6d  %6d  %8d  %11d  %7d\n",
				service.Name, r.Address, r.Weight, r.Active, r.Inactive, r.Connections, r.Forwarded.Packets)
		}
	}
	drops := n.director.Drops
	for i := range n.agents {
		for reason, count := range n.agents[i].Drops {
			s.printf("%s dropped %d packets: %s\n", s.agents[i], count, reason)
		}
	}
	for reason, count := range drops {
		s.printf("%s dropped %d packets: %s\n", s.director, count, reason)
	}
}
