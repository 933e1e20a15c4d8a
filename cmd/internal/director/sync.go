package director

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"vstun/balancer/connsync"
	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/routing/query"
)

// peerSync exchanges connections with other directors. The zero value is a director without [sync].
type peerSync struct {
	*connsync.Sync
	log      *slog.Logger
	mode     string
	peers    []netip.Addr        // the configured ones; none: multicast
	group    netip.Addr          // of multicast
	device   string              // the key interface; "": none
	removals int                 // query.Device.Removals of device
	renew    func()              // see connsync.UDP.Renew
	held     atomic.Bool         // the connections of the peers are awaited: see syncing.hold
	alive    map[netip.Addr]bool // peers that the log has as heard
	rejoined chan struct{}       // see rejoin
	minute   time.Time           // in which new peers have been counted
	heard    int                 // their number
	warned   time.Time           // when the log got the last line of logRefused
	refused  uint64              // datagrams that had been refused by then
}

// open opens the sockets that cfg needs. Changes of connections are noted from here on.
func (s *peerSync) open(cfg *config.Sync, p *dataPlane, log *slog.Logger) error {
	if !cfg.On {
		return nil
	}
	peers, err := others(cfg.Peers)
	if err != nil {
		return err
	}
	link, size, err := connsync.OpenUDP(connsync.UDPConfig{Interface: cfg.Interface, Group: cfg.Group,
		Port: uint16(cfg.Port), Peers: peers})
	if err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	c := connsync.Config{ID: uint8(cfg.ID), Size: size, Peers: peers}
	if !cfg.IPVS {
		c.Key = []byte(cfg.Key)
	}
	s.Sync, s.log, s.mode = connsync.New(c, link, p.table, p.balancer, p.now), log, cfg.Mode()
	s.peers, s.group, s.device, s.renew = peers, cfg.Group, cfg.Interface, link.Renew
	s.held.Store(true)
	s.alive, s.rejoined = map[netip.Addr]bool{}, make(chan struct{}, 1)
	return nil
}

// followDevices lets the sockets follow their device, if it has been removed and made anew. The controller calls it.
func (s *peerSync) followDevices(all []query.Device) {
	if s.Sync == nil || s.device == "" {
		return
	}
	removals := -1 // it is not there
	for i := range all {
		if all[i].Name == s.device {
			removals = all[i].Removals
		}
	}
	if removals != s.removals && removals >= 0 {
		s.renew()
	}
	s.removals = removals
}

// others returns peers without the addresses of this host: all directors can have the same list.
func others(peers []netip.Addr) ([]netip.Addr, error) {
	if len(peers) == 0 {
		return nil, nil
	}
	local, err := query.LocalLinks(peers...)
	if err != nil {
		return nil, err
	}
	rest := slices.DeleteFunc(slices.Clone(peers), func(a netip.Addr) bool { return local[a] != "" })
	if len(rest) == 0 {
		return nil, errors.New("sync.peers are all addresses of this host: add those of the other directors")
	}
	return rest, nil
}

// Times of the wait for the connections of peers. lookEvery is the period in which run looks for them. readyAtMost is
// the longest time for which a director takes no role from another one. rejoinLeast is how long it waits for the news
// after an outage: connsync.Sync has found by then what is missing.
const (
	lookEvery   = 100 * time.Millisecond
	readyAtMost = 30 * time.Second
	rejoinLeast = 2500 * time.Millisecond
)

// syncing is what follows from the state of the exchange. run calls its functions one after the other.
type syncing struct {
	ready    func()      // once: the connections of the peers are here, or do not come in time
	complete func(bool)  // connections of peers are missing, or not any more; at first they are
	hold     func(bool)  // no role may be taken from another director, or it may again; at first it may not
	backup   func() bool // another director is the master of an instance
}

// rejoin notes that a fault has ended in which this director may have heard nothing of its peers. It may be called from
// any goroutine, and never waits.
func (s *peerSync) rejoin() {
	select {
	case s.rejoined <- struct{}{}:
	default:
	}
}

