package vrrp

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Router drives an Election by sockets and the machine's clock. Its methods may be called from any goroutines. The
// caller calls Run.
type Router struct {
	events  func(Event)
	changed chan struct{} // roles have changed
	wake    chan struct{} // the next deadline has changed
	sockets [2]*rawSocket // IPv4, IPv6; nil: the kernel has no IPv6

	mu       sync.Mutex
	election Election
	groups   [2]membership
	closed   bool
	joinErr  error
}

// Open opens the sockets for all devices, present and future. It needs CAP_NET_RAW; nothing else does. The Router calls
// events for each event, in order; the function must neither wait nor call the Router. It has no instances yet.
func Open(events func(Event)) (*Router, error) {
	r := &Router{events: events, changed: make(chan struct{}, 1), wake: make(chan struct{}, 1),
		groups: [2]membership{{}, {}}}
	for n, ipv6 := range []bool{false, true} {
		s, err := openSocket(ipv6)
		if ipv6 && errors.Is(err, unix.EAFNOSUPPORT) {
			continue
		}
		if err != nil {
			return nil, errors.Join(err, r.Close())
		}
		r.sockets[n] = s
	}
	return r, nil
}

// now returns the time.
func now() Moment {
	var boot unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot) // the clock exists since Linux 2.6.39
	return Moment{Boot: time.Duration(boot.Nano()), Wall: time.Now()}
}

// do calls fn with the election, and does what follows from it.
func (r *Router) do(fn func(e *Election, now Moment)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	fn(&r.election, now())
	r.flush()
}

// flush sends the election's packets and reports its events. The caller holds mu.
func (r *Router) flush() {
	packets, events := r.election.Take()
	for _, p := range packets {
		r.election.sent(now(), p.Instance, r.send(p))
	}
	for _, v := range events {
		r.events(v)
		if v.Kind == RoleChanged {
			signal(r.changed)
		}
	}
	signal(r.wake)
}

func (r *Router) send(p Packet) error {
	s := r.sockets[0]
	if p.Dst.Is6() {
		s = r.sockets[1]
	}
	if s == nil {
		return unix.EAFNOSUPPORT
	}
	return s.send(p)
}

// Set replaces the instances: see Election.Set.
func (r *Router) Set(all []Instance) {
	r.do(func(e *Election, now Moment) {
		e.Set(now, all)
		r.join()
	})
}

// SetDevices replaces the devices of this host.
func (r *Router) SetDevices(all []Device) {
	r.do(func(e *Election, now Moment) {
		e.SetDevices(now, all)
		r.join()
	})
}

// join makes the process a member of the multicast groups on the instances' devices, also for those that send to peers:
// a router that sends to the group by mistake is found. The caller holds mu.
func (r *Router) join() {
	r.joinErr = nil
	for n, ipv6 := range []bool{false, true} {
		want := map[int]int{}
		for _, i := range r.election.all {
			if i.is6() == ipv6 && i.device != nil {
				want[i.device.Index] = i.device.Removals
			}
		}
		r.joinErr = errors.Join(r.joinErr, r.groups[n].set(ipv6, want))
	}
}

// SetTracks replaces what the instances depend on, by their names.
func (r *Router) SetTracks(tracks map[string][]Track) {
	r.do(func(e *Election, now Moment) { e.SetTracks(now, tracks) })
}

// SetHeld holds the instances back, or no longer: see Election.SetHeld.
func (r *Router) SetHeld(held bool) { r.do(func(e *Election, _ Moment) { e.SetHeld(held) }) }

// Standby gives the role up: see Election.Standby.
func (r *Router) Standby() { r.do((*Election).Standby) }

// Activate ends a standby: see Election.Activate.
func (r *Router) Activate() { r.do((*Election).Activate) }

// handOverPoll is how often HandOver looks for the other masters.
const handOverPoll = 5 * time.Millisecond

// HandOver gives the roles up, as Standby does, before the end. It returns when another master is heard in each
// instance that was master, at the latest when the last backup would have taken the role. Until then neighbours still
// send packets here. It reports whether another master has got a role.
func (r *Router) HandOver() bool {
	var masters []string
	var limit, begin time.Duration
	r.do(func(e *Election, now Moment) {
		begin = now.Boot
		for _, i := range e.all {
			if i.role != Master {
				continue
			}
			masters = append(masters, i.Name)
			limit = max(limit, i.handOver())
		}
		e.Standby(now)
	})
	for now().Boot-begin < limit {
		if r.succeeded(masters, begin) {
			return true
		}
		time.Sleep(handOverPoll)
	}
	return false
}

// Stop ends the election: the masters give the role up, and no instance takes part any more.
func (r *Router) Stop() { r.do((*Election).Stop) }

// succeeded reports whether each of these instances has had another master since a time.
func (r *Router) succeeded(names []string, since time.Duration) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, i := range r.election.all {
		if slices.Contains(names, i.Name) && !i.heardMaster(since) {
			return false
		}
	}
	return true
}

// Roles returns the roles of the instances.
func (r *Router) Roles() Roles {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.election.Roles()
}

// Status returns the states of the instances.
func (r *Router) Status() []Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.election.Status(now())
}

// JoinError returns why packets of multicast instances may not come in; nil if they do.
func (r *Router) JoinError() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.joinErr
}

// Unknown returns the number of packets for no instance, and of those that are no packets of the protocol at all.
func (r *Router) Unknown() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.election.unknown
}

// Changed returns a channel that gets a value after a change of a role. A value that is not received yet stands for all
// changes since.
func (r *Router) Changed() <-chan struct{} { return r.changed }

// Run works until ctx is cancelled. Then the masters give up their roles, r is closed, and Run returns nil. It may be
// called once.
func (r *Router) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r.do((*Election).Listen)
	var receivers sync.WaitGroup
	failed := make([]error, len(r.sockets))
	for n, s := range r.sockets {
		if s == nil {
			continue
		}
		receivers.Go(func() {
			defer cancel()
			failed[n] = r.receive(s)
		})
	}
	r.drive(ctx)
	r.Stop()
	err := r.Close()
	receivers.Wait()
	return errors.Join(append(failed, err)...)
}

// drive calls Tick when it is due, until ctx is cancelled.
func (r *Router) drive(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		case <-timer.C:
			r.do((*Election).Tick)
		}
		r.mu.Lock()
		at, ok := r.election.Next()
		r.mu.Unlock()
		if !ok {
			timer.Stop()
			continue
		}
		timer.Reset(max(at-now().Boot, 0))
	}
}

// receive passes the packets of a socket to the election until the socket is closed.
func (r *Router) receive(s *rawSocket) error {
	for {
		p, err := s.receive()
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		r.do(func(e *Election, now Moment) { e.Receive(now, p) })
	}
}

// Close closes the sockets. Masters do not give up their roles: see Run. A second call does nothing.
func (r *Router) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	var errs []error
	for _, s := range r.sockets {
		if s != nil {
			errs = append(errs, s.close())
		}
	}
	for n, ipv6 := range []bool{false, true} {
		errs = append(errs, r.groups[n].set(ipv6, nil))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close VRRP: %w", err)
	}
	return nil
}

func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
