package secondchance

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"time"

	"vstun/balancer/envelope"
)

// Every is how often a director sends its tables when nothing changes, and CallEvery how often it calls agents.
const (
	Every     = 10 * time.Second
	CallEvery = time.Second
)

// resendEvery is the time between two transfers of all tables to an agent that asks for them.
const resendEvery = 100 * time.Millisecond

// Director sends a director's tables. One goroutine uses it at a time.
type Director struct {
	sealer   *envelope.Sealer
	session  uint64
	seq      uint64
	version  uint64
	tables   map[string]string // encodings of the tables in force, by service
	unsent   map[string]bool   // services whose table has changed since the last datagrams
	members  map[string][]netip.Addr
	history  history
	fresh    map[string]bool // services whose history has changed since Fresh
	agents   map[netip.Addr]*agent
	tooLarge []string // services whose tables no datagram can carry
	sent     uint64   // datagrams
	faults   faults
}

// agent is a realserver that gets tables.
type agent struct {
	session  uint64 // of its last answer; 0: it has not answered
	seq      uint64 // of its last answer
	echo     uint64 // the highest number that it has answered: what another session of it answers is higher
	nonce    uint64
	heard    time.Time
	resent   time.Time
	sent     map[string]uint64 // sequence number of the last table that has been sent, by service
	answered map[string]uint64 // sequence number of the last one that it has taken
}

// NewDirector returns a director without tables.
func NewDirector(key []byte) *Director {
	return &Director{sealer: envelope.New(key, protocol), session: envelope.Random(), history: history{},
		unsent: map[string]bool{}, fresh: map[string]bool{}, agents: map[netip.Addr]*agent{}}
}

// Set puts tables in force, and reports whether they differ from those before. Members with an address of which gets
// returns true get the tables of their services.
func (d *Director) Set(tables []*Table, gets func(*Member) bool, now time.Time) (changed bool) {
	next, members := map[string]string{}, map[string][]netip.Addr{}
	d.tooLarge = nil
	for _, t := range tables {
		if !t.fits() {
			d.tooLarge = append(d.tooLarge, t.Service)
			continue
		}
		content := string(t.append(nil))
		next[t.Service] = content
		for i := range t.Members {
			if m := &t.Members[i]; gets(m) && !slices.Contains(members[t.Service], m.Address) {
				members[t.Service] = append(members[t.Service], m.Address)
			}
		}
		begins := d.tables[t.Service] != content
		if _, news := d.history.note(t, content, 0, begins, now); news {
			d.fresh[t.Service] = true
		}
		if begins {
			d.unsent[t.Service] = true
		}
	}
	changed = !maps.Equal(next, d.tables)
	if changed {
		d.version++
	}
	d.tables, d.members = next, members
	wanted := map[netip.Addr]bool{}
	for _, list := range members {
		for _, a := range list {
			wanted[a] = true
			if d.agents[a] == nil {
				d.agents[a] = &agent{echo: d.seq, sent: map[string]uint64{}, answered: map[string]uint64{}}
			}
		}
	}
	maps.DeleteFunc(d.agents, func(a netip.Addr, _ *agent) bool { return !wanted[a] })
	for at, a := range d.agents {
		gone := func(name string, _ uint64) bool { return !slices.Contains(members[name], at) }
		maps.DeleteFunc(a.sent, gone)
		maps.DeleteFunc(a.answered, gone)
	}
	return changed
}

// Send calls yield for each datagram that all agents get now: the tables in force, and the former ones.
func (d *Director) Send(now time.Time, yield func(to netip.Addr, b []byte)) {
	for name, content := range d.tables {
		d.renew(name, content, now)
	}
	if d.history.forget(now) {
		for name := range d.tables {
			d.fresh[name] = true
		}
	}
	clear(d.unsent)
	for _, to := range slices.SortedFunc(maps.Keys(d.agents), netip.Addr.Compare) {
		d.sendTo(to, now, yield)
	}
}

// SendChanged is Send for the services whose tables have changed since the last datagrams.
func (d *Director) SendChanged(now time.Time, yield func(to netip.Addr, b []byte)) {
	for _, name := range slices.Sorted(maps.Keys(d.unsent)) {
		delete(d.unsent, name)
		for _, to := range d.members[name] {
			d.sendService(name, to, now, yield)
		}
	}
}

// Call calls yield for each datagram by which agents that have restarted find out that they lack all tables.
func (d *Director) Call(yield func(to netip.Addr, b []byte)) {
	for _, to := range slices.SortedFunc(maps.Keys(d.agents), netip.Addr.Compare) {
		yield(to, d.seal(to, d.agents[to], 0, ""))
	}
}

// renew notes that the table with an encoding is still in force.
func (d *Director) renew(name, content string, now time.Time) {
	if s := d.history[name]; s != nil {
		for _, e := range s.entries {
			if e.content == content {
				e.last = now
			}
		}
	}
}

// sendTo is Send for one agent.
func (d *Director) sendTo(to netip.Addr, now time.Time, yield func(to netip.Addr, b []byte)) {
	for _, name := range slices.Sorted(maps.Keys(d.members)) {
		if slices.Contains(d.members[name], to) {
			d.sendService(name, to, now, yield)
		}
	}
}

