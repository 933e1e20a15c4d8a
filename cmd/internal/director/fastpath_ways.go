package director

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"vstun/balancer/fastpath"
	"vstun/balancer/method"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/words"
	"vstun/routing/query"
)

// waysRetry is the pause after a question about ways that the kernel has not answered.
const waysRetry = time.Second

// askAgain lets followWays ask once more.
func (f *fastPath) askAgain() {
	select {
	case f.again <- struct{}{}:
	default:
	}
}

// followWays asks the kernel for the ways to realservers at once when its routes have changed: packets in the fast path
// do not look them up. The next look is behind a pause of pathsShare times the duration of this one. IPsec policies,
// of which the kernel reports no change here, come in force with a change of routes, or every pathsEvery.
func (f *fastPath) followWays(ctx context.Context) error {
	var failed error
	tick := time.NewTicker(pathsEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-f.routes.Changed():
		case <-f.again:
		}
		begin := time.Now()
		f.mu.Lock()
		f.followIPsec()
		to := slices.Collect(maps.Keys(f.paths))
		f.mu.Unlock()
		paths, err := f.ask(to)
		marks, failedMarks := f.marks(paths)
		f.mu.Lock()
		f.setWays(paths, marks, failedMarks)
		f.mu.Unlock()
		err = errors.Join(err, failedMarks)
		pause := min(pathsShare*time.Since(begin), pathsEvery)
		if err != nil {
			f.askAgain()
			pause = waysRetry
		}
		if err != nil && failed == nil {
			f.log.Error("cannot ask the kernel for the ways to realservers: there is no fast path until it answers",
				"error", err)
		}
		failed = err
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// setWays puts ways in force: the paths out of this host on which no packet can have a mark that leads it another way.
// Nftables may give it one on the way from the director's device or a socket, which the program passes by. marks and
// err are the result of f.marks: the kernel may let it wait, and is asked without f.mu. After an error there is no way.
// f.mu is held.
func (f *fastPath) setWays(paths map[netip.Addr]query.Path, marks query.Marks, err error) {
	if err != nil {
		f.cache.SetWays(nil)
		return
	}
	f.marked = marks
	was := f.logged
	switch f.logged = f.markReason(); {
	case f.logged == was:
	case f.logged == "":
		f.log.Info("no mark leads packets of realservers another way any more: they take the fast path")
	default:
		f.log.Info("some packets do not take the fast path", "reason", f.logged)
	}
	all := make(fastpath.Ways, len(paths))
	for a, p := range paths {
		if !p.Local && p.Link != "" && !marks.Other[a] {
			all[a] = fastpath.Way{Device: p.Index, NextHop: cmp.Or(p.Gateway, a), Source: p.Source, MTU: p.MTU,
				NoNAT: marks.Rule(a) != ""} // the way of its replies may depend on a mark, too
		}
	}
	f.cache.SetWays(all)
}

// markReason says which packets stay out because of marks. f.mu is held.
func (f *fastPath) markReason() string {
	of := map[netip.Addr]bool{}
	for a, forward := range f.servers { // the paths have others, too, such as those behind default routes
		if f.marked.Other[a] || forward == method.NAT && f.marked.Rule(a) != "" {
			of[a] = true
		}
	}
	if len(of) == 0 {
		return ""
	}
	rules := map[string]bool{} // of these realservers' families
	for a := range of {
		rules[f.marked.Rule(a)] = true
	}
	return fmt.Sprintf("a mark may lead packets of %s another way (%s)", words.Count(len(of), "realserver"),
		strings.Join(slices.Sorted(maps.Keys(rules)), ", "))
}

// routed returns the addresses of cfg's realservers and sorry servers to which packets take routes: by tun, or by nat,
// by which more of them stay out.
func routed(cfg *config.Director) map[netip.Addr]method.Kind {
	all := map[netip.Addr]method.Kind{}
	add := func(r *config.RealserverRef) {
		if r.Forward != method.DR && all[r.Address] != method.NAT {
			all[r.Address] = r.Forward
		}
	}
	for i := range cfg.Services {
		s := &cfg.Services[i]
		for j := range s.Realservers {
			add(&s.Realservers[j])
		}
		if s.HasSorry() {
			add(&s.Sorry)
		}
	}
	return all
}
