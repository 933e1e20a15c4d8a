package agent

import (
	"net/netip"
	"os"
	"time"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/daemon"
	"vstun/encap/bpf"
	"vstun/encap/packet/stats"
	"vstun/routing/query"
)

// status returns the counters and settings of the running agent.
func (a *agent) status() api.RealserverStatus {
	var t, answers stats.Tally
	var merged, questions uint64
	for _, w := range a.workers {
		w.Read(&t)
		merged += w.Merged()
		questions += w.Questions()
	}
	now, s, taken := time.Now(), a.setup.Load(), a.taken()
	var fast bpf.Taken
	for _, n := range taken {
		fast = fast.Plus(n)
	}
	st := api.RealserverStatus{Program: "realserver", Version: daemon.Version(), Pid: os.Getpid(),
		Uptime: time.Since(a.start).Seconds(),
		TUN:    a.device.Name(), Queues: s.cfg.Queues, Offloads: a.device.Offloads(), MSS: s.mss4, MSS6: s.mss6,
		Configuration: a.reloader.Configuration(),
		FastPath:      a.fast.status(fast),
		In:            api.Traffic{Packets: t.InPackets + fast.Packets, Bytes: t.InBytes + fast.Bytes},
		Out:           api.Traffic{Packets: t.OutPackets + fast.Packets, Bytes: t.OutBytes + fast.Inner},
		Merged:        merged,
		Overruns:      a.overruns(),
		OwnVIPs:       !s.cfg.ForeignVIPs,
		Encap:         s.cfg.Encaps, Questions: questions, FromDirectors: a.directors.look(a.workers, taken, now),
		RefusedSources:      a.strangers.look(a.workers, nil, now),
		RefusedDestinations: a.absent.look(a.workers, nil, now)}
	for _, w := range a.answers {
		w.Read(&answers)
		if err := w.LastError(); err != nil {
			st.SendError = err.Error()
		}
	}
	a.sealed.read(&t)
	a.chances.read(&t)
	st.SecondChance = a.chances.status(now)
	a.tunnels.Read(&t)
	st.WireGuard = api.WireGuardOf(a.sealed.device, now)
	st.Answers = api.Traffic{Packets: answers.OutPackets, Bytes: answers.OutBytes}
	for d, n := range answers.Drops {
		t.Drops[d] += n
	}
	st.Drops = api.Drops(&t)
	st.EncapPort = encapPort(s.cfg)
	st.Tunnels = a.tunnels.Status()
	for _, v := range s.cfg.VIPs {
		st.VIPs = append(st.VIPs, v.String())
	}
	for _, d := range s.cfg.Directors {
		st.Directors = append(st.Directors, d.String())
	}
	return st
}

// taken returns what the fast path has taken from each director.
func (a *agent) taken() map[netip.Addr]bpf.Taken {
	t := map[netip.Addr]bpf.Taken{}
	a.fast.read(t)
	return t
}

// overruns returns the number of packets that the kernel dropped because the workers read the sockets or the device too
// slowly.
func (a *agent) overruns() uint64 {
	n, _ := query.Dropped(a.device.Name()) // an error: the device is gone
	for _, r := range a.receivers {
		n += r.Overruns()
	}
	if a.sealed.device != nil {
		n += a.sealed.device.Overruns()
	}
	return n
}