// run exchanges connections until ctx is cancelled.
func (s *peerSync) run(ctx context.Context, follow syncing) error {
	if s.Sync == nil {
		<-ctx.Done()
		return nil
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	since, least := time.Now(), time.Duration(0)
	s.held.Store(true)
	ready, complete := false, false
	for n := 1; ; n++ {
		select {
		case err := <-ended:
			return err
		case <-s.rejoined:
			since, least = time.Now(), rejoinLeast
			s.held.Store(true)
			follow.hold(true)
			continue
		case <-look.C:
		}
		if is := s.Complete(); is != complete {
			complete = is
			follow.complete(is)
		}
		waited := time.Since(since)
		held := s.held.Load()
		has := held && complete && waited >= least && s.has(follow.backup)
		if held && (has || waited >= readyAtMost) {
			s.held.Store(false)
			if !has {
				s.log.Warn("connections of peers are not complete", "waited", readyAtMost)
			}
			if follow.hold(false); !ready {
				ready = true
				follow.ready()
			}
		}
		if n%int(time.Second/lookEvery) == 0 {
			s.logPeers()
			s.logRefused()
		}
	}
}

// has reports whether the connections are here that this director needs to take a role: a peer has sent its table, or
// there is no other master whose connections it could lack. In the mode IPVS no peer sends its table on demand.
func (s *peerSync) has(backup func() bool) bool {
	return s.mode == "ipvs" || !backup() ||
		slices.ContainsFunc(s.Sync.Status().Peers, func(p connsync.PeerStatus) bool { return p.Complete })
}

// newPeersMost is the number of new peers that the log has in a minute: in the mode IPVS anyone can seem to be one.
const newPeersMost = 10

// logPeers logs the peers that have been heard, or are silent, since its last call. A kernel director without traffic
// is silent.
func (s *peerSync) logPeers() {
	peers := s.Sync.Status().Peers
	for _, p := range peers {
		was, known := s.alive[p.Addr]
		if known && (was == p.Alive || s.mode == "ipvs") {
			continue
		}
		s.alive[p.Addr] = p.Alive
		switch {
		case !known && !s.mayLog():
		case p.Alive:
			s.log.Info("sync peer heard", "peer", p.Addr)
		default:
			s.log.Warn("sync peer silent", "peer", p.Addr)
		}
	}
	maps.DeleteFunc(s.alive, func(a netip.Addr, _ bool) bool {
		return !slices.ContainsFunc(peers, func(p connsync.PeerStatus) bool { return p.Addr == a })
	})
}

// lasting are the faults of datagrams that another configuration makes, or a forger. Single datagrams have other faults
// at each start of a director.
var lasting = []connsync.Fault{connsync.BadHeader, connsync.OldVersion, connsync.OtherID, connsync.Stranger,
	connsync.Forged}

// logRefused logs that datagrams are refused: at first, then once a minute while they come. A line has the sender of
// the last one: anyone can send from many addresses.
func (s *peerSync) logRefused() {
	now, st := time.Now(), s.Sync.Status()
	var n uint64
	for _, f := range lasting {
		n += st.Refused[f.String()]
	}
	if n == s.refused || !s.warned.IsZero() && now.Sub(s.warned) < time.Minute {
		return
	}
	senders := slices.DeleteFunc(st.Senders, func(r connsync.Refused) bool {
		return !slices.Contains(lasting, r.Fault)
	})
	if len(senders) == 0 {
		return
	}
	last := slices.MinFunc(senders, func(a, b connsync.Refused) int { return cmp.Compare(a.Age, b.Age) })
	s.log.Warn("sync datagrams are refused: "+s.remedy(last.Fault), "peer", last.Addr, "refused", last.Fault,
		"datagrams", n-s.refused)
	s.warned, s.refused = now, n
}

// mayLog counts a new peer, and reports whether the log has it.
func (s *peerSync) mayLog() bool {
	if now := time.Now(); now.Sub(s.minute) >= time.Minute {
		s.minute, s.heard = now, 0
	}
	s.heard++
	return s.heard <= newPeersMost
}

// tableAtMost is the longest time for which a standby waits for its table to be sent.
const tableAtMost = 10 * time.Second

// giveTable sends half-open connections to the peers before they take the roles, and every change in the next seconds;
// with whole the whole table, too. What takes longer than tableAtMost goes on behind it. It returns at once if no peer
// is heard.
func (s *peerSync) giveTable(whole bool) {
	if s.Sync == nil {
		return
	}
	sent := s.Switch()
	if !slices.ContainsFunc(s.Sync.Status().Peers, func(p connsync.PeerStatus) bool { return p.Alive }) {
		return
	}
	if whole {
		sent = s.SendTable(true)
	}
	select {
	case <-sent:
	case <-time.After(tableAtMost):
		s.log.Warn("the table is not sent yet, and the roles are given up", "waited", tableAtMost)
	}
}

// switched is called when a peer has got a role of this director.
func (s *peerSync) switched() {
	if s.Sync != nil {
		s.Switch()
	}
}

// close closes the sockets, also without run.
func (s *peerSync) close() error {
	if s.Sync == nil {
		return nil
	}
	return s.Close()
}

// status returns the state for the control socket, nil without [sync].
func (s *peerSync) status() *api.Sync {
	if s.Sync == nil {
		return nil
	}
	st := s.Sync.Status()
	out := &api.Sync{Mode: s.mode, Ready: !s.held.Load(), Sending: st.Sending, Sent: syncTraffic(st.Sent),
		Received: syncTraffic(st.Received), Lost: st.Lost, Resent: st.Resent, ChangesLost: st.ChangesLost,
		Inexpressible: st.Inexpressible, SendErrors: st.SendErrors, Error: st.LastError,
		ErrorAge: st.ErrorAge.Seconds(), Refused: st.Refused}
	for _, r := range st.Senders {
		out.Senders = append(out.Senders, api.SyncSender{Address: r.Addr.String(), Reason: r.Fault.String(), Count: r.N,
			Last: r.Age.Seconds(), Fix: s.remedy(r.Fault)})
	}
	for _, a := range s.peers {
		if !slices.ContainsFunc(st.Peers, func(p connsync.PeerStatus) bool { return p.Addr == a }) {
			out.Unheard = append(out.Unheard, a.String())
		}
	}
	if len(s.peers)+len(st.Peers) == 0 {
		out.Unheard = []string{s.group.String()}
	}
	for _, p := range st.Peers {
		peer := api.SyncPeer{Address: p.Addr.String(), State: "silent", Heard: p.Heard.Seconds(),
			Received: syncTraffic(p.Received), Lost: p.Lost, Recovered: p.Recovered}
		if p.Alive {
			peer.State = "alive"
		}
		if p.Complete {
			age := p.Age.Seconds()
			peer.Bulk = &age
		}
		if p.Given {
			age := p.GivenAge.Seconds()
			peer.Given = &age
		}
		out.Peers = append(out.Peers, peer)
	}
	return out
}

func syncTraffic(t connsync.Traffic) api.SyncTraffic {
	return api.SyncTraffic{Datagrams: t.Datagrams, Records: t.Records, Bytes: t.Bytes}
}

// remedy says what to do about datagrams that are refused.
func (s *peerSync) remedy(f connsync.Fault) string {
	switch f {
	case connsync.BadHeader:
		return "set the same mode in [sync] of both directors"
	case connsync.OldVersion:
		return "at the kernel director: sysctl -w net.ipv4.vs.sync_version=1"
	case connsync.OtherID:
		return "set the same id in [sync] of both directors"
	case connsync.Stranger:
		return "add the sender to peers in [sync], or look for it"
	case connsync.Forged:
		return "copy the file key of [sync] to both directors, and restart the changed one; or look for the sender"
	case connsync.Replayed:
		return "a few are usual; if they are many, look for a sender that repeats old datagrams"
	case connsync.Unverified:
		return "usual after a start: its table follows"
	}
	return "look for a faulty sender"
}
