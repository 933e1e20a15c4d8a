package query

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// RouteWatch reports changes of routes, rules, next hops, addresses and devices at once. Paths says what they change.
type RouteWatch struct {
	events  *nl.NetlinkSocket
	changed chan struct{}
	closed  atomic.Bool
}

// WatchRoutes begins to follow the routes of the calling thread's network namespace. The caller calls Run.
func WatchRoutes() (*RouteWatch, error) {
	events, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_NEXTHOP,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_RULE,
		unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV6_RULE)
	if err != nil {
		return nil, fmt.Errorf("watch routes: %w", err)
	}
	return &RouteWatch{events: events, changed: make(chan struct{}, 1)}, nil
}

// Changed returns a channel that gets a value after a change. A value that is not received yet stands for all changes
// since.
func (w *RouteWatch) Changed() <-chan struct{} { return w.changed }

// Run follows the routes until ctx is cancelled, and then returns nil. It may be called once, and closes w.
func (w *RouteWatch) Run(ctx context.Context) error {
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

// receive processes events until w is closed. Events that the kernel had no room for count as a change.
func (w *RouteWatch) receive() error {
	for {
		_, _, err := w.events.Receive()
		switch {
		case w.closed.Load():
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil && !errors.Is(err, unix.ENOBUFS):
			return fmt.Errorf("watch routes: %w", err)
		}
		select {
		case w.changed <- struct{}{}:
		default:
		}
	}
}

// Close ends Run.
func (w *RouteWatch) Close() {
	w.closed.Store(true)
	w.events.Close()
}
