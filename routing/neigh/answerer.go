package neigh

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Answerer answers ARP requests and neighbour solicitations for addresses, at once, and announces the addresses. Set,
// Status and Run may be called from any goroutines.
type Answerer struct {
	log    *slog.Logger
	arp    link
	nd     link
	groups membership
	table  atomic.Pointer[table] // that the receivers use
	counts counts

	mu        sync.Mutex
	closed    bool
	due       map[place]announcement
	claims    map[place]*claim
	contested map[place]*contest // of the elected addresses
	wake      chan struct{}      // due has changed
}

// link sends and receives the packets of one protocol.
type link interface {
	receive() (received, []byte, error)
	send(index int, to MAC, b []byte) error
	close() error
}

// membership is the multicast groups whose packets come in.
type membership interface {
	set(want map[place]bool, anew func(index int) bool) error
	close() error
}

// Counts are the events since the start.
type Counts struct {
	Answers       uint64 // ARP replies and solicited advertisements
	Announcements uint64 // gratuitous ARP requests and unsolicited advertisements
	Conflicts     uint64 // packets in which another host uses one of the addresses
	Failed        uint64 // packets that the kernel refused to send
}

type counts struct{ answers, announcements, conflicts, failed atomic.Uint64 }

// Open opens the sockets for all devices, present and future. The Answerer has no addresses yet. Open needs
// CAP_NET_RAW.
func Open(log *slog.Logger) (*Answerer, error) {
	a := newAnswerer(log)
	arp, err := openLink(unix.ETH_P_ARP)
	if err != nil {
		return nil, err
	}
	a.arp = arp
	nd, err := openLink(unix.ETH_P_IPV6)
	if err != nil {
		return nil, errors.Join(err, a.Close())
	}
	a.nd = nd
	groups, err := openGroups()
	if err != nil {
		return nil, errors.Join(err, a.Close())
	}
	a.groups = groups
	return a, nil
}

// newAnswerer returns an Answerer without links and groups.
func newAnswerer(log *slog.Logger) *Answerer {
	a := &Answerer{log: log, due: map[place]announcement{}, claims: map[place]*claim{},
		contested: map[place]*contest{}, wake: make(chan struct{}, 1)}
	a.table.Store(newTable(nil))
	return a
}

// Set replaces the devices and addresses. It announces each address that is new on its device, and all addresses of a
// device that has another MAC address or has lost its link in between. The last call counts. After Close, Set does
// nothing.
func (a *Answerer) Set(devices []Device) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return
	}
	was, is := a.table.Load(), newTable(devices)
	renewed := func(index int) bool {
		before, after := was.devices[index], is.devices[index]
		return before == nil || after == nil || before.MAC != after.MAC || before.Losses != after.Losses ||
			before.Name != after.Name
	}
	// The filter comes last when it gets wider: before that, packets would find the old table.
	a.table.Store(is)
	if err := errors.Join(a.filter(is), a.groups.set(is.solicitedNodes(), renewed)); err != nil {
		a.log.Error("cannot answer all neighbours' requests for VIPs", "error", err)
	}
	for index, d := range is.devices {
		for _, addr := range d.Addrs {
			p := place{index, addr}
			if renewed(index) || !was.has(p) {
				a.due[p] = announcement{}
			}
			if d.Elected && a.contested[p] == nil {
				a.contested[p] = &contest{since: time.Now()}
			}
		}
	}
	for p := range a.claims {
		if !is.has(p) {
			delete(a.claims, p)
		}
	}
	for p := range a.contested {
		if !is.has(p) || !is.devices[p.index].Elected {
			delete(a.contested, p)
		}
	}
	signal(a.wake)
}

// filter makes the sockets receive only packets about the addresses of t.
func (a *Answerer) filter(t *table) error {
	var errs []error
	if s, ok := a.arp.(*linkSocket); ok {
		errs = append(errs, s.filter(t.addrs(false), arpFilter))
	}
	if s, ok := a.nd.(*linkSocket); ok {
		errs = append(errs, s.filter(t.addrs(true), ndFilter))
	}
	return errors.Join(errs...)
}

// Run answers and announces until ctx is cancelled. It closes a then, and returns nil. It may be called once.
func (a *Answerer) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var all sync.WaitGroup
	var failed [2]error
	for i, s := range []link{a.arp, a.nd} {
		all.Go(func() {
			defer cancel()
			failed[i] = a.answer(s)
		})
	}
	all.Go(func() { a.announce(ctx) })
	if g, ok := a.groups.(*portGroups); ok {
		all.Go(func() { g.answer(ctx) })
	}
	<-ctx.Done()
	err := a.Close()
	all.Wait()
	return errors.Join(append(failed[:], err)...)
}

// answer answers the packets of one socket until it is closed.
func (a *Answerer) answer(s link) error {
	var p pace
	for {
		r, b, err := s.receive()
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("neighbours' requests: %w", err)
		}
		t := a.table.Load()
		v := t.nd
		if s == a.arp {
			v = t.arp
		}
		a.act(s, t, r, v(r, b))
		p.next()
	}
}

// act does what the verdict on a frame says.
func (a *Answerer) act(s link, t *table, r received, v verdict) {
	if v.claimed.IsValid() {
		a.conflict(t, place{r.index, v.claimed}, v.by)
	}
	if v.answer == nil {
		return
	}
	if s.send(r.index, v.to, v.answer) != nil {
		a.counts.failed.Add(1)
		return
	}
	a.counts.answers.Add(1)
}

// pace bounds the packets about the addresses that are processed, so that a flood leaves the machine's time to other
// work. Beyond the bound the kernel drops packets from a socket's queue, and a port's frames are refused.
type pace struct {
	begin time.Time
	n     int
}

const (
	paceTick    = 10 * time.Millisecond
	pacePackets = 200 // a tick: 20,000 a second
)

// next is called after each packet. It waits if there were too many.
func (p *pace) next() {
	if p.n++; p.n < pacePackets {
		return
	}
	p.n = 0
	if d := time.Until(p.begin.Add(paceTick)); d > 0 {
		time.Sleep(d)
	}
	p.begin = time.Now()
}

// within is next for a goroutine that must not wait: it reports whether the packet may be processed.
func (p *pace) within(now time.Time) bool {
	if now.Sub(p.begin) >= paceTick {
		p.begin, p.n = now, 0
	}
	p.n++
	return p.n <= pacePackets
}

// Counts returns the counts so far.
func (a *Answerer) Counts() Counts {
	return Counts{a.counts.answers.Load(), a.counts.announcements.Load(), a.counts.conflicts.Load(),
		a.counts.failed.Load()}
}

// Close ends the answers. Groups are left, and no state stays in the kernel. A second call does nothing.
func (a *Answerer) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	var errs []error
	for _, s := range []link{a.arp, a.nd} {
		if s != nil {
			errs = append(errs, s.close())
		}
	}
	if a.groups != nil {
		errs = append(errs, a.groups.close())
	}
	return errors.Join(errs...)
}

func signal(wake chan<- struct{}) {
	select {
	case wake <- struct{}{}:
	default:
	}
}
