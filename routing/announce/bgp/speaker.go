package bgp

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"vstun/routing/announce"
)

// Speaker announces routes to peers. Any number of goroutines may call its methods.
type Speaker struct {
	sessions sessions // before the engine, whose goroutines use it

	mu      sync.Mutex
	cfg     announce.Config
	engine  *engine // nil: the configuration has no BGP
	wanted  []announce.Route
	inRIB   map[netip.Addr]sent
	leaving bool        // see Leave
	timer   *time.Timer // to the next withdrawal of a graceful route
	closed  bool
}

// sent is a route as peers have it.
type sent struct {
	announce.Route
	ends time.Time // it has the community GRACEFUL_SHUTDOWN, and is withdrawn then; the zero Time: it has not
}

func (s sent) graceful() bool { return !s.ends.IsZero() }

// New returns a speaker without a configuration. report is called with each event, by a goroutine of the speaker's or
// the caller's, and must not call the speaker.
func New(report func(Event)) *Speaker {
	s := &Speaker{inRIB: map[netip.Addr]sent{}}
	s.sessions.report, s.sessions.settle = report, s.settle
	return s
}

// settle adapts the engine to the session with a peer: BFD runs while there is a session. A router may make its BFD
// anew for a new session, as FRR does, and the engine would end this session because of it. A peer whose next session
// a stale reset would end is made anew.
func (s *Speaker) settle(a netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.cfg.Peers, func(p announce.Peer) bool { return p.Addr == a })
	if s.engine == nil || s.closed || i < 0 {
		return
	}
	p := &s.cfg.Peers[i]
	up, stale := s.sessions.state(a)
	var err error
	if stale {
		s.sessions.setReset(a, false)
		err = errors.Join(s.engine.remove(p), s.engine.add(p))
	} else if p.BFD.On() {
		err = s.engine.setBFD(p, up)
	}
	if err != nil {
		s.sessions.failed(a, announce.NoSocket, err.Error())
	}
}

// Set puts a configuration in force. Sessions with peers that are not changed go on, unless AS, router ID or listening
// address change. On an error sessions may have ended: the caller puts the former configuration in force again.
func (s *Speaker) Set(cfg announce.Config) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.cfg.Equal(&cfg) {
		return nil
	}
	if s.engine != nil && (!cfg.On() || !s.cfg.SameSpeaker(&cfg)) {
		s.stop()
	}
	former := s.cfg.Peers
	if s.engine == nil {
		former = nil
		if cfg.On() {
			e, err := start(&cfg, slog.New(&handler{sessions: &s.sessions}))
			if err != nil {
				return err
			}
			s.engine = e
		}
	}
	s.cfg = cfg
	if s.engine == nil {
		return nil
	}
	return errors.Join(s.setPeers(former), s.sync())
}

// setPeers brings the engine from the peers former to those of s.cfg.
func (s *Speaker) setPeers(former []announce.Peer) error {
	was := make(map[netip.Addr]announce.Peer, len(former))
	for _, p := range former {
		was[p.Addr] = p
	}
	var errs []error
	errs = append(errs, s.engine.setPolicies(s.cfg.Peers))
	is := make(map[netip.Addr]bool, len(s.cfg.Peers))
	for i := range s.cfg.Peers {
		p := &s.cfg.Peers[i]
		is[p.Addr] = true
		old, known := was[p.Addr]
		moved := old
		moved.NextHop = p.NextHop
		switch {
		case known && old == *p:
			continue
		case known && moved == *p: // the session goes on
			errs = append(errs, s.engine.resend(p.Addr))
			continue
		}
		s.sessions.begin(p.Addr) // before the former session ends, which is no event
		if known {
			errs = append(errs, s.engine.remove(&old))
		}
		if err := s.engine.add(p); err != nil {
			errs = append(errs, fmt.Errorf("bgp: peer %v: %w", p.Addr, err))
		}
	}
	for a, p := range was {
		if !is[a] {
			s.sessions.end(a)
			errs = append(errs, s.engine.remove(&p))
		}
	}
	return errors.Join(errs...)
}

// Announce makes routes the announced ones. Routes that are announced already, and are not changed, are not sent again.
// A yielded route that is announced gets the community GRACEFUL_SHUTDOWN, so that peers prefer others, and is withdrawn
// after Config.Graceful. One that is not announced stays so.
func (s *Speaker) Announce(routes []announce.Route) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wanted = routes
	return s.sync()
}

// sync brings the engine's routes to the wanted ones.
func (s *Speaker) sync() error {
	if s.engine == nil || s.closed {
		return nil
	}
	now := time.Now()
	var next time.Time // of a withdrawal
	is := make(map[netip.Addr]sent, len(s.wanted))
	var plain, graceful []announce.Route // that are sent
	for i := range s.wanted {
		r := &s.wanted[i]
		old, known := s.inRIB[r.VIP]
		v := sent{Route: *r}
		if r.Yielded || s.leaving {
			if v.ends = old.ends; !old.graceful() {
				v.ends = now.Add(s.cfg.Graceful)
			}
			if !known || !now.Before(v.ends) {
				continue
			}
			if next.IsZero() || v.ends.Before(next) {
				next = v.ends
			}
		}
		is[r.VIP] = v
		switch {
		case known && old.Equal(r) && old.graceful() == v.graceful():
		case v.graceful():
			graceful = append(graceful, *r)
		default:
			plain = append(plain, *r)
		}
	}
	var gone []netip.Addr
	for vip := range s.inRIB {
		if _, kept := is[vip]; !kept {
			gone = append(gone, vip)
		}
	}
	s.inRIB = is
	s.wake(next)
	return errors.Join(s.engine.withdraw(gone), s.engine.announce(s.cfg.AS, plain, false),
		s.engine.announce(s.cfg.AS, graceful, true))
}

// wake makes sync run again at a time; the zero Time: not.
func (s *Speaker) wake(at time.Time) {
	if s.timer != nil {
		s.timer.Stop()
	}
	if at.IsZero() {
		return
	}
	s.timer = time.AfterFunc(time.Until(at), func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		_ = s.sync() // the routes are the engine's own
	})
}

// On reports whether there is a configuration.
func (s *Speaker) On() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.engine != nil
}

// Leave yields all routes, and waits until they are withdrawn and packets that were under way have come: for
// Config.Linger. It returns at once if no peer has a route. No route is announced afterwards.
func (s *Speaker) Leave() error {
	s.mu.Lock()
	s.leaving = true
	err := s.sync()
	wait := s.cfg.Linger
	for _, r := range s.inRIB {
		wait = max(wait, time.Until(r.ends)+s.cfg.Linger)
	}
	s.mu.Unlock()
	if err == nil && s.heard() {
		time.Sleep(wait)
	}
	return err
}

// heard reports whether a session is established.
func (s *Speaker) heard() bool {
	for _, session := range s.Status().Sessions {
		if session.State == announce.Established {
			return true
		}
	}
	return false
}

// stop ends the sessions.
func (s *Speaker) stop() {
	for i := range s.cfg.Peers {
		s.sessions.end(s.cfg.Peers[i].Addr)
		// One by one: GoBGP 4.8.0 hangs if it ends several at once while BFD finds one of them silent.
		_ = s.engine.remove(&s.cfg.Peers[i])
	}
	s.engine.stop()
	s.engine, s.cfg = nil, announce.Config{}
	clear(s.inRIB)
}

// Close ends the sessions. Peers forget the routes at once.
func (s *Speaker) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timer != nil {
		s.timer.Stop()
	}
	s.closed = true
	if s.engine != nil {
		s.stop()
	}
	return nil
}
