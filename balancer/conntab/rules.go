package conntab

// rules is a Config in the form that lookups need. It is immutable.
type rules struct {
	Config
	times       timeouts
	tcp         *perDirection[tcpTable]
	checksDests bool // removed or quiescent destinations have an effect on their connections
}

// newRules makes the rules of cfg for a table of at most maximum connections.
func newRules(cfg Config, maximum int) *rules {
	r := &rules{Config: cfg, times: cfg.Timeouts.ticks(), tcp: &tcpStates, checksDests: cfg.ExpireNodest ||
		cfg.DropRemoved}
	r.Max = maximum
	if cfg.SecureTCP {
		r.tcp = &tcpStatesSecure
	}
	if cfg.HalfOpenMax > 0 {
		r.HalfOpenMax = max(cfg.HalfOpenMax, minHalfOpen*shards(maximum))
	}
	return r
}

// View is a table under the Config of one moment. Later changes leave it as it is, so that all steps of a decision
// follow one Config.
type View struct {
	*Table
	rules *rules
}

// View returns t under the Config in force.
func (t *Table) View() View { return View{t, t.rules.Load()} }

// Follows reports whether v is a view under cfg, whatever its Max is.
func (v View) Follows(cfg Config) bool { return v.rules.Config == newRules(cfg, v.Table.Max()).Config }

// Configure puts cfg in force, except Max, and returns the view under it. As with `ipvsadm --set`, a connection gets
// its new timeout with its next packet. A smaller HalfOpenMax evicts the oldest half-open connections at once.
// Connections that became half-open while it was 0 are not evicted later; they end by their timeout.
func (t *Table) Configure(cfg Config) View {
	t.setup.Lock()
	defer t.setup.Unlock()
	was, is := t.rules.Load(), newRules(cfg, t.Max())
	t.rules.Store(is)
	if was.HalfOpenMax != is.HalfOpenMax {
		for _, f := range t.families() {
			f.bound(is.HalfOpenMax)
		}
	}
	return View{t, is}
}

// bound gives each shard a queue for its part of half, the bound of unassured entries. The newest queued entries stay
// queued; the others are evicted. With 0, no entry is queued or evicted.
func (s *store[A]) bound(half int) {
	n := half / len(s.shards)
	hashes := make([]uint32, n*len(s.shards))
	for i := range s.shards {
		sh, next := &s.shards[i], queue{hashes: hashes[i*n : (i+1)*n : (i+1)*n]}
		sh.mu.Lock()
		for n > 0 && sh.unassured.used > n {
			s.evict(sh)
		}
		for n > 0 && sh.unassured.used > 0 {
			next.push(uint64(sh.unassured.pop()) << 32)
		}
		sh.unassured = next
		sh.mu.Unlock()
	}
}
