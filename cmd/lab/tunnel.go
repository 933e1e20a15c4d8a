package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"time"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/lab"
	"vstun/cmd/internal/ping"
)

const (
	pingCount    = 20
	transferTime = 2 * time.Second
	transferPort = "5201" // iperf3's
	runLimit     = 30 * time.Second
)

// siteTunnel is a tunnel between the two sites: the director's host is site a, web1 is site b.
type siteTunnel struct {
	name, device, encap string
	peer                string // site b's address in it; site a has the one before
}

var siteTunnels = []siteTunnel{
	{"site0", "tun", "gre", "10.8.0.2"},
	{"lan0", "tap", "gue", "10.8.1.2"},
}

// tunnelTOML returns the configuration of a site: 1 is site a, 2 site b.
func (s *show) tunnelTOML(socket, offload string, site int) string {
	local, remote := s.addr(s.lab.Director), s.addr(s.lab.Webs[0])
	if site == 2 {
		local, remote = remote, local
	}
	text := fmt.Sprintf("[realserver]\nencap   = []\noffload = %q\ncontrol = %q\n", offload, socket)
	for _, t := range siteTunnels {
		b := netip.MustParseAddr(t.peer)
		own, far := b.Prev(), b
		if site == 2 {
			own, far = far, own
		}
		text += fmt.Sprintf("\n[[tunnel]]\nname = %q\ndevice = %q\nencap = %q\nlocal = \"%v\"\nremote = \"%v\"\n"+
			"addresses = [\"%v/30\"]\nprobe = { address = \"%v\", interval = \"1s\" }\n", t.name, t.device, t.encap,
			local, remote, own, far)
	}
	return text
}

// playTunnels connects two sites over three networks by a TUN and a TAP tunnel, with offloads and without, and pings
// and sends through both.
func (s *show) playTunnels(ctx context.Context, stay bool) error {
	s.printf(tunnelDrawing, s.addr(s.lab.Director), s.addr(s.lab.Webs[0]))
	by := "TCP"
	if _, err := exec.LookPath("iperf3"); err == nil {
		by = "iperf3"
	}
	for _, offload := range []string{"auto", "off"} {
		if err := s.startSites(ctx, offload); err != nil {
			return err
		}
		s.printf("\n  %-28s %-11s %-6s %-12s %s\n", "tunnel: offloads", "device", "MTU", "ping", by)
		for _, t := range siteTunnels {
			if err := s.showTunnel(ctx, t, by); err != nil {
				return err
			}
		}
		s.printf("\n")
		if stay && offload == "auto" {
			s.printf(tunnelStayText, prefix, dir)
			<-ctx.Done()
			s.printf("\nCleaning up.\n")
			return nil
		}
		if err := s.stopPrograms(); err != nil {
			return err
		}
		s.agents = nil
	}
	return nil
}

// startSites starts the program at both sites, and waits until both tunnels are up.
func (s *show) startSites(ctx context.Context, offload string) error {
	for i, h := range []*lab.Host{s.lab.Director, s.lab.Webs[0]} {
		p, err := s.start(h, "realserver", func(socket string) string { return s.tunnelTOML(socket, offload, 1+i) })
		if err != nil {
			return err
		}
		s.agents = append(s.agents, p)
	}
	for _, p := range s.agents {
		if err := p.awaitUp(ctx); err != nil {
			return err
		}
	}
	for deadline := time.Now().Add(upTimeout); ; time.Sleep(pollEvery) {
		up := 0
		var st api.RealserverStatus
		for _, p := range s.agents {
			if err := p.status(ctx, &st); err != nil {
				return err
			}
			up += len(slices.DeleteFunc(st.Tunnels, func(t api.Tunnel) bool { return t.State != "up" }))
		}
		if up == 2*len(siteTunnels) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d of %d ends of tunnels are up after %v", up, 2*len(siteTunnels), upTimeout)
		}
	}
}

