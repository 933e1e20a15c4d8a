package page

import (
	"cmp"
	"maps"
	"math"
	"net"
	"slices"
	"strings"
	"time"

	"vstun/cmd/internal/api"
)

// sample is the contents of the page. Each part has the number of the sample in which it changed last.
type sample struct {
	number   uint64 // of the last sample, from 1
	layout   uint64 // the last in which services or realservers were added or removed
	at       time.Time
	seconds  float64 // between the last two
	director directorState
	totals   totals
	drops    []drop
	leaving  leaving
	claimed  []conflict
	roles    []role
	exchange *exchange // nil: none
	sessions *sessions // nil: none
	names    *names    // nil: none
	services []*service
	nextID   int

	next  time.Time // step of the history
	step  uint64    // steps that are complete
	grown totalCounts
	old   totalCounts
	total totalHistory
}

// directorState is the parts of the director's status that seldom change.
type directorState struct {
	Version   string  `json:"version"`
	Pid       int     `json:"pid"`
	Started   float64 `json:"started"` // Unix seconds
	TUN       string  `json:"tun"`
	Queues    int     `json:"queues"`
	Offloads  string  `json:"offloads"`
	SendError string  `json:"send_error,omitempty"`
}

// totals is the numbers of the whole director.
type totals struct {
	In          traffic         `json:"in"`
	Out         traffic         `json:"out"`
	Drops       uint64          `json:"drops"`
	DropRate    float64         `json:"drop_rate"`
	Overruns    uint64          `json:"overruns"`
	Waiting     int             `json:"waiting"`
	NewRate     float64         `json:"new_rate"`
	Connections api.Connections `json:"connections"`
}

type traffic struct {
	Packets    uint64  `json:"packets"`
	Bytes      uint64  `json:"bytes"`
	PacketRate float64 `json:"packet_rate"`
	BitRate    float64 `json:"bit_rate"`
}

// totalCounts is the counters behind the charts of the whole director.
type totalCounts struct {
	in, out counts
	drops   uint64
}

// drop is a drop reason that has occurred.
type drop struct {
	Reason string  `json:"reason"`
	Total  uint64  `json:"total"`
	Rate   float64 `json:"rate"`
}

// leaving is the realservers that are not configured any more. List has the first leavingShown of them.
type leaving struct {
	Realservers int                 `json:"realservers"`
	Connections int                 `json:"connections"`
	List        []leavingRealserver `json:"list"`
}

type leavingRealserver struct {
	Name     string `json:"name"`
	Service  string `json:"service"`
	Method   string `json:"method"`
	Active   int    `json:"active"`
	Inactive int    `json:"inactive"`
}

const leavingShown = 100

// service is a service. The values behind state and figures never change: they may be read without the lock.
type service struct {
	id          int // never used again
	name        string
	state       *serviceState
	figures     *figures
	stateAt     uint64 // number of the sample
	figuresAt   uint64
	realservers []*realserver
	grown       counts // since the last step
	born        uint64 // step
	history     serviceHistory
}

type serviceState struct {
	Name      string `json:"name"`
	Protocol  string `json:"protocol"`
	Addresses string `json:"addresses"` // "198.51.100.80:80,443 [2001:db8::1]:80,443"
	Announced string `json:"announced"` // "eth0,eth1 -": the devices of each address; "-": none
	Scheduler string `json:"scheduler"` // with its settings, as status prints it
	Health    string `json:"health"`    // "up", "down", or "" if unknown
	Quorum    int    `json:"quorum"`
	WeightUp  int    `json:"weight_up"`
	Sorry     bool   `json:"sorry"`
}

type realserver struct {
	name      string
	state     *realserverState
	figures   *figures
	stateAt   uint64
	figuresAt uint64
	old       counts
}

type realserverState struct {
	Name       string `json:"name"`
	Method     string `json:"method"` // with its tunnel, as status prints it
	Weight     int    `json:"weight"`
	Configured int    `json:"configured"` // weight in the configuration
	Effective  int    `json:"effective"`
	Upper      int    `json:"upper"`
	Lower      int    `json:"lower"`
	Health     string `json:"health"` // "up", "down" or "unchecked"
	Check      string `json:"check"`  // "http, through the tunnel"
	Reason     string `json:"reason"`
	Since      int64  `json:"since"` // up or down, in Unix seconds; 0: unknown
}

