package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"vstun/cmd/internal/api"
)

// takeoverWithin bounds the time until the other director answers.
const takeoverWithin = 20 * time.Second

// writeKey writes the key of [sync].
func writeKey() error {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	if err := os.WriteFile(keyPath(), key, 0o600); err != nil {
		return fmt.Errorf("key of [sync]: %w", err)
	}
	return nil
}

// change is a change of the master.
type change struct {
	what string
	act  func(ctx context.Context) error
	to   *program // the master after it
}

// failovers lets the directors take over from each other under a load, and prints what was lost. Its error names lost
// connections.
func (s *show) failovers(ctx context.Context) error {
	if err := s.awaitMaster(ctx, s.director); err != nil {
		return err
	}
	l, err := s.begin(ctx)
	defer l.close()
	if err == nil {
		err = s.awaitShared(ctx)
	}
	if err != nil {
		return err
	}
	s.printf("The director is the master. %d downloads and %d idle connections are open, and a request is sent\n"+
		"every %v, each on a new connection.\n\n", downloadCount, idleCount, requestEvery)
	s.printf("                             until the other   downloads   idle          requests without\n"+
		"                             one answers       broken      broken        an answer in %v\n", answerWithin)
	var faults []error
	for _, c := range []change{
		{"kill -9 of the director", func(context.Context) error {
			s.director.up = false // its exit status is no fault
			err := s.director.process.Signal(unix.SIGKILL)
			<-s.director.process.Done()
			return err
		}, s.backup},
		{"the director starts again", func(ctx context.Context) error {
			return errors.Join(s.run(s.director), s.director.awaitUp(ctx))
		}, s.director},
		{"director standby", func(context.Context) error { return s.command("standby") }, s.backup},
		{"director active", func(context.Context) error { return s.command("active") }, s.director},
	} {
		if err := s.failover(ctx, l, c); err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", c.what, err))
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return errors.Join(faults...)
}

// failover makes a change and prints a line about what was lost.
func (s *show) failover(ctx context.Context, l *load, c change) error {
	begin := time.Now()
	if err := c.act(ctx); err != nil {
		return err
	}
	if err := s.awaitMaster(ctx, c.to); err != nil {
		return err
	}
	is := time.Now()
	if c.to == s.backup && s.director.ended() {
		is = begin // no other one has answered since then
	}
	var at time.Time
	err := s.await(ctx, c.to.String()+" answers no request", func() (ok bool) {
		at, ok = l.answered(is)
		return ok
	})
	if err != nil {
		return err
	}
	downloads, idles := l.broken(ctx)
	failed, all := l.failed(ctx, begin, time.Now())
	if ctx.Err() != nil {
		return ctx.Err()
	}
	s.printf("%-28s %8.2f s        %3d of %-3d  %3d of %-3d    %4d of %d\n", c.what, at.Sub(begin).Seconds(), downloads,
		len(l.downloads), idles, len(l.idle), failed, all)
	if downloads > 0 || idles > 0 {
		return fmt.Errorf("%d downloads and %d idle connections are broken", downloads, idles)
	}
	return nil
}

// ended reports whether the program runs no more.
func (p *program) ended() bool {
	select {
	case <-p.process.Done():
		return true
	default:
		return false
	}
}

// command runs a command of the director.
func (s *show) command(name string) error {
	_, err := s.director.host.Run(exec.Command(filepath.Join(s.bin, s.director.name), name, "-c", s.director.config))
	return err
}

// awaitMaster waits until p is the master.
func (s *show) awaitMaster(ctx context.Context, p *program) error {
	return s.await(ctx, p.String()+" does not become the master", func() bool {
		var st api.DirectorStatus
		return p.status(ctx, &st) == nil && len(st.VRRP) == 1 && st.VRRP[0].Role == "master" && len(st.Announced) == 1
	})
}

// awaitShared waits until the second director has the open connections.
func (s *show) awaitShared(ctx context.Context) error {
	return s.await(ctx, s.backup.String()+" does not get the connections", func() bool {
		var st api.DirectorStatus
		if s.backup.status(ctx, &st) != nil {
			return false
		}
		n := 0
		for _, service := range st.Services {
			for _, r := range service.Realservers {
				n += int(r.Active)
			}
		}
		return n >= downloadCount+idleCount
	})
}

// await waits until done returns true. Its error is fault, after takeoverWithin.
func (s *show) await(ctx context.Context, fault string, done func() bool) error {
	late := time.After(takeoverWithin)
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		case <-late:
			return fmt.Errorf("%s within %v", fault, takeoverWithin)
		}
	}
	return nil
}
