package director

import (
	"os"
	"time"

	"vstun/balancer"
	"vstun/cmd/internal/control"
	"vstun/cmd/internal/daemon"
	"vstun/encap/packet"
	"vstun/routing"
)

// status is what the control socket answers.
func (d *director) status() control.DirectorStatus {
	var t packet.Tally
	st := control.DirectorStatus{Program: "director", Version: daemon.Version(), Pid: os.Getpid(), Uptime: time.Since(d.start).Seconds(),
		TUN: d.device.Name(), Queues: len(d.workers), Offloads: d.device.Offloads(),
		Connections: control.Connections{Count: d.table.Len(), Max: d.table.Max(), HalfOpen: d.table.HalfOpen(), HalfOpenMax: d.table.HalfOpenMax(),
			Evicted: d.table.Evicted()}}
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
	st.In, st.Out, st.Drops = control.Traffic{Packets: t.InPackets, Bytes: t.InBytes}, control.Traffic{Packets: t.OutPackets, Bytes: t.OutBytes}, control.Drops(&t)
	set := d.weights()
	for _, s := range d.bal.Snapshot().Status() {
		st.Services = append(st.Services, serviceStatus(&s))
		set.note(&st.Services[len(st.Services)-1])
	}
	if n, err := routing.Dropped(d.device.Name()); err == nil {
		st.Overruns = n
	}
	st.Waiting = d.shared.Waiting()
	st.Leaving = leaving(d.bal.Leaving())
	return st
}

func leaving(all []balancer.Leaving) (st control.Leaving) {
	for _, l := range all {
		st.Realservers++
		st.Connections += l.Active + l.Inactive
		st.List = append(st.List, control.LeavingRealserver{Service: l.Service, Address: l.Address.String(), Active: l.Active, Inactive: l.Inactive, Templates: l.Templates})
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
		rs := control.Realserver{Address: r.Address.String(), Encap: r.Encap.String(), EncapChecksum: r.Checksum, Weight: r.Weight, Upper: r.Upper, Lower: r.Lower,
			Active: r.Active, Inactive: r.Inactive, Templates: r.Templates, Connections: r.Connections, Forwarded: control.Traffic{Packets: r.Packets, Bytes: r.Bytes}}
		if r.HasKey {
			rs.EncapKey = &r.Key
		}
		svc.Realservers = append(svc.Realservers, rs)
	}
	return svc
}
