package tunnel

import (
	"context"
	"slices"
	"time"
)

// pathsEvery is how often the paths to the peers are looked up when nothing reports a change; again is the pause after
// a look.
const (
	pathsEvery = 10 * time.Second
	again      = time.Second
)

// follow puts changed paths in force, and opens devices anew that another program has removed, until ctx is cancelled.
func (s *Set) follow(ctx context.Context) error {
	ticker := time.NewTicker(pathsEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-s.kick:
		case <-s.network.Changed():
		}
		s.refresh()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(again):
		}
	}
}

// refresh is one look of follow.
func (s *Set) refresh() {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := *s.all.Load()
	if s.closed || len(all) == 0 {
		return
	}
	paths := s.paths(s.want)
	var changed []string
	for _, t := range all {
		by, at := paths[t.name], index(s.want, t.name)
		if t.gone.Load() || at < 0 || deviceMTU(&s.want[at], by) != t.setup.Load().mtu ||
			t.remote.Load().MTU != by.mtu || t.remote.Load().Loops != (by.into != "") {
			changed = append(changed, t.name)
		}
		t.see(func(o *observed) { o.path = by })
	}
	if len(changed) == 0 {
		return
	}
	if err := s.apply(s.want, s.shared); err != nil {
		s.o.Log.Error("cannot put new paths of tunnels in force; retrying", "error", err)
		return
	}
	for _, t := range *s.all.Load() {
		if !slices.Contains(changed, t.name) {
			continue
		}
		if into := t.into(); into != "" {
			s.o.Log.Error("the route to the peer of a tunnel leads into a tunnel", "tunnel", t.name, "into", into)
			continue
		}
		s.o.Log.Info("path of a tunnel", "tunnel", t.name, "path_mtu", t.remote.Load().MTU,
			"mtu", t.setup.Load().mtu)
	}
}
