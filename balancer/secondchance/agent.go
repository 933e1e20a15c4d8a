package secondchance

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"time"

	"vstun/balancer/envelope"
)

// Bounds of an agent: directors whose session is verified, sessions that have a challenge, and the time between two
// answers with former tables to one of them.
const (
	maxSessions   = 16
	maxChallenges = 64
)

// maxAge bounds the age of a table that another one knows, in seconds.
const maxAge = uint32(Remember / time.Second)

// Agent is an agent's knowledge of tables. One goroutine uses it at a time.
type Agent struct {
	sealer     *envelope.Sealer
	session    uint64
	seq        uint64
	history    history
	sessions   map[uint64]*verified
	challenges map[uint64]*challenge
	taken      uint64 // tables
	faults     faults
}

// verified is the session of a director that has answered a challenge.
type verified struct {
	seq     uint64 // the highest so far
	heard   time.Time
	from    netip.AddrPort
	current map[string]*entry // in force there, by service
	asked   map[string]bool   // services of which the director has the former tables
}

// challenge is the nonce that a session must send.
type challenge struct {
	nonce uint64
	at    time.Time
}

// NewAgent returns an agent without tables.
func NewAgent(key []byte) *Agent {
	return &Agent{sealer: envelope.New(key, protocol), session: envelope.Random(), history: history{},
		sessions: map[uint64]*verified{}, challenges: map[uint64]*challenge{}}
}

// Take processes a datagram. It returns datagrams to send to its sender, and whether View has changed. own reports
// whether this host has an address.
func (a *Agent) Take(b []byte, from netip.AddrPort, own func(netip.Addr) bool,
	now time.Time) (answers [][]byte, changed bool) {
	e, fault := opened(a.sealer, b)
	switch {
	case fault != Accepted:
	case e.Kind != kindTable || len(e.Body) < tableHead:
		fault = BadHeader
	case !own(readAddr(e.Body)):
		fault = OtherHost
	}
	if fault != Accepted {
		a.faults[fault]++
		return nil, false
	}
	to, nonce, age := readAddr(e.Body), binary.BigEndian.Uint64(e.Body[16:]), binary.BigEndian.Uint32(e.Body[24:])
	d := a.sessions[e.Session]
	if d == nil {
		if d = a.verify(&e, nonce, now); d == nil {
			a.faults[Unverified]++
			return [][]byte{a.answer(&e, to, a.challenges[e.Session].nonce)}, false
		}
	} else if e.Seq <= d.seq {
		a.faults[Replayed]++
		return nil, false
	}
	d.seq, d.heard, d.from = e.Seq, now, from
	if len(e.Body) == tableHead {
		return nil, false
	}
	t, err := parse(e.Body[tableHead:])
	if err != nil {
		a.faults[BadTable]++
		return nil, false
	}
	content := string(e.Body[tableHead:])
	begins := age == 0 && (d.current[t.Service] == nil || d.current[t.Service].content != content)
	entry, changed := a.history.note(t, content, time.Duration(min(age, maxAge))*time.Second, begins, now)
	if entry == nil {
		a.faults[BadTable]++
		return nil, false
	}
	a.taken++
	answers = append(answers, a.answer(&e, to, 0)) // first: a director takes former tables in a session that it knows
	if age == 0 {
		d.current[t.Service] = entry
		answers = append(answers, a.former(d, &e, t.Service, to, now)...)
	}
	return answers, changed
}

// verify returns the director of a session that is not known yet, nil if it has no challenge or a wrong nonce. It then
// has a challenge.
func (a *Agent) verify(e *envelope.Envelope, nonce uint64, now time.Time) *verified {
	if c := a.challenges[e.Session]; c == nil {
		if len(a.challenges) >= maxChallenges {
			delete(a.challenges, oldest(a.challenges, func(c *challenge) time.Time { return c.at }))
		}
		a.challenges[e.Session] = &challenge{envelope.Random() | 1, now} // not 0
		return nil
	} else if c.nonce != nonce {
		return nil
	}
	delete(a.challenges, e.Session)
	if len(a.sessions) >= maxSessions {
		delete(a.sessions, oldest(a.sessions, func(d *verified) time.Time { return d.heard }))
	}
	d := &verified{current: map[string]*entry{}, asked: map[string]bool{}}
	a.sessions[e.Session] = d
	return d
}