// sendService is Send for one agent and one of its services. The former tables come first: an agent that gets its first
// packets by the table in force knows them.
func (d *Director) sendService(name string, to netip.Addr, now time.Time, yield func(to netip.Addr, b []byte)) {
	a, s := d.agents[to], d.history[name]
	if s == nil {
		return
	}
	for i := len(s.entries) - 1; i >= 0; i-- {
		if e := s.entries[i]; e.content != d.tables[name] {
			age := uint32(min(max(now.Sub(e.last), 0), Remember) / time.Second)
			yield(to, d.seal(to, a, max(age, 1), e.content))
		}
	}
	b := d.seal(to, a, 0, d.tables[name])
	a.sent[name] = d.seq // yield may bring the answer
	yield(to, b)
}

// seal returns a datagram with a table for an agent.
func (d *Director) seal(to netip.Addr, a *agent, age uint32, content string) []byte {
	d.seq++
	d.sent++
	b := d.sealer.Head(make([]byte, 0, envelope.Size+tableHead+len(content)), 0, kindTable, 0, d.session, d.seq)
	return d.sealer.Seal(appendTable(b, to, a.nonce, age, content))
}

// Take processes a datagram, and calls yield for each one that it causes. A former table that an agent has sent goes to
// the others, which need it.
func (d *Director) Take(b []byte, now time.Time, yield func(to netip.Addr, b []byte)) {
	e, fault := opened(d.sealer, b)
	if fault == Accepted {
		switch {
		case e.Kind == kindAnswer && len(e.Body) == answerSize:
			fault = d.answer(&e, now, yield)
		case e.Kind == kindFormer && len(e.Body) >= tableHead:
			fault = d.former(&e, now, yield)
		default:
			fault = BadHeader
		}
	}
	d.faults[fault]++
}

// agentOf returns the agent that has sent e. session is the one of this director that e names, echo the number that it
// answers, 0 for none. A session of an agent begins with an answer to a datagram after all that have been answered
// before.
func (d *Director) agentOf(e *envelope.Envelope, to netip.Addr, session, echo uint64) (*agent, Fault) {
	a := d.agents[to]
	if session != d.session || a == nil || e.Session == a.session && e.Seq <= a.seq ||
		e.Session != a.session && echo <= a.echo {
		return nil, Replayed
	}
	a.session, a.seq, a.echo = e.Session, e.Seq, max(a.echo, echo)
	return a, Accepted
}

// answer processes an answer. An agent with a new challenge gets all tables.
func (d *Director) answer(e *envelope.Envelope, now time.Time, yield func(to netip.Addr, b []byte)) Fault {
	to := readAddr(e.Body[8:])
	seq, nonce := binary.BigEndian.Uint64(e.Body[24:]), binary.BigEndian.Uint64(e.Body[32:])
	a, fault := d.agentOf(e, to, binary.BigEndian.Uint64(e.Body), seq)
	if fault != Accepted {
		return fault
	}
	a.heard = now
	if nonce == 0 {
		for name, sent := range a.sent {
			if sent == seq {
				a.answered[name] = seq
			}
		}
		return Accepted
	}
	if nonce != a.nonce && now.Sub(a.resent) >= resendEvery {
		a.nonce, a.resent = nonce, now
		d.sendTo(to, now, yield)
	}
	return Accepted
}

// former processes a former table of an agent. One that is new goes to all agents of its service.
func (d *Director) former(e *envelope.Envelope, now time.Time, yield func(to netip.Addr, b []byte)) Fault {
	if _, fault := d.agentOf(e, readAddr(e.Body), binary.BigEndian.Uint64(e.Body[16:]), 0); fault != Accepted {
		return fault
	}
	t, err := parse(e.Body[tableHead:])
	if err != nil || d.tables[t.Service] == "" { // a service that is no more
		return BadTable
	}
	age := time.Duration(min(binary.BigEndian.Uint32(e.Body[24:]), maxAge)) * time.Second
	if _, news := d.history.note(t, string(e.Body[tableHead:]), age, false, now); news {
		d.fresh[t.Service] = true
		for _, to := range d.members[t.Service] {
			d.sendService(t.Service, to, now, yield)
		}
	}
	return Accepted
}

// DirectorStatus is what a director has sent and heard.
type DirectorStatus struct {
	Version  uint64 // of the tables in force: it counts changes
	Services []ServiceStatus
	Agents   []AgentHeard
	TooLarge []string // services whose tables no datagram can carry
	Sent     uint64   // datagrams
	Refused  map[string]uint64
}

// AgentHeard is an agent that gets tables.
type AgentHeard struct {
	Heard
	Current bool // it has answered that it has the last table of each service
}

// Status returns what the director knows.
func (d *Director) Status() DirectorStatus {
	st := DirectorStatus{Version: d.version, Services: d.history.status(), TooLarge: d.tooLarge, Sent: d.sent}
	d.faults[Accepted] = 0
	st.Refused = d.faults.names()
	for _, at := range slices.SortedFunc(maps.Keys(d.agents), netip.Addr.Compare) {
		a := d.agents[at]
		st.Agents = append(st.Agents, AgentHeard{Heard{at, a.heard}, maps.Equal(a.sent, a.answered)})
	}
	return st
}
