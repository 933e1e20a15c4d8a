package director

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"vstun/balancer/connsync"
	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/routing/query"
)

// peerSync exchanges connections with other directors. The zero value is a director without [sync].
type peerSync struct {
	*connsync.Sync
	log   *slog.Logger
	mode  string
	alive map[netip.Addr]bool // peers that the log has as heard
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
	s.alive = map[netip.Addr]bool{}
	return nil
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

// readyAtMost is the longest time for which a director waits for the connections of its peers.
const readyAtMost = 30 * time.Second

// run exchanges connections until ctx is cancelled. It calls ready once when those of the peers are there.
func (s *peerSync) run(ctx context.Context, ready func()) error {
	if s.Sync == nil {
		<-ctx.Done()
		return nil
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	atMost := time.After(readyAtMost)
	done := s.Ready()
	look := time.NewTicker(time.Second)
	defer look.Stop()
	tell := func() {
		done, atMost = nil, nil
		ready()
	}
	for {
		select {
		case err := <-ended:
			return err
		case <-done:
			tell()
		case <-atMost:
			s.log.Warn("connections of peers are not complete", "waited", readyAtMost)
			tell()
		case <-look.C:
			s.logPeers()
		}
	}
}

// logPeers logs the peers that have been heard, or are silent, since its last call. A kernel director without traffic
// is silent.
func (s *peerSync) logPeers() {
	for _, p := range s.Sync.Status().Peers {
		was, known := s.alive[p.Addr]
		if known && (was == p.Alive || s.mode == "ipvs") {
			continue
		}
		s.alive[p.Addr] = p.Alive
		if p.Alive {
			s.log.Info("sync peer heard", "peer", p.Addr)
		} else {
			s.log.Warn("sync peer silent", "peer", p.Addr)
		}
	}
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
	out := &api.Sync{Mode: s.mode, Ready: st.Ready, Sending: st.Sending, Sent: syncTraffic(st.Sent),
		Received: syncTraffic(st.Received), Lost: st.Lost, Resent: st.Resent, ChangesLost: st.ChangesLost,
		Inexpressible: st.Inexpressible, SendErrors: st.SendErrors, Error: st.LastError, Refused: st.Refused}
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