// oldest returns the key of the element with the earliest time.
func oldest[T any](m map[uint64]T, at func(T) time.Time) (key uint64) {
	first := true
	for k, v := range m {
		if first || at(v).Before(at(m[key])) {
			key, first = k, false
		}
	}
	return key
}

// answer returns an answer to the datagram e.
func (a *Agent) answer(e *envelope.Envelope, to netip.Addr, nonce uint64) []byte {
	as16 := to.As16()
	body := binary.BigEndian.AppendUint64(make([]byte, 0, answerSize), e.Session)
	body = binary.BigEndian.AppendUint64(append(body, as16[:]...), e.Seq)
	return a.seal(kindAnswer, binary.BigEndian.AppendUint64(body, nonce))
}

// answerSize is the length of the body of an answer, in bytes.
const answerSize = 8 + 16 + 8 + 8

// former returns the tables of a service that the director of e may not know, once for each session.
func (a *Agent) former(d *verified, e *envelope.Envelope, name string, to netip.Addr, now time.Time) (all [][]byte) {
	s := a.history[name]
	if d.asked[name] || s == nil || len(d.asked) >= maxServices {
		return nil
	}
	d.asked[name] = true
	for _, f := range s.entries {
		if f.content != string(e.Body[tableHead:]) {
			age := uint32(min(max(now.Sub(f.last), 0), Remember) / time.Second)
			all = append(all, a.seal(kindFormer, appendTable(nil, to, e.Session, max(age, 1), f.content)))
		}
	}
	return all
}

// seal returns a datagram.
func (a *Agent) seal(kind uint8, body []byte) []byte {
	a.seq++
	b := a.sealer.Head(make([]byte, 0, envelope.Size+len(body)), 0, kind, 0, a.session, a.seq)
	return a.sealer.Seal(append(b, body...))
}

// Forget removes old tables and silent directors, and reports whether View has changed. It is called from time to time.
func (a *Agent) Forget(now time.Time) (any bool) {
	any = a.history.forget(now)
	maps.DeleteFunc(a.sessions, func(_ uint64, d *verified) bool { return now.Sub(d.heard) > Remember })
	for _, d := range a.sessions {
		maps.DeleteFunc(d.current, func(name string, _ *entry) bool { return a.history[name] == nil })
		maps.DeleteFunc(d.asked, func(name string, _ bool) bool { return a.history[name] == nil })
	}
	return any
}

// View returns the choices of a host with the addresses for which own returns true.
func (a *Agent) View(own func(netip.Addr) bool) *View { return a.history.view(own) }

// AgentStatus is what an agent has heard.
type AgentStatus struct {
	Directors []Heard
	Services  []ServiceStatus
	Taken     uint64            // tables
	Refused   map[string]uint64 // datagrams, by reason
}

// Heard is a director, or an agent, from which datagrams come.
type Heard struct {
	Address netip.Addr
	Last    time.Time
}

// ServiceStatus is the tables of a service, the newest first.
type ServiceStatus struct {
	Name   string
	Tables []TableStatus
}

// TableStatus is a table: when it came in force, and when it was so last.
type TableStatus struct {
	Members     int
	Since, Last time.Time
}

// Status returns what the agent knows.
func (a *Agent) Status() (st AgentStatus) {
	heard := map[netip.Addr]time.Time{} // a director that has restarted has several sessions
	for _, d := range a.sessions {
		if at := d.from.Addr().Unmap(); d.heard.After(heard[at]) {
			heard[at] = d.heard
		}
	}
	for _, at := range slices.SortedFunc(maps.Keys(heard), netip.Addr.Compare) {
		st.Directors = append(st.Directors, Heard{at, heard[at]})
	}
	st.Services, st.Taken, st.Refused = a.history.status(), a.taken, a.faults.names()
	return st
}
