package director

import (
	"os"
	"time"

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
		Connections: control.Connections{Count: d.table.Len(), Max: d.table.Max()}}
	for _, w := range d.workers {
		w.Read(&t)
		if err := w.LastError(); err != nil {
			st.SendError = err.Error()
		}
	}
	st.In, st.Out, st.Drops = control.Traffic{Packets: t.InPackets, Bytes: t.InBytes}, control.Traffic{Packets: t.OutPackets, Bytes: t.OutBytes}, control.Drops(&t)
	for _, s := range d.bal.Snapshot().Status() {
		svc := control.Service{Name: s.Name, Protocol: packet.ProtoName(s.Protocol), Scheduler: s.Scheduler}
		for _, vip := range s.VIPs {
			svc.VIPs = append(svc.VIPs, vip.String())
		}
		for _, p := range s.Ports {
			svc.Ports = append(svc.Ports, p.String())
		}
		for _, r := range s.Realservers {
			svc.Realservers = append(svc.Realservers, control.Realserver{Address: r.Address.String(), Encap: "ipip", Weight: r.Weight,
				Active: r.Active, Inactive: r.Inactive, Connections: r.Connections, Forwarded: control.Traffic{Packets: r.Packets, Bytes: r.Bytes}})
		}
		st.Services = append(st.Services, svc)
	}
	if n, err := routing.Dropped(d.device.Name()); err == nil {
		st.Overruns = n
	}
	st.Leaving.Realservers, st.Leaving.Connections = d.bal.Leaving()
	return st
}
