package connsync

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/balancer/envelope"
)

// Config is the settings of a Sync.
type Config struct {
	// Key is the key of the mode VSTUN, of at least MinKey bytes. Nil is the mode IPVS.
	Key []byte
	// ID is IPVS's syncid: with 0 a director takes the datagrams of all, with another one those with the same.
	ID uint8
	// Size is the largest datagram, without IP and UDP headers, in bytes.
	Size int
	// Peers are the directors whose datagrams the mode IPVS takes; none: of all.
	Peers []netip.Addr
	// BulkRate is the number of records a second that a bulk transfer sends; 0: BulkRate.
	BulkRate int
}

// BulkRate is the default of Config.BulkRate: a million connections in 17 s, with 19 Mbit/s.
const BulkRate = 60_000

// MaxSize is the largest Config.Size: a kernel director drops longer datagrams (ip_vs_sync.c, set_sync_mesg_maxlen).
const MaxSize = 1472

// A Link carries datagrams between this director and its peers.
type Link interface {
	// Send sends b to all peers. It does not keep b.
	Send(b []byte) error
	// Receive reads a datagram into b. After Close it returns net.ErrClosed; other errors are temporary.
	Receive(b []byte) (n int, from netip.Addr, err error)
	Close() error
}

// Periods.
const (
	flushEvery = 100 * time.Millisecond // a change waits no longer
	bulkEvery  = 10 * time.Millisecond  // between the parts of a bulk transfer
	// a peer that has not been heard for aliveFor is silent, one for forgetAfter is forgotten
	aliveFor    = 3 * conntab.PerSecond
	forgetAfter = 600 * conntab.PerSecond
	helloEvery  = conntab.PerSecond
)

// Sync keeps the connection table in step with those of the peers. All its methods may be called by any number of
// goroutines. Workers never wait for it.
type Sync struct {
	cfg      Config
	link     Link
	table    *conntab.Table
	balancer *balancer.Balancer
	now      func() conntab.Ticks
	feed     *conntab.Feed
	ready    chan struct{}
	wake     chan struct{} // a bulk transfer begins
	closing  sync.Once
	closed   error // of the link's Close

	mu      sync.Mutex       // guards the fields below
	sealer  *envelope.Sealer // nil: mode IPVS
	session uint64
	out     outgoing
	changes changes
	refresh refresh
	bulk    *bulk // nil: none is going on
	// owes: changes have been lost, or a peer in the mode IPVS may miss the table. It is sent once, however often that
	// happens meanwhile. rested is the time since the last bulk transfer, which took that long.
	owes         bool
	rested, took conntab.Ticks
	// switching: packets of this director's connections may come to a peer, since switched
	switching  bool
	switched   conntab.Ticks
	peers      map[peerID]*peer
	senders    map[netip.Addr]sender    // of refused datagrams
	met        uint64                   // number of peers that were met
	nonces     [2]uint64                // of the last challenges, the newest first, which was made at challenged
	answered   map[uint64]conntab.Ticks // when sessions that are no peers have got an answer
	challenged conntab.Ticks
	known      conntab.Ticks // when a peer that is heard had this session, or none was heard
	hello      conntab.Ticks
	asked      bool // an early hello is due
	hellos     int  // that have been sent, in the mode IPVS

	begun   conntab.Ticks // of Run
	latest  conntab.Ticks // see tick
	isReady bool
	counts  counts
}

// New makes a Sync of the table, whose services are b's, over a link. clock is the table's clock. The Sync owns the
// link. Changes of the table are noted from here on.
func New(cfg Config, link Link, table *conntab.Table, b *balancer.Balancer, clock func() conntab.Ticks) *Sync {
	if cfg.BulkRate == 0 {
		cfg.BulkRate = BulkRate
	}
	cfg.Size = min(cfg.Size, MaxSize)
	s := &Sync{cfg: cfg, link: link, table: table, balancer: b, now: clock, ready: make(chan struct{}),
		wake: make(chan struct{}, 1), peers: map[peerID]*peer{}, senders: map[netip.Addr]sender{},
		session:  envelope.Random(),
		answered: map[uint64]conntab.Ticks{},
		feed:     table.OwnChanges(feedSize, conntab.Assured, conntab.Moved, conntab.Repeated)}
	s.start(clock())
	if cfg.Key != nil {
		s.sealer = envelope.New(cfg.Key, protocol)
	}
	s.changes.init()
	s.refresh.walker = table.NewWalker()
	s.refresh.walker.Own = true
	s.out.init(s)
	return s
}

// start begins the time in which peers can be heard.
func (s *Sync) start(now conntab.Ticks) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begun, s.latest, s.known = now, now, now
	s.hello, s.challenged, s.rested = now-helloEvery, now-helloEvery, now-restLeast
}

// tick returns the time for what happens under mu, of which now was read before mu was locked. Another goroutine may
// have had mu at a later time: a time of it is never after the one of this.
func (s *Sync) tick(now conntab.Ticks) conntab.Ticks {
	if int32(now-s.latest) > 0 {
		s.latest = now
	}
	return s.latest
}

