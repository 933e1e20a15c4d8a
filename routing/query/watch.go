package query

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Watch reports the kernel's changes at once.
type Watch struct {
	what    string // in errors
	events  *nl.NetlinkSocket
	take    func(messages []syscall.NetlinkMessage, lost bool) // nil: only that there are some counts
	changed chan struct{}
	closed  atomic.Bool
}

// WatchRoutes begins to follow the routes, rules, next hops, addresses and devices of the calling thread's network
// namespace: Paths says what has become of them. The caller calls Run.
func WatchRoutes() (*Watch, error) {
	return subscribe("watch routes", unix.RTNLGRP_LINK, unix.RTNLGRP_NEXTHOP,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_RULE,
		unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV6_RULE)
}

// subscribe returns a Watch of groups of rtnetlink(7).
func subscribe(what string, groups ...uint) (*Watch, error) {
	events, err := nl.Subscribe(unix.NETLINK_ROUTE, groups...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return &Watch{what: what, events: events, changed: make(chan struct{}, 1)}, nil
}

// Changed returns a channel that gets a value after a change. A value that is not received yet stands for all changes
// since.
func (w *Watch) Changed() <-chan struct{} { return w.changed }

// Run follows the changes until ctx is cancelled, and then returns nil. It may be called once, and closes w.
func (w *Watch) Run(ctx context.Context) error {
	failed := make(chan error, 1)
	var receiver sync.WaitGroup
	receiver.Go(func() { failed <- w.receive() })
	defer receiver.Wait()
	defer w.Close()
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return err
	}
}

// receive processes messages until w is closed. Messages for which the kernel had no room count as a change, too.
func (w *Watch) receive() error {
	for {
		messages, _, err := w.events.Receive()
		lost := errors.Is(err, unix.ENOBUFS)
		switch {
		case w.closed.Load():
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil && !lost:
			return fmt.Errorf("%s: %w", w.what, err)
		}
		if w.take != nil {
			w.take(messages, lost)
		}
		select {
		case w.changed <- struct{}{}:
		default:
		}
	}
}

// Close ends Run.
func (w *Watch) Close() {
	w.closed.Store(true)
	w.events.Close()
}