// take takes over st, the status of now.
func (s *sample) take(st *api.DirectorStatus, now time.Time) {
	if s.number > 0 {
		s.seconds = now.Sub(s.at).Seconds()
	} else {
		s.next = now.Add(stepTime)
	}
	s.number++
	s.at = now
	s.arrange(st.Services)
	on := announcedOn(st.Announced)
	var scheduled counts // only its connections are used
	for i, svc := range s.services {
		scheduled.add(s.takeService(svc, &st.Services[i], on))
	}
	s.takeTotals(st, scheduled.connections)
	s.steps(now)
}

// arrange gives s the services and realservers of all, in the same order. Services and realservers that s had before
// keep their state.
func (s *sample) arrange(all []api.Service) {
	same := slices.EqualFunc(s.services, all, func(a *service, b api.Service) bool {
		return a.name == b.Name && slices.EqualFunc(a.realservers, b.Realservers,
			func(a *realserver, b api.Realserver) bool { return a.name == b.Name() })
	})
	if same {
		return
	}
	s.layout = s.number
	known := map[string]*service{}
	for _, svc := range s.services {
		known[svc.name] = svc
	}
	s.services = make([]*service, 0, len(all))
	for i := range all {
		svc := known[all[i].Name]
		if svc == nil {
			s.nextID++
			svc = &service{id: s.nextID, name: all[i].Name, born: s.step}
		}
		was := map[string]*realserver{}
		for _, r := range svc.realservers {
			was[r.name] = r
		}
		svc.realservers = make([]*realserver, 0, len(all[i].Realservers))
		for j := range all[i].Realservers {
			r := &all[i].Realservers[j]
			svc.realservers = append(svc.realservers, cmp.Or(was[r.Name()], &realserver{name: r.Name(),
				old: counted(r)}))
		}
		s.services = append(s.services, svc)
	}
}

func counted(r *api.Realserver) counts {
	return counts{r.Connections, r.Forwarded.Packets, r.Forwarded.Bytes}
}

// takeService takes over the status of a service, and returns the growth of its counters. on is the devices of VIPs.
func (s *sample) takeService(svc *service, st *api.Service, on map[string]string) (growth counts) {
	var sum counts
	var f figures
	for i, r := range svc.realservers {
		c := counted(&st.Realservers[i])
		g := c.since(r.old)
		r.old = c
		s.takeRealserver(r, &st.Realservers[i], c, g)
		sum.add(c)
		growth.add(g)
		f[active] += r.figures[active]
		f[inactive] += r.figures[inactive]
	}
	svc.grown.add(growth)
	f.set(sum, growth, s.seconds)
	update(&svc.figures, f, &svc.figuresAt, s.number)
	update(&svc.state, serviceState{Name: st.Name, Protocol: st.Protocol, Addresses: addresses(st),
		Announced: announced(st, on), Scheduler: st.Settings(), Health: st.Health,
		Quorum: st.Quorum, WeightUp: st.WeightUp, Sorry: st.Sorry}, &svc.stateAt, s.number)
	return growth
}

func (s *sample) takeRealserver(r *realserver, st *api.Realserver, c, growth counts) {
	f := figures{active: float64(st.Active), inactive: float64(st.Inactive)}
	f.set(c, growth, s.seconds)
	state := realserverState{Name: st.Name(), Method: st.Method(), Weight: st.Weight, Configured: st.Weight,
		Effective: st.Weight, Upper: st.Upper, Lower: st.Lower,
		Health: cmp.Or(st.Health, "unchecked")}
	if st.Configured != nil {
		state.Configured = *st.Configured
	}
	if st.Health != "" {
		state.Effective = st.Effective
	}
	if k := st.Check; k != nil {
		state.Check, state.Reason = k.Type+", direct", k.Reason
		switch {
		case k.Via != "tunnel":
		case st.Encap == "": // dr
			state.Check = k.Type + ", to the VIP"
		default:
			state.Check = k.Type + ", through the tunnel"
		}
		var since, last float64
		if r.state != nil {
			since, last = float64(r.state.Since), r.figures[checked]
		}
		state.Since = int64(moment(s.at, k.Since, since))
		f[checked], f[took] = moment(s.at, k.Last, last), math.Round(k.Duration*1e4)/10
	}
	if st.Unreachable != "" {
		state.Reason = st.Unreachable
	}
	update(&r.figures, f, &r.figuresAt, s.number)
	update(&r.state, state, &r.stateAt, s.number)
}

