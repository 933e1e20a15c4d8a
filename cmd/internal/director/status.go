package director

import (
	"os"
	"slices"
	"time"

	"vstun/balancer"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/control"
	"vstun/cmd/internal/daemon"
	"vstun/encap/packet"
	"vstun/encap/packet/stats"
	"vstun/routing"
	"vstun/tundev"
)

// status is what the control socket answers.
func (d *director) status() control.DirectorStatus {
	var t stats.Tally
	st := control.DirectorStatus{Program: "director", Version: daemon.Version(), Pid: os.Getpid(),
		Uptime: time.Since(d.start).Seconds(),
		TUN:    d.device.Name(), Queues: max(len(d.workers)-1, 0), Offloads: d.device.Offloads(),
		Connections: control.Connections{Count: d.table.Len(), Max: d.table.Max(), HalfOpen: d.table.HalfOpen(),
			HalfOpenMax: d.table.HalfOpenMax(),
			Evicted:     d.table.Evicted()}}
	for _, w := range d.workers {
		w.Read(&t)
		if err := w.LastError(); err != nil {
			st.SendError = err.Error()
		}
	}
	for _, r := range d.relays {
		r.Read(&t)
	}
	d.shared.Read(&t)
	st.In, st.Out, st.Drops = control.Traffic{Packets: t.InPackets, Bytes: t.InBytes},
		control.Traffic{Packets: t.OutPackets, Bytes: t.OutBytes}, control.Drops(&t)
	st.Services = d.servicesStatus(time.Now())
	st.Resets = t.Resets
	st.Overruns = d.overruns()
	st.Checks = d.checks()
	st.Configuration = d.configuration()
	st.Waiting = d.shared.Waiting()
	st.Leaving = leaving(d.bal.Leaving())
	return st
}

// servicesStatus is the services as they are in force, with what their checks have come to. A sorry server is among the
// realservers while it has clients.
func (d *director) servicesStatus(now time.Time) []control.Service {
	d.mu.Lock()
	defer d.mu.Unlock()
	list, configured := d.bal.Snapshot().Status(), byName(d.cfg)
	for i := range list {
		s := &list[i]
		c := configured[s.Name]
		s.Realservers = slices.DeleteFunc(s.Realservers, func(r balancer.RealserverStatus) bool {
			return r.Address == c.SorryServer && r.Down && r.Active+r.Inactive == 0 && !c.IsRealserver(r.Address)
		})
	}
	return d.described(list, now)
}

// described is the services of a snapshot as the control socket tells of them. d.mu is held.
func (d *director) described(list []balancer.ServiceStatus, now time.Time) (all []control.Service) {
	configured, set, states := byName(d.inForce()), d.weights(), d.healthy()
	for i := range list {
		s := &list[i]
		svc := serviceStatus(s)
		set.note(&svc)
		if c := configured[s.Name]; c != nil { // else a reload has taken it away since
			d.healthStatus(&svc, c, s, states, now)
		}
		all = append(all, svc)
	}
	return all
}

// byName is the services of cfg.
func byName(cfg *config.Director) map[string]*config.Service {
	all := make(map[string]*config.Service, len(cfg.Services))
	for i := range cfg.Services {
		all[cfg.Services[i].Name] = &cfg.Services[i]
	}
	return all
}

// overruns is the packets that the kernel dropped because no worker took them.
func (d *director) overruns() (n uint64) {
	for _, device := range []*tundev.Device{d.device, d.local} {
		if dropped, err := routing.Dropped(device.Name()); err == nil {
			n += dropped
		}
	}
	return n
}

// loops are the workers' for the watchdog.
func (d *director) loops() (all []daemon.Loop) {
	for _, w := range d.workers {
		all = append(all, w.Batches())
	}
	return all
}

func leaving(all []balancer.Leaving) (st control.Leaving) {
	for _, l := range all {
		st.Realservers++
		st.Connections += l.Active + l.Inactive
		st.List = append(st.List, control.LeavingRealserver{Service: l.Service, Address: l.Address.String(),
			Active: l.Active, Inactive: l.Inactive, Templates: l.Templates})
	}
	return st
}

func serviceStatus(s *balancer.ServiceStatus) control.Service {
	svc := control.Service{Name: s.Name, Protocol: packet.ProtoName(s.Protocol), Scheduler: s.Scheduler,
		SchedulerFlags: flagList(s.Scheduler, s.Flags.Port, s.Flags.Fallback), OnePacket: s.OnePacket}
	if p := s.Persistence; p.Timeout > 0 {
		svc.Persistence = &control.Persistence{Timeout: p.Timeout.Seconds(), Netmask: p.Mask4, Netmask6: p.Mask6}
	}
	for _, vip := range s.VIPs {
		svc.VIPs = append(svc.VIPs, vip.String())
	}
	for _, p := range s.Ports {
		svc.Ports = append(svc.Ports, p.String())
	}
	for _, r := range s.Realservers {
		rs := control.Realserver{Address: r.Address.String(), Encap: r.Encap.String(), EncapChecksum: r.Checksum,
			Weight: r.Weight, Effective: r.Weight, Upper: r.Upper, Lower: r.Lower,
			Active: r.Active, Inactive: r.Inactive, Templates: r.Templates, Connections: r.Connections,
			Forwarded: control.Traffic{Packets: r.Packets, Bytes: r.Bytes}}
		if r.Down {
			rs.Effective = 0
		}
		if r.HasKey {
			rs.EncapKey = &r.Key
		}
		svc.Realservers = append(svc.Realservers, rs)
	}
	return svc
}
