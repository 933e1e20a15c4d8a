package director

import (
	"cmp"
	"net/netip"
	"os"
	"slices"
	"time"

	"vstun/balancer"
	"vstun/balancer/health"
	"vstun/balancer/health/notify"
	"vstun/balancer/method"
	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/daemon"
	"vstun/cmd/internal/director/plan"
	"vstun/encap/packet"
)

// status is the answer to GET /status.
func (d *director) status() api.DirectorStatus {
	p := &d.plane
	p.fast.sync()
	t := d.memory.read(p)
	st := api.DirectorStatus{Program: "director", Version: daemon.Version(), Pid: os.Getpid(),
		Uptime: time.Since(p.start).Seconds(),
		TUN:    p.device.Name(), Queues: max(len(p.workers)-1, 0), Offloads: p.device.Offloads(),
		Connections: api.Connections{Count: p.table.Len(), Max: p.table.Max(), HalfOpen: p.table.HalfOpen(),
			HalfOpenMax: p.table.HalfOpenMax(), Evicted: t.Evicted}}
	d.memory.status(&st.Connections)
	for _, w := range p.workers {
		if err := w.LastError(); err != nil {
			st.SendError = err.Error()
		}
	}
	st.Device = "tun"
	if p.ethernet != nil {
		st.Device = "tap"
	}
	st.In, st.Out, st.Drops = t.In, t.Out, t.Drops
	st.Services = d.servicesStatus(time.Now())
	st.Names = d.controller.namesStatus(time.Now())
	p.balancer.Save() // a later process never shows less
	st.Resets = t.Resets
	st.Overruns = p.overruns()
	st.FastPath = p.fast.status()
	st.Checks = d.checks.descriptors()
	st.Tunnels = d.plane.tunnels.Status()
	st.Configuration = d.reloader.Configuration()
	st.Waiting = p.shared.Waiting()
	st.Leaving = leaving(p.balancer.Leaving())
	st.Sync = d.sync.status()
	st.Tables = d.tables.status(time.Now())
	st.WireGuard = api.WireGuardOf(p.sealed.device, time.Now())
	state := d.controller.state()
	st.Mail = mailStatus(state.Config.Notify.Mail, d.checks.notifier.Mail(), time.Now())
	d.announcersStatus(&st)
	return st
}

// mailStatus returns the state of the receiver by mail, or nil if there is none.
func mailStatus(c *config.Mail, m notify.MailStats, now time.Time) *api.Mail {
	if c == nil {
		return nil
	}
	return &api.Mail{Server: c.Server, Sent: m.Sent, Failed: m.Failed, Lost: m.Lost, Waiting: m.Waiting, Error: m.Error,
		Failing: since(m.Since, now)}
}

// servicesStatus returns the services as they are in force, with the results of their checks. A sorry server is among
// the realservers while it has clients.
func (d *director) servicesStatus(now time.Time) []api.Service {
	st := d.controller.state()
	list, configured := st.snapshot.Status(), byName(st.Config)
	for i := range list {
		s := &list[i]
		c := configured[s.Name]
		s.Realservers = slices.DeleteFunc(s.Realservers, func(r balancer.RealserverStatus) bool {
			return r.ID() == c.Sorry.ID() && r.Down && r.Active+r.Inactive == 0 && !c.IsRealserver(r.ID())
		})
	}
	return d.describe(st, list, now)
}

// describe converts services of the state's snapshot to the types of the control socket.
func (d *director) describe(st *state, list []balancer.ServiceStatus, now time.Time) (all []api.Service) {
	configured, states := byName(st.Config), plan.Health(d.checks.monitor.States(), st.inputs.Weights)
	for i := range list {
		s := &list[i]
		svc := serviceStatus(s)
		for i, r := range s.Realservers {
			svc.Realservers[i].Unanswered = d.replies.unanswered(plan.RealserverID{Service: s.Name, Realserver: r.ID()})
		}
		noteWeights(&svc, st.inputs.Weights)
		if c := configured[s.Name]; c != nil { // nil: another snapshot had it
			st.noteHealth(&svc, c, s, states, now)
		}
		all = append(all, svc)
	}
	return all
}

// noteWeights adds to a service's status the configured weights that operators have replaced.
func noteWeights(s *api.Service, set plan.Weights) {
	if len(set) == 0 {
		return
	}
	for i := range s.Realservers {
		r := &s.Realservers[i]
		if a, err := netip.ParseAddr(r.Address); err == nil {
			id := netip.AddrPortFrom(a, r.Port)
			if o, has := set[plan.RealserverID{Service: s.Name, Realserver: id}]; has {
				r.Configured = &o.Configured
			}
		}
	}
}

