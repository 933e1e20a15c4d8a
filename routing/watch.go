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
	breath      = time.Second            // least time between two passes
	maxSettle   = 10 * time.Second       // between two tries against another program, or when all fail
	patience    = 5                      // tries in a row before the pauses get longer
	poll        = 30 * time.Second       // sysctls change without an event
	eventBuffer = 4 << 20                // bytes; an overflow counts as an event, so it costs only time
)

// Watch keeps the machine in the state that was last Set: it reverts other programs' changes, and updates the table of
// Replies when the main table changes. It makes a pass 200 ms after the kernel reports a change of links, addresses,
// routes, rules, nexthops or device settings. While such reports don't end, it makes one pass a second. It also makes a
// pass every 30 seconds, and when a copied route expires. It logs a failure and tries again, after up to 10 seconds if
// the failure lasts.
//
// Watch returns nil once ctx is cancelled, ErrClosed once the Manager is closed, and an error if the kernel's events
// can't be read.
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
	// This needs CAP_NET_ADMIN in the initial user namespace. Without it, the largest buffer that the kernel allows
	// will do.
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

// Changed returns a channel that gets a value after each pass of Watch, and so after any change of the host's routes or
// addresses. A value that is not received yet stands for all passes since.
func (m *Manager) Changed() <-chan struct{} { return m.changed }

// receiveEvents signals wake on every event, whatever its content, until the socket is closed.
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

// follow calls reconcile when wake has a value, and every poll, at least breath apart. It returns nil when ctx is
// cancelled, the error that it reads from failed, or ErrClosed from reconcile.
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

// changeLines bounds the changes that one pass logs above level debug, and likewise its warnings.
const changeLines = 20

// changeLog logs the changes of one pass.
type changeLog struct {
	log      *slog.Logger
	level    slog.Level
	lines    int
	warnings int
}

// add logs one change at c's level, or at debug after changeLines changes.
func (c *changeLog) add(name, before, after string) {
	level := c.level
	if c.lines++; c.lines > changeLines {
		level = slog.LevelDebug
	}
	c.log.Log(context.Background(), level, "network state changed", "name", name, "old", before, "new", after)
}

// warn logs a warning, or a debug line after changeLines warnings.
func (c *changeLog) warn(msg string, args ...any) {
	level := slog.LevelWarn
	if c.warnings++; c.warnings > changeLines {
		level = slog.LevelDebug
	}
	c.log.Log(context.Background(), level, msg, args...)
}

// end logs the number of changes and warnings beyond changeLines.
func (c *changeLog) end() {
	if c.warnings > changeLines {
		c.log.Warn("more such warnings", "warnings", c.warnings-changeLines)
	}
	if c.level > slog.LevelDebug && c.lines > changeLines {
		c.log.Log(context.Background(), c.level, "more changes of network state", "changes", c.lines-changeLines)
	}
}