// Run sends and receives until ctx is cancelled, and closes the link.
func (s *Sync) Run(ctx context.Context) error {
	s.start(s.now())
	received := make(chan struct{})
	go func() {
		defer close(received)
		s.receive()
	}()
	if s.sealer == nil {
		s.SendTable(false) // there may be kept connections
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	last := s.now()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-s.wake:
			timer.Reset(0)
		case <-timer.C:
			now := s.now()
			if now == last && s.sendMore(now) {
				timer.Reset(partEvery)
				break
			}
			soon := s.work(now, now-last)
			last = now
			switch {
			case s.isSending():
				timer.Reset(partEvery)
			case soon:
				timer.Reset(bulkEvery)
			default:
				timer.Reset(flushEvery)
			}
		}
	}
	s.work(s.now(), s.now()-last) // the last changes
	err := s.Close()
	<-received
	return err
}

// isSending reports whether a bulk transfer is going on.
func (s *Sync) isSending() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bulk != nil
}

// sendMore sends a further part of a bulk transfer within a tick. It reports whether one is going on.
func (s *Sync) sendMore(now conntab.Ticks) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bulk == nil {
		return false
	}
	now = s.tick(now)
	s.sendRefresh(now, 0, s.share(0))
	s.sendPart(now, s.share(0))
	return true
}

// switchFor is the time after Switch in which packets of a connection may come here and to a peer.
const switchFor = 3 * conntab.PerSecond

// Switch is called when the packets of this director's connections begin to come to a peer. For three seconds, changes
// are sent within 10 ms, and in the mode VSTUN half-open connections are sent, too: the peer may get the next packet of
// each. The channel is closed when those that exist are sent.
func (s *Sync) Switch() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.switching, s.switched = true, s.tick(s.now())
	if s.sealer == nil {
		s.wakeUp()
		done := make(chan struct{})
		close(done)
		return done
	}
	s.feed.Include(conntab.Opened, true)
	return s.begin(halfOpens).done
}

// endSwitch ends what Switch has begun, when it is due.
func (s *Sync) endSwitch(now conntab.Ticks) {
	if s.switching && now-s.switched >= switchFor {
		s.switching = false
		s.feed.Include(conntab.Opened, false)
	}
}

// Close closes the link and ends Run. It may be called several times.
func (s *Sync) Close() error {
	s.closing.Do(func() {
		s.feed.Close()
		s.closed = s.link.Close()
	})
	return s.closed
}

// work does what is due, and reports whether it is due again soon: during a bulk transfer, after Switch, and while
// datagrams are missing. elapsed is the time since the last call.
func (s *Sync) work(now, elapsed conntab.Ticks) (soon bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now = s.tick(now)
	s.endSwitch(now)
	s.sendChanges(now)
	s.sendRefresh(now, elapsed, s.share(elapsed))
	s.beginOwed(now)
	s.sendBulk(now, elapsed)
	s.forgetPeers(now)
	missing := s.control(now, elapsed)
	s.out.flush()
	if !s.isReady && !s.incomplete(now) {
		s.isReady = true
		close(s.ready)
	}
	return s.bulk != nil || s.switching || missing
}

// Ready returns a channel that is closed when the table has the connections of all peers, or no peer has been heard in
// the first three seconds of Run. In the mode IPVS, which has no bulk transfer on demand, the three seconds are all.
func (s *Sync) Ready() <-chan struct{} { return s.ready }

// Complete reports whether the table has the connections of all peers that have been heard within three seconds. It
// reports false again when datagrams of a peer are lost, until that has sent its whole table: 2 s after the end of an
// outage at the latest.
func (s *Sync) Complete() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.incomplete(s.now())
}

// incomplete reports whether connections of a peer are still missing.
func (s *Sync) incomplete(now conntab.Ticks) bool {
	if now-s.begun < aliveFor && !slices.ContainsFunc(s.list(), func(p *peer) bool { return p.hasSent }) {
		return true
	}
	return slices.ContainsFunc(s.list(), func(p *peer) bool { return p.wanted && p.alive(now) })
}

// receive takes datagrams until the link is closed.
func (s *Sync) receive() {
	b := make([]byte, 1<<16)
	for {
		n, from, err := s.link.Receive(b)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			s.mu.Lock()
			s.counts.failed(err, s.tick(s.now()))
			s.mu.Unlock()
			time.Sleep(bulkEvery) // the link's error may last
		default:
			s.take(b[:n], from, s.now())
		}
	}
}

// take processes a datagram.
func (s *Sync) take(b []byte, from netip.Addr, now conntab.Ticks) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now = s.tick(now)
	s.counts.received.Datagrams++
	s.counts.received.Bytes += uint64(len(b))
	if s.sealer == nil {
		s.takeKernel(b, from, now)
	} else {
		s.takeEnvelope(b, from, now)
	}
}