// moment returns the time ago seconds before now, in Unix seconds. If that is within a second of before, it returns
// before, since two measurements of one moment differ a little. An ago of 0 means never, and gives 0.
func moment(now time.Time, ago, before float64) float64 {
	if ago == 0 {
		return 0
	}
	at := math.Round(float64(now.UnixMilli())/1e3 - ago)
	if math.Abs(at-before) <= 1 {
		return before
	}
	return at
}

// update sets *at to value and *when to number, if the value has changed.
func update[T comparable](at **T, value T, when *uint64, number uint64) {
	if *at == nil || **at != value {
		*at, *when = &value, number
	}
}

// addresses returns the service's virtual addresses with ports.
func addresses(st *api.Service) string {
	ports := strings.Join(st.Ports, ",")
	var all []string
	for _, vip := range st.VIPs {
		all = append(all, net.JoinHostPort(vip, ports))
	}
	return strings.Join(all, " ")
}

func (s *sample) takeTotals(st *api.DirectorStatus, scheduled uint64) {
	now := totalCounts{in: counts{packets: st.In.Packets, bytes: st.In.Bytes}, out: counts{packets: st.Out.Packets,
		bytes: st.Out.Bytes}}
	was := map[string]uint64{}
	for _, d := range s.drops {
		was[d.Reason] = d.Total
	}
	s.drops = s.drops[:0:0] // the old ones may still be read
	for _, reason := range slices.Sorted(maps.Keys(st.Drops)) {
		n := st.Drops[reason]
		now.drops += n
		s.drops = append(s.drops, drop{reason, n, rate(grown(n, was[reason]), s.seconds)})
	}
	if s.number == 1 {
		s.old = now
	}
	in, out, dropped := now.in.since(s.old.in), now.out.since(s.old.out), grown(now.drops, s.old.drops)
	in.connections = scheduled
	s.old = now
	s.grown.in.add(in)
	s.grown.drops += dropped
	s.totals = totals{In: trafficOf(st.In, in, s.seconds), Out: trafficOf(st.Out, out, s.seconds), Drops: now.drops,
		DropRate: rate(dropped, s.seconds),
		Overruns: st.Overruns, Waiting: st.Waiting, NewRate: rate(scheduled, s.seconds), Connections: st.Connections}
	s.director = directorState{Version: st.Version, Pid: st.Pid, Started: moment(s.at, st.Uptime, s.director.Started),
		TUN: st.TUN, Queues: st.Queues,
		Offloads: st.Offloads, SendError: st.SendError}
	s.claimed = s.conflicts(st.Announced, s.claimed)
	s.roles = s.rolesOf(st.VRRP, s.roles)
	s.exchange = s.exchangeOf(st.Sync)
	s.sessions = s.sessionsOf(st.BGP, s.sessions)
	s.names = s.namesOf(st.Names, s.names)
	s.leaving = leaving{Realservers: st.Leaving.Realservers, Connections: st.Leaving.Connections}
	for _, r := range st.Leaving.List[:min(len(st.Leaving.List), leavingShown)] {
		s.leaving.List = append(s.leaving.List, leavingRealserver{r.Name(), r.Service, r.Method(), r.Active,
			r.Inactive})
	}
}

func trafficOf(t api.Traffic, growth counts, seconds float64) traffic {
	return traffic{t.Packets, t.Bytes, rate(growth.packets, seconds), rate(8*growth.bytes, seconds)}
}

// steps adds points to the history for the steps that are complete. If there was no sample for several steps, their
// points are equal.
func (s *sample) steps(now time.Time) {
	if now.Before(s.next) {
		return
	}
	n := uint64(now.Sub(s.next)/stepTime) + 1
	from, to := s.step, s.step+n
	seconds := (now.Sub(s.next) + stepTime).Seconds()
	for _, svc := range s.services {
		for i, grown := range []uint64{svc.grown.connections, svc.grown.packets, 8 * svc.grown.bytes} {
			svc.history[i].put(from, to, rate(grown, seconds))
		}
		svc.grown = counts{}
	}
	for i, value := range []float64{rate(s.grown.in.connections, seconds), rate(s.grown.in.packets, seconds),
		rate(8*s.grown.in.bytes, seconds),
		rate(s.grown.drops, seconds), float64(s.totals.Connections.Count)} {
		s.total[i].put(from, to, value)
	}
	s.grown = totalCounts{}
	s.step = to
	s.next = s.next.Add(time.Duration(n) * stepTime)
}
