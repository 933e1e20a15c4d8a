package tunnel

import (
	"cmp"
	"fmt"
	"time"

	"vstun/cmd/internal/api"
	"vstun/encap/packet/stats"
)

// inPackets returns the number of packets that have come from the peer of t.
func inPackets(t *tunnel) uint64 {
	var c stats.Tally
	t.in.Read(&c)
	return c.InPackets
}

// Status returns the state of all tunnels, in the configuration's order.
func (s *Set) Status() (all []api.Tunnel) {
	for _, t := range *s.all.Load() {
		all = append(all, t.status())
	}
	return all
}

// Read adds the packets to t that belong to no tunnel, and were dropped (drop.NotPeer).
func (s *Set) Read(t *stats.Tally) {
	var c stats.Tally
	s.strangers.Read(&c)
	for d, n := range c.Drops {
		t.Drops[d] += n
	}
}

// status returns the state of t.
func (t *tunnel) status() api.Tunnel {
	var in, out stats.Tally
	t.in.Read(&in)
	t.out.Read(&out)
	set := t.setup.Load()
	cfg := &set.cfg
	var seen observed
	t.see(func(o *observed) { seen = *o })
	st := api.Tunnel{Name: cfg.Name, Device: "tun", Encap: cfg.Encap.String(), EncapPort: cfg.EncapPort, Key: cfg.Key,
		Local: cfg.Local.String(), Remote: cfg.Remote.String(), Offloads: t.device.Offloads(), Bridge: cfg.Bridge,
		In:  api.Traffic{Packets: in.InPackets, Bytes: in.InBytes},
		Out: api.Traffic{Packets: out.OutPackets, Bytes: out.OutBytes}}
	if cfg.TAP {
		st.Device = "tap"
	}
	if r := t.remote.Load(); r != nil {
		st.PathMTU, st.MSS, st.MSS6 = r.MTU, r.MSS4, r.MSS6
	}
	st.MTU = set.mtu
	for _, a := range cfg.Addresses {
		st.Addresses = append(st.Addresses, a.String())
	}
	for _, r := range cfg.Routes {
		st.Routes = append(st.Routes, r.String())
	}
	for d, n := range out.Drops {
		in.Drops[d] += n
	}
	st.Drops = api.Drops(&in)
	for _, w := range t.workers {
		if err := w.LastError(); err != nil {
			st.SendError = err.Error()
		}
	}
	if !seen.at.IsZero() {
		ago := time.Since(seen.at).Seconds()
		st.Heard = &ago
	}
	st.State, st.Reason = "up", ""
	switch {
	case t.gone.Load():
		st.State, st.Reason = "down", "its device is gone, and is made anew"
	case seen.path.into != "":
		st.State, st.Reason = "down", fmt.Sprintf("the route to the peer leads into tunnel %s: give the peer a longer "+
			"route, or this tunnel narrower routes and addresses", seen.path.into)
	case !seen.path.known && cfg.Encap.Sealed():
		st.State, st.Reason = "down", "no route to the endpoint of the peer, or it has not come yet"
	case !seen.path.known:
		st.State, st.Reason = "down", "no route to "+cfg.Remote.String()
	case cfg.Probe.Address.IsValid() && !seen.probe.up:
		st.State, st.Reason = "down", "probe: "+cmp.Or(seen.probe.reason, "no answer yet")
	}
	if p := &seen.probe; cfg.Probe.Address.IsValid() {
		st.Probe = &api.TunnelProbe{Address: cfg.Probe.Address.String(), Interval: cfg.Probe.Interval.Seconds(),
			Sent: p.sent, Answered: p.answered, RoundTrip: p.roundTrip.Seconds(), Failures: p.failures,
			Reason: p.reason}
	}
	return st
}
