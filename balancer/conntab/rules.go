package conntab

// rules are a Config as packets are treated by it. They don't change: others take their place.
type rules struct {
	Config
	times   timeouts
	tcpNext *tcpTable
	judge   bool // destinations that are gone or quiescent make a difference
}

// newRules makes the rules of cfg for a table of at most maximum connections.
func newRules(cfg Config, maximum int) *rules {
	r := &rules{Config: cfg, times: cfg.Timeouts.ticks(), tcpNext: &tcpNext, judge: cfg.ExpireNodest || cfg.DropRemoved}
	r.Max = maximum
	if cfg.SecureTCP {
		r.tcpNext = &tcpNextSecure
	}
	if cfg.HalfOpenMax > 0 {
		r.HalfOpenMax = max(cfg.HalfOpenMax, minHalfOpen*shards(maximum))
	}
	return r
}

// View is a table under the Config of one moment, which later changes leave as it is: what is decided about a packet in several steps is decided by
// one Config.
type View struct {
	*Table
	rules *rules
}

// View is t under the Config in force.
func (t *Table) View() View { return View{t, t.rules.Load()} }

// Follows reports whether v is a view under cfg, but for its Max.
func (v View) Follows(cfg Config) bool { return v.rules.Config == newRules(cfg, v.Table.Max()).Config }

// Configure puts all of cfg in force but Max, and returns the view under it. As with `ipvsadm --set`, a connection has its new timeout from its next
// packet on. Where HalfOpenMax is less than before, the oldest half-open connections beyond it give way at once; where it was 0, those that are
// there already don't count among the oldest, and end by themselves.
func (t *Table) Configure(cfg Config) View {
	t.setup.Lock()
	defer t.setup.Unlock()
	was, is := t.rules.Load(), newRules(cfg, t.Max())
	t.rules.Store(is)
	if was.HalfOpenMax != is.HalfOpenMax {
		t.four.bound(is.HalfOpenMax)
		if six := t.six.Load(); six != nil {
			six.bound(is.HalfOpenMax)
		}
	}
	return View{t, is}
}

// bound gives each shard a queue for its part of half unproven entries, with the newest of those that it has.
func (s *store[A]) bound(half int) {
	n := half / len(s.shards)
	hashes := make([]uint32, n*len(s.shards))
	for i := range s.shards {
		sh, next := &s.shards[i], queue{hashes: hashes[i*n : (i+1)*n : (i+1)*n]}
		sh.mu.Lock()
		for n > 0 && sh.unproven.used > n {
			s.evict(sh)
		}
		for n > 0 && sh.unproven.used > 0 {
			next.push(uint64(sh.unproven.pop()) << 32)
		}
		sh.unproven = next
		sh.mu.Unlock()
	}
}
