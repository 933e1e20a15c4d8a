package routing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	settle      = 200 * time.Millisecond // events of a burst are handled together
	breath      = time.Second            // from one look to the next when events never end
	maxSettle   = 10 * time.Second       // between two tries against another program, or when all fail
	patience    = 5                      // tries in a row before the pauses get longer
	poll        = 30 * time.Second       // sysctls change without an event
	eventBuffer = 4 << 20                // bytes; an overflow counts as an event, so it costs nothing but time
)

// Watch keeps the machine in the state that was last Set: it reverts other programs' changes, and makes the table of
// Replies follow the main table. It makes a pass 200 ms after the kernel reports a change of links, addresses, routes,
// rules, nexthops or device settings, once a second while such reports don't end, and every 30 seconds without
// any. A failure is logged and tried again, after up to 10 seconds if it lasts.
//
// It returns nil once ctx is cancelled, and an error if the kernel's events can't be read any more.
func (m *Manager) Watch(ctx context.Context) error {
	var sub *nl.NetlinkSocket
	err := m.ns.do(func() (err error) {
		sub, err = nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_NEXTHOP,
			unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV4_NETCONF,
			unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_IPV6_NETCONF)
		return err
	})
	if err != nil {
		return fmt.Errorf("watch the network: %w", err)
	}
	// With CAP_NET_ADMIN of the initial namespace only; the default will do.
	if sub.SetReceiveBufferSize(eventBuffer, true) != nil {
		_ = sub.SetReceiveBufferSize(eventBuffer, false)
	}
	wake := make(chan struct{}, 1)
	wake <- struct{}{} // for changes before the subscription
	failed := make(chan error, 1)
	var receiver sync.WaitGroup
	receiver.Go(func() { failed <- receiveEvents(sub, wake) })
	defer receiver.Wait()
	defer sub.Close()
	expired := time.AfterFunc(poll, func() { signal(wake) })
	defer expired.Stop()
	return follow(ctx, m.log, wake, failed, func() (int, error) {
		defer signal(m.changed)
		changes, err := m.passAgain()
		if d := m.untilExpiry(); d > 0 {
			expired.Reset(d)
		}
		return changes, err
	})
}

// Changed gives a value after each pass of Watch, and so after any change of the host's routes or addresses.
func (m *Manager) Changed() <-chan struct{} { return m.changed }

// receiveEvents wakes on every event, until the socket is closed, whatever the event is about.
func receiveEvents(sub *nl.NetlinkSocket, wake chan<- struct{}) error {
	for {
		_, _, err := sub.Receive()
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("watch the network: %w", err)
		}
		signal(wake)
	}
}

func signal(wake chan<- struct{}) {
	select {
	case wake <- struct{}{}:
	default:
	}
}

// follow calls reconcile when it is woken, but not too often. It returns nil when ctx is cancelled, or else the error
// that it reads from failed.
func follow(ctx context.Context, log *slog.Logger, wake chan struct{}, failed <-chan error,
	reconcile func() (int, error)) error {
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	restless := 0 // passes in a row that failed or changed something
	var trouble string
	var last time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case <-wake:
		case <-ticker.C:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(max(min(settle<<max(0, restless-patience), maxSettle), breath-time.Since(last))):
		}
		select {
		case <-wake:
		default:
		}
		changes, err := reconcile()
		last = time.Now()
		switch {
		case errors.Is(err, ErrClosed):
			return err
		case err != nil:
			if err.Error() != trouble {
				log.Error("cannot reconcile network state; retrying", "error", err)
			}
			trouble = err.Error()
			signal(wake)
		case trouble != "":
			log.Info("the network is in the desired state again", "changes", changes)
			trouble = ""
		case changes > 0:
			log.Info("network state reconciled", "changes", changes)
		}
		if err == nil && changes == 0 {
			restless = 0
		} else {
			restless = min(restless+1, patience+10)
		}
	}
}

// passAgain reconciles the machine with the state that was last Set.
func (m *Manager) passAgain() (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.reconcile(slog.LevelInfo)
}

// untilExpiry returns how long after the last pass the first copied route expires; 0: none does.
func (m *Manager) untilExpiry() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.expiry
}

// changeLines bounds the lines that one pass logs of its changes; at level debug there is no bound.
const changeLines = 20

// changeLog logs the changes of one pass.
type changeLog struct {
	log      *slog.Logger
	level    slog.Level
	lines    int
	warnings int
}

// add logs one change at c's level, or at debug when there have been changeLines.
func (c *changeLog) add(name, before, after string) {
	level := c.level
	if c.lines++; c.lines > changeLines {
		level = slog.LevelDebug
	}
	c.log.Log(context.Background(), level, "network state changed", "name", name, "old", before, "new", after)
}

// warn logs a warning, or at debug when there have been changeLines.
func (c *changeLog) warn(msg string, args ...any) {
	level := slog.LevelWarn
	if c.warnings++; c.warnings > changeLines {
		level = slog.LevelDebug
	}
	c.log.Log(context.Background(), level, msg, args...)
}

// end logs how many changes and warnings are missing from the log.
func (c *changeLog) end() {
	if c.warnings > changeLines {
		c.log.Warn("more such warnings", "warnings", c.warnings-changeLines)
	}
	if c.level > slog.LevelDebug && c.lines > changeLines {
		c.log.Log(context.Background(), c.level, "more changes of network state", "changes", c.lines-changeLines)
	}
}
