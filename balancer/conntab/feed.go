package conntab

import "sync/atomic"

// ChangeKind is the kind of a connection's change.
type ChangeKind uint8

const (
	Opened   ChangeKind = iota // a connection or template has been made, or its client begins a new one with a SYN
	Assured                    // the client of a half-open TCP connection has answered
	Moved                      // its state has changed otherwise
	Ended                      // it has been removed: expired, evicted, replaced or forgotten
	Repeated                   // its client has sent the third datagram; UDP only
	Busy                       // its client has sent some more packets, and the fast path may have it
	Left                       // it has left the fast path
)

// repeatedAt is the number of datagrams for Repeated: sysctl_sync_threshold in Linux ip_vs.h.
const repeatedAt = 3

// Change is an event of one connection. Conn is the connection after the event, with Ended the connection before it.
type Change struct {
	Kind ChangeKind
	Conn Conn
}

// Feed has the changes of a table since they were last read, in order for each connection. A worker that makes a change
// never waits for the reader: when a shard's part of the feed is full, its oldest change is lost, and counted. One
// goroutine uses a Feed.
type Feed struct {
	table *Table
	size  int           // changes a shard
	own   bool          // see OwnChanges
	kinds atomic.Uint32 // bits of the kinds that it has
	lost  atomic.Uint64
	at    [2]cursor // of each family
	turn  int       // family that is read first
}

// Changes starts a feed that holds at least n changes of these kinds. Close ends it.
func (t *Table) Changes(n int, kinds ...ChangeKind) *Feed {
	f := &Feed{}
	for _, k := range kinds {
		f.Include(k, true)
	}
	return t.attach(f, n)
}

// OwnChanges is Changes for this director's own changes. It leaves out connections that another director has
// reported, as long as no packet of them has come. Changes that it leaves out take no place: a flood of half-open
// connections does not displace Assured and Moved. Soon after another change of a connection, a change takes the place
// of that: a client that makes many does not displace those of others. Of the two kinds, Assured stays.
func (t *Table) OwnChanges(n int, kinds ...ChangeKind) *Feed {
	f := &Feed{own: true}
	for _, k := range kinds {
		f.Include(k, true)
	}
	return t.attach(f, n)
}

// Include adds changes of this kind to the feed from now on, or leaves them out.
func (f *Feed) Include(kind ChangeKind, is bool) {
	if is {
		f.kinds.Or(1 << kind)
	} else {
		f.kinds.And(^uint32(1 << kind))
	}
}

// attach starts the feed f.
func (t *Table) attach(f *Feed, n int) *Feed {
	t.setup.Lock()
	defer t.setup.Unlock()
	f.table, f.size = t, max(1, (n+shards(t.Max())-1)/shards(t.Max()))
	t.feeds = append(t.feeds[:len(t.feeds):len(t.feeds)], f)
	for _, family := range t.families() {
		family.attach(f)
	}
	return f
}

// Close ends the feed. Changes that have not been read are lost.
func (f *Feed) Close() {
	t := f.table
	t.setup.Lock()
	defer t.setup.Unlock()
	var rest []*Feed
	for _, other := range t.feeds {
		if other != f {
			rest = append(rest, other)
		}
	}
	t.feeds = rest
	for _, family := range t.families() {
		family.detach(f)
	}
}

// Lost is the number of changes that were lost because they were not read in time.
func (f *Feed) Lost() uint64 { return f.lost.Load() }

// Next fills into with changes that have not been read yet, and returns their number, 0 when there are none. It takes
// each shard's lock once, for a short time.
func (f *Feed) Next(now Ticks, into []Change) (n int) {
	families := f.table.families()
	for i := range families {
		at := (f.turn + i) % len(families)
		n += families[at].changes(f, &f.at[at], now, into[n:])
	}
	f.turn++
	return n
}

// ring is a shard's part of a feed: its newest changes.
type ring[A address] struct {
	feed       *Feed
	kinds      []ChangeKind
	entries    []entry[A]
	head, used int // of the oldest
}

// note adds a change of e to the shard's feeds. The caller must hold the shard's lock.
func (s *shard[A]) note(kind ChangeKind, e *entry[A]) {
	if len(s.feeds) == 0 || e.state == Pinned {
		return
	}
	for _, r := range s.feeds {
		if r.feed.kinds.Load()&(1<<kind) != 0 && !(r.feed.own && e.flags&reported != 0) {
			r.push(kind, e)
		}
	}
}

// mergeWithin is the number of newest changes of a shard among which an own feed has one of each connection.
const mergeWithin = 8

// merge replaces a change of e that is among the newest, and reports whether there is one.
func (r *ring[A]) merge(kind ChangeKind, e *entry[A]) bool {
	for n := r.used - 1; n >= max(0, r.used-mergeWithin); n-- {
		i := (r.head + n) % len(r.kinds)
		if o := &r.entries[i]; o.sport == e.sport && o.src == e.src && o.dport == e.dport && o.dst == e.dst &&
			o.proto == e.proto && r.kinds[i] != Ended {
			if *o = *e; r.kinds[i] != Assured {
				r.kinds[i] = kind
			}
			return true
		}
	}
	return false
}

func (r *ring[A]) push(kind ChangeKind, e *entry[A]) {
	if r.feed.own && kind != Ended && r.merge(kind, e) {
		return
	}
	if r.used == len(r.kinds) {
		r.head = (r.head + 1) % len(r.kinds)
		r.used--
		r.feed.lost.Add(1)
	}
	i := (r.head + r.used) % len(r.kinds)
	r.kinds[i], r.entries[i] = kind, *e
	r.used++
}

func (s *store[A]) attach(f *Feed) {
	for i := range s.shards {
		sh := &s.shards[i]
		r := &ring[A]{feed: f, kinds: make([]ChangeKind, f.size), entries: make([]entry[A], f.size)}
		sh.mu.Lock()
		sh.feeds = append(sh.feeds, r)
		sh.mu.Unlock()
	}
}

func (s *store[A]) detach(f *Feed) {
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		var rest []*ring[A]
		for _, r := range sh.feeds {
			if r.feed != f {
				rest = append(rest, r)
			}
		}
		sh.feeds = rest
		sh.mu.Unlock()
	}
}

// changes moves changes of f to into, one shard after the other. It begins where the last call ended.
func (s *store[A]) changes(f *Feed, at *cursor, now Ticks, into []Change) (n int) {
	for range s.shards {
		if n == len(into) {
			return n
		}
		sh := &s.shards[at.shard]
		sh.mu.Lock()
		for _, r := range sh.feeds {
			if r.feed != f {
				continue
			}
			for ; r.used > 0 && n < len(into); n++ {
				into[n] = Change{r.kinds[r.head], r.entries[r.head].conn(now)}
				r.head = (r.head + 1) % len(r.kinds)
				r.used--
			}
		}
		sh.mu.Unlock()
		if n < len(into) {
			at.shard = (at.shard + 1) % len(s.shards)
		}
	}
	return n
}