// showTunnel pings and sends through a tunnel, and prints the results.
func (s *show) showTunnel(ctx context.Context, t siteTunnel, by string) error {
	var st api.RealserverStatus
	if err := s.agents[0].status(ctx, &st); err != nil {
		return err
	}
	is := st.Tunnels[slices.IndexFunc(st.Tunnels, func(is api.Tunnel) bool { return is.Name == t.name })]
	trip, err := s.ping(ctx, netip.MustParseAddr(t.peer))
	if err != nil {
		return fmt.Errorf("ping through %s: %w", t.name, err)
	}
	speed := s.transfer
	if by == "iperf3" {
		speed = s.iperf3
	}
	bits, err := speed(ctx, t.peer)
	if err != nil {
		return fmt.Errorf("%s through %s: %w", by, t.name, err)
	}
	offloads := is.Offloads
	if offloads == "" {
		offloads = "none"
	}
	s.printf("  %-28s %-11s %-6d %-12v %.2f Gbit/s\n", t.name+": "+offloads, t.device+", "+t.encap, is.MTU,
		trip.Round(time.Microsecond), bits/1e9)
	return ctx.Err()
}

// ping pings an address from site a, and returns the median round trip.
func (s *show) ping(ctx context.Context, to netip.Addr) (time.Duration, error) {
	var p *ping.Pinger
	if err := s.lab.Director.Do(func() (err error) { p, err = ping.NewPinger(); return err }); err != nil {
		return 0, err
	}
	defer p.Close()
	limited, cancel := context.WithTimeout(ctx, runLimit)
	defer cancel()
	var trips []time.Duration
	for range pingCount {
		begin := time.Now()
		if err := p.Ping(limited, to); err != nil {
			return 0, err
		}
		trips = append(trips, time.Since(begin))
	}
	slices.Sort(trips)
	return trips[len(trips)/2], nil
}

// transfer sends from site a to an address of site b, and returns the bits a second.
func (s *show) transfer(_ context.Context, to string) (float64, error) {
	ln, err := s.lab.Webs[0].Listen("tcp", net.JoinHostPort(to, transferPort))
	if err != nil {
		return 0, err
	}
	defer ln.Close()
	received := make(chan int64, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			received <- 0
			return
		}
		defer c.Close()
		n, _ := io.Copy(io.Discard, c)
		received <- n
	}()
	c, err := s.lab.Director.Dial("tcp", net.JoinHostPort(to, transferPort))
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	err = c.SetDeadline(begin.Add(transferTime))
	for b := make([]byte, 1<<17); err == nil; {
		_, err = c.Write(b)
	}
	if cut, ok := errors.AsType[net.Error](err); !ok || !cut.Timeout() {
		return 0, errors.Join(err, c.Close())
	}
	err = c.Close()
	return 8 * float64(<-received) / time.Since(begin).Seconds(), err
}

// iperf3 is transfer by iperf3(1).
func (s *show) iperf3(ctx context.Context, to string) (float64, error) {
	limited, cancel := context.WithTimeout(ctx, runLimit)
	defer cancel()
	server, err := s.lab.Webs[0].Start(exec.CommandContext(limited, "iperf3", "-s", "-1", "-B", to))
	if err != nil {
		return 0, err
	}
	defer func() { _ = server.Stop() }() // it has ended, or is of no use any more
	var out []byte
	for limited.Err() == nil { // until the server listens
		out, err = s.lab.Director.Run(exec.CommandContext(limited, "iperf3", "-J", "-t", "2", "-c", to))
		var result struct {
			End struct {
				Received struct {
					Bits float64 `json:"bits_per_second"`
				} `json:"sum_received"`
			} `json:"end"`
		}
		if err == nil && json.Unmarshal(out, &result) == nil && result.End.Received.Bits > 0 {
			return result.End.Received.Bits, nil
		}
		time.Sleep(pollEvery)
	}
	return 0, fmt.Errorf("%w: %s", errors.Join(limited.Err(), err), out)
}
