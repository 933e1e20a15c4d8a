package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/lab"
)

const (
	upTimeout = 30 * time.Second // for a program to answer on its control socket
	pollEvery = 20 * time.Millisecond
	logLines  = 20
)

// program is a director or realserver that runs on a host.
type program struct {
	host    *lab.Host
	name    string // "director", "realserver"
	config  string // path
	log     string // path
	socket  string // path
	process *lab.Process
	up      bool // it has answered on its control socket
}

func (p *program) String() string {
	switch p.host.Name {
	case p.name:
		return "the " + p.name
	case p.name + "2":
		return p.host.Name
	}
	return p.host.Name + "'s " + p.name
}

// startPrograms starts the director and the agents, and returns when all of them are up.
func (s *show) startPrograms(ctx context.Context) error {
	s.printf("Programs, with their configurations:\n")
	for _, web := range s.lab.Webs {
		p, err := s.start(web, "realserver", s.agentTOML)
		if err != nil {
			return err
		}
		s.agents = append(s.agents, p)
	}
	var err error
	if s.director, err = s.start(s.lab.Director, "director", s.directorTOML); err != nil {
		return err
	}
	if s.ha {
		if s.backup, err = s.start(s.lab.Backup, "director", s.backupTOML); err != nil {
			return err
		}
	}
	begin := time.Now()
	for _, p := range s.programs() {
		if err := p.awaitUp(ctx); err != nil {
			return err
		}
	}
	s.printf("  all up after %v\n\n", time.Since(begin).Round(time.Millisecond))
	return nil
}

// start writes a program's configuration and starts the program. config returns the text for a path of the control
// socket.
func (s *show) start(h *lab.Host, name string, config func(socket string) string) (*program, error) {
	file := func(suffix string) string { return filepath.Join(dir, h.Name+suffix) }
	p := &program{host: h, name: name, config: file(".toml"), log: file(".log"), socket: file(".sock")}
	if err := os.WriteFile(p.config, []byte(config(p.socket)), 0o600); err != nil {
		return nil, fmt.Errorf("configuration of %s: %w", p, err)
	}
	if err := s.run(p); err != nil {
		return nil, err
	}
	s.printf("  %-9s %s run -c %s\n", h.Name, name, p.config)
	return p, nil
}

// run starts a program that has its configuration. The program does not run.
func (s *show) run(p *program) error {
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("log of %s: %w", p, err)
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(s.bin, p.name), "run", "-c", p.config)
	cmd.Stdout, cmd.Stderr = log, log
	process, err := p.host.Start(cmd)
	if err == nil {
		p.process, p.up = process, false
	}
	return err
}

// awaitUp waits until the program answers on its control socket.
func (p *program) awaitUp(ctx context.Context) error {
	deadline, cancel := context.WithTimeout(ctx, upTimeout)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		var ignored struct{}
		err := p.status(deadline, &ignored)
		if err == nil {
			p.up = true
			return nil
		}
		select {
		case <-tick.C:
		case <-p.process.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err := p.process.Wait(); err != nil {
				return fmt.Errorf("%s ended before it was up: %w", p, err)
			}
			return fmt.Errorf("%s ended before it was up, with exit status 0", p)
		case <-deadline.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("%s is not up after %v: %w", p, upTimeout, err)
		}
	}
}

// status gets a program's status.
func (p *program) status(ctx context.Context, into any) error {
	return api.Get(ctx, p.socket, "/status", into)
}

// stopPrograms ends all programs at once and returns an error for each that fails. The failure of a program that was
// not up yet is no error here: it has been reported, or SIGTERM came before the program's handler.
func (s *show) stopPrograms() error {
	all := s.programs()
	errs := make([]error, len(all))
	var stops sync.WaitGroup
	for i, p := range all {
		stops.Go(func() {
			err := p.process.Stop()
			if err != nil && (p.up || errors.Is(err, lab.ErrKilled)) {
				errs[i] = fmt.Errorf("%s failed at its end: %w", p, err)
			}
		})
	}
	stops.Wait()
	return errors.Join(errs...)
}

// programs returns the started programs, the directors first.
func (s *show) programs() (all []*program) {
	for _, p := range []*program{s.director, s.backup} {
		if p != nil {
			all = append(all, p)
		}
	}
	return append(all, s.agents...)
}

// tail returns the last lines of the program's log, indented.
func (p *program) tail(lines int) []byte {
	text, err := os.ReadFile(p.log)
	if err != nil {
		text = []byte(err.Error())
	}
	if len(bytes.TrimSpace(text)) == 0 {
		text = []byte("(nothing)")
	}
	all := bytes.Split(bytes.TrimRight(text, "\n"), []byte("\n"))
	all = all[max(0, len(all)-lines):]
	return append(append([]byte("  "), bytes.Join(all, []byte("\n  "))...), '\n')
}