// noteHealth adds the results of a service's checks to its status. s is the service in the configuration in force, b
// the one of the balancer. A realserver counts as down when the balancer has it down, which is later than the check's
// end.
func (st *state) noteHealth(svc *api.Service, s *config.Service, b *balancer.ServiceStatus,
	states map[plan.RealserverID]health.State, now time.Time) {
	is := st.Services[s.Name]
	svc.Health, svc.Quorum, svc.WeightUp, svc.Sorry = plan.UpDown(is.Up), s.Quorum, is.UpWeight, is.Sorry
	configured := make(map[netip.AddrPort]*config.RealserverRef, len(s.Realservers))
	for i := range s.Realservers {
		configured[s.Realservers[i].ID()] = &s.Realservers[i]
	}
	for i := range svc.Realservers {
		r, id := &svc.Realservers[i], plan.RealserverID{Service: s.Name, Realserver: b.Realservers[i].ID()}
		r.Health = "unchecked"
		c := configured[id.Realserver]
		if c == nil {
			continue // the sorry server
		}
		if c.Forward == method.DR {
			r.Unreachable = st.inputs.Neighbours[c.Address].Fault
		}
		if r.Unreachable != "" {
			r.Health = plan.Down
		}
		found := states[id]
		if r.Weight = plan.Weight(c.Weight, found); r.Weight != c.Weight { // the balancer's weight is 0 after a failure
			r.Configured = &c.Weight
		}
		r.Host = c.Host
		r.Standby = c.Standby > 0 && b.Realservers[i].Weight == 0 && !b.Realservers[i].Down && r.Weight > 0
		if c.Check == nil {
			continue
		}
		r.Health = plan.UpDown(!st.Down[id])
		r.Check = &api.Check{Type: c.Check.Type, Via: c.Via(), Reason: cmp.Or(found.Reason, "not checked yet"),
			Streak: found.Streak, Duration: found.Duration.Seconds(), Since: since(found.Since, now),
			Last: since(found.Last, now)}
	}
}

// since returns the seconds from t on, 0 for the zero Time.
func since(t, now time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return now.Sub(t).Seconds()
}

// byName returns the services of cfg by their names.
func byName(cfg *config.Director) map[string]*config.Service {
	all := make(map[string]*config.Service, len(cfg.Services))
	for i := range cfg.Services {
		all[cfg.Services[i].Name] = &cfg.Services[i]
	}
	return all
}

func leaving(all []balancer.Leaving) (st api.Leaving) {
	for _, l := range all {
		st.Realservers++
		st.Connections += l.Active + l.Inactive
		r := api.LeavingRealserver{Service: l.Service, Address: l.Address.String(), Port: l.Port,
			Forward: l.Kind.String(), Active: l.Active, Inactive: l.Inactive, Templates: l.Templates}
		r.Encap, r.EncapKey, r.EncapChecksum = tunnelOf(&l.Realserver)
		st.List = append(st.List, r)
	}
	return st
}

func serviceStatus(s *balancer.ServiceStatus) api.Service {
	svc := api.Service{Name: s.Name, Protocol: packet.ProtoName(s.Protocol), Scheduler: s.Scheduler,
		SchedulerFlags: flagList(s.Scheduler, s.Flags.Port, s.Flags.Fallback), OnePacket: s.OnePacket}
	if row, _ := balancer.LookupScheduler(s.Scheduler); row.Hash && s.ByAddress {
		svc.Order = orderName(true)
	}
	if p := s.Persistence; p.Timeout > 0 {
		svc.Persistence = &api.Persistence{Timeout: p.Timeout.Seconds(), Netmask: p.Mask4, Netmask6: p.Mask6}
	}
	for _, vip := range s.VIPs {
		svc.VIPs = append(svc.VIPs, vip.String())
	}
	for _, p := range s.Ports {
		svc.Ports = append(svc.Ports, p.String())
	}
	for _, r := range s.Realservers {
		rs := api.Realserver{Address: r.Address.String(), Port: r.Port, Forward: r.Kind.String(),
			Weight: r.Weight, Effective: r.Weight, Upper: r.Upper, Lower: r.Lower,
			Active: r.Active, Inactive: r.Inactive, Templates: r.Templates, Connections: r.Connections,
			Forwarded: api.Traffic{Packets: r.Packets, Bytes: r.Bytes},
			Replies:   api.Traffic{Packets: r.Replies, Bytes: r.ReplyBytes}}
		if r.Down {
			rs.Effective = 0
		}
		rs.Encap, rs.EncapKey, rs.EncapChecksum = tunnelOf(&r.Realserver)
		svc.Realservers = append(svc.Realservers, rs)
	}
	return svc
}

// tunnelOf returns the format of the tunnel to r, its key and whether it has a checksum; the zero values without one.
func tunnelOf(r *balancer.Realserver) (encap string, key *uint32, checksum bool) {
	if r.Kind != method.TUN {
		return "", nil, false
	}
	if r.HasKey {
		key = &r.Key
	}
	return r.Encap.String(), key, r.Checksum
}
