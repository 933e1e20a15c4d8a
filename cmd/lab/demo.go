package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"

	"vstun/balancer/keep"
	"vstun/cmd/internal/daemon"
	"vstun/cmd/internal/lab"
)

const (
	prefix = "vstun"           // begins the names of the demo's namespaces
	dir    = "/run/vstun-demo" // configurations, logs and control sockets, while the demo runs
)

// options are the flags of `lab demo`.
type options struct {
	stay bool
	ipv6 bool
	lan  bool
	ha   bool
	bin  string

	tunnel bool
}

// show is a running demo.
type show struct {
	out  io.Writer
	bin  string // directory of the programs
	ipv6 bool
	lan  bool // the VIP is in the director's subnet, and the method is VS/DR; else it is VS/TUN
	ha   bool // there are two directors; with lan
	lab  *lab.Lab

	director *program
	backup   *program   // the second director
	agents   []*program // in the order of lab.Webs
}

// demo runs the whole demo. It cleans up after success, failure, and interruption through the context.
func demo(ctx context.Context, out io.Writer, o options) (err error) {
	s := &show{bin: o.bin, ipv6: o.ipv6, lan: o.lan || o.ha, ha: o.ha}
	network := lab.Routed
	if s.lan {
		network = lab.LAN
	}
	if err := s.check(); err != nil {
		return err
	}
	// A failed write, as after `lab demo | head`, ends the demo as Ctrl-C does.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.out = &watched{out, cancel}

	undo := func(f func() error) { err = errors.Join(err, f()) }
	if s.lab, err = lab.New(lab.Spec{Prefix: prefix, Webs: 2, Network: network, Backup: s.ha}); err != nil {
		return err
	}
	defer undo(s.lab.Close)
	if !s.addr(s.lab.Director).IsValid() {
		return errors.New("this kernel has no IPv6: leave --ipv6 out")
	}
	// An existing directory belongs to a dead demo: a running one would have the prefix.
	if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil {
		return fmt.Errorf("directory for configurations and logs: %w", err)
	}
	defer undo(func() error {
		return errors.Join(keep.Remove(keep.Path(dir+"/director.sock", ".table")),
			keep.Remove(keep.Path(dir+"/director2.sock", ".table")), os.RemoveAll(dir))
	})

	if s.ha {
		if err := writeKey(); err != nil {
			return err
		}
	}
	play := s.play
	if o.tunnel {
		play = s.playTunnels
	}
	played := play(ctx, o.stay)
	interrupted := ctx.Err() != nil && errors.Is(played, context.Canceled)
	if interrupted {
		s.printf("\nInterrupted: cleaning up.\n")
		played = errors.New("demo interrupted")
	}
	stopped := s.stopPrograms()
	if stopped != nil || played != nil && !interrupted {
		s.showLogs() // the logs are about to be deleted
	}
	return errors.Join(played, stopped)
}

// play draws the topology, starts the programs, makes requests and reports.
func (s *show) play(ctx context.Context, stay bool) error {
	s.draw()
	if err := s.startPrograms(ctx); err != nil {
		return err
	}
	servers, err := s.serve()
	if err != nil {
		return err
	}
	defer servers.Close()
	if s.ha {
		if faults := s.failovers(ctx); faults != nil || !stay {
			return faults
		}
		return s.stay(ctx)
	}
	counters, err := s.count()
	if err != nil {
		return err
	}
	defer counters.Close()

	faults := errors.Join(s.requests(ctx, s.lab.Client), s.datagrams(ctx))
	if s.lan {
		faults = errors.Join(faults, s.requests(ctx, s.lab.Insider))
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	faults = errors.Join(faults, s.report(ctx, counters))
	if faults != nil || !stay {
		return faults
	}
	return s.stay(ctx)
}

// check examines whether the demo has the rights and programs that it needs.
func (s *show) check() error {
	if os.Geteuid() != 0 {
		return errors.New("making network namespaces and TUN devices needs root: run it as root")
	}
	if err := daemon.CheckPrivileges(); err != nil {
		return err
	}
	if s.bin == "" {
		exe, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find the programs: %w: use --bin", err)
		}
		s.bin = filepath.Dir(exe)
	}
	var err error
	if s.bin, err = filepath.Abs(s.bin); err != nil {
		return fmt.Errorf("--bin: %w", err)
	}
	for _, name := range []string{"director", "realserver"} {
		if info, err := os.Stat(filepath.Join(s.bin, name)); err != nil {
			return fmt.Errorf("%w: run make build, or set --bin to the programs' directory", err)
		} else if info.IsDir() || info.Mode()&0o111 == 0 {
			return fmt.Errorf("%s is not a program: set --bin to the programs' directory", filepath.Join(s.bin, name))
		}
	}
	return nil
}

// showLogs prints the end of each program's log.
func (s *show) showLogs() {
	for _, p := range s.programs() {
		s.printf("\nThe end of the log of %s:\n%s", p, p.tail(logLines))
	}
}

// stay waits for Ctrl-C or the end of a program. A director of a pair is started again.
func (s *show) stay(ctx context.Context) error {
	s.describeStay(filepath.Join(s.bin, s.director.name), s.director.config)
	ended := make(chan *program, 1+len(s.programs()))
	watch := func(p *program) {
		go func(done <-chan struct{}) {
			<-done // at the latest when the demo ends
			ended <- p
		}(p.process.Done())
	}
	for _, p := range s.programs() {
		watch(p)
	}
	for {
		select {
		case <-ctx.Done():
			s.printf("\nCleaning up.\n")
			return nil
		case p := <-ended:
			if !s.ha || p.name != "director" {
				return fmt.Errorf("%s ended by itself", p)
			}
			s.printf("\n%s has ended, and is started again.\n", p)
			if err := s.run(p); err != nil {
				return err
			}
			watch(p)
		}
	}
}

// vip returns the demo's virtual address.
func (s *show) vip() netip.Addr {
	if s.ipv6 {
		return s.lab.VIP6
	}
	return s.lab.VIP
}

// addr returns the address of a host in the demo's family.
func (s *show) addr(h *lab.Host) netip.Addr {
	if s.ipv6 {
		return h.Addr6
	}
	return h.Addr
}

func (s *show) printf(format string, args ...any) { fmt.Fprintf(s.out, format, args...) }

// watched is a writer that calls gone when writing fails.
type watched struct {
	io.Writer
	gone func()
}

// Write implements io.Writer.
func (w *watched) Write(b []byte) (int, error) {
	n, err := w.Writer.Write(b)
	if err != nil {
		w.gone()
	}
	return n, err
}
