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

	mu     sync.Mutex
	cfg    announce.Config
	engine *engine // nil: the configuration has no BGP
	wanted []announce.Route
	inRIB  map[netip.Addr]sent
	phase  phase
	held   bool
	timer  *time.Timer // from graceful to withdrawn
	ends   time.Time   // of graceful
	closed bool
}

// sent is a route as peers have it.
type sent struct {
	announce.Route
	graceful bool
}

// phase is what a speaker does with its routes.
type phase uint8

const (
	announcing phase = iota
	graceful         // they have the community GRACEFUL_SHUTDOWN
	withdrawn
)

// New returns a speaker without a configuration. report is called with each event, by a goroutine of the speaker's or
// the caller's, and must not call the speaker.
func New(report func(Event)) *Speaker {
	s := &Speaker{inRIB: map[netip.Addr]sent{}}
	s.sessions.report, s.sessions.renew = report, s.renew
	return s
}

// renew makes the engine's session with a peer anew, so that a reset that waits for it is gone.
func (s *Speaker) renew(a netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.cfg.Peers, func(p announce.Peer) bool { return p.Addr == a })
	if s.engine == nil || s.closed || i < 0 || !s.sessions.taken(a) {
		return
	}
	p := &s.cfg.Peers[i]
	if err := errors.Join(s.engine.remove(p), s.engine.add(p)); err != nil {
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
	keep := make(map[netip.Addr]bool, len(s.wanted))
	var changed []announce.Route
	if s.phase != withdrawn && !s.held {
		for i := range s.wanted {
			r := &s.wanted[i]
			keep[r.VIP] = true
			old, known := s.inRIB[r.VIP]
			if known && old.Equal(r) && old.graceful == (s.phase == graceful) {
				continue
			}
			if !known && s.phase == graceful { // it would be withdrawn at once
				delete(keep, r.VIP)
				continue
			}
			changed = append(changed, *r)
			s.inRIB[r.VIP] = sent{*r, s.phase == graceful}
		}
	}
	var gone []netip.Addr
	for vip := range s.inRIB {
		if !keep[vip] {
			gone = append(gone, vip)
			delete(s.inRIB, vip)
		}
	}
	return errors.Join(s.engine.withdraw(gone), s.engine.announce(s.cfg.AS, changed, s.phase == graceful))
}

// Hold keeps the speaker from announcing, or no longer.
func (s *Speaker) Hold(held bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = held
	return s.sync()
}

// Standby gives the routes the community GRACEFUL_SHUTDOWN, so that peers prefer others. It withdraws them after
// Config.Graceful, and returns the time in which that will have happened. A speaker without a configuration, or without
// routes, announces none later.
func (s *Speaker) Standby() (time.Duration, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.phase == graceful:
		return max(time.Until(s.ends), 0), nil
	case s.phase == withdrawn:
		return 0, nil
	case s.cfg.Graceful <= 0 || len(s.inRIB) == 0:
		s.phase = withdrawn
		return 0, s.sync()
	}
	s.phase, s.ends = graceful, time.Now().Add(s.cfg.Graceful)
	s.timer = time.AfterFunc(s.cfg.Graceful, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.phase == graceful && !time.Now().Before(s.ends) { // else it is the timer of a former Standby
			s.phase = withdrawn
			_ = s.sync() // the routes are the engine's own
		}
	})
	return s.cfg.Graceful, s.sync()
}

// Activate announces the routes again.
func (s *Speaker) Activate() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timer != nil {
		s.timer.Stop()
	}
	s.phase = announcing
	return s.sync()
}

// On reports whether there is a configuration.
func (s *Speaker) On() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.engine != nil
}

// Leave is Standby, and waits until the routes are withdrawn and packets that were under way have come: for
// Config.Linger. It returns at once if no peer has a route.
func (s *Speaker) Leave() error {
	wait, err := s.Standby()
	if err != nil {
		return err
	}
	s.mu.Lock()
	linger := s.cfg.Linger
	s.mu.Unlock()
	if !s.heard() {
		return nil
	}
	time.Sleep(wait + linger)
	return nil
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
