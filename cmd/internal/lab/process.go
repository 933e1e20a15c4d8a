package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// grace is the time that a process has to end after SIGTERM.
var grace = 20 * time.Second

// ErrKilled is in the error of Stop when the process had to be killed.
var ErrKilled = errors.New("did not end in time after SIGTERM, so it was killed")

// Process is a program that runs on a host.
type Process struct {
	name   string
	cmd    *exec.Cmd
	output tail
	done   chan struct{}
	err    error // valid once done is closed
}

// Start starts a command on the host. Standard output and error go to Process.Output if the command has no writer for
// them. The command must not have been started, and its Wait must not be called: use the Process.
//
// The child leads its own process group, so that a Ctrl-C at the terminal reaches only the caller. The rest of the
// group is killed when the child ends. The kernel kills the child when the caller dies for whatever reason, but not a
// grandchild: start servers in the foreground and, if they can, as one process. The child has the host's network.
// Everything else is the caller's machine, /sys/class/net included.
func (h *Host) Start(cmd *exec.Cmd) (*Process, error) { return h.launch(cmd, nil) }

// StartOn is Start for a process whose threads all run on one CPU: 0, 1, … as the kernel numbers them.
func (h *Host) StartOn(cpu int, cmd *exec.Cmd) (*Process, error) {
	cpus := &unix.CPUSet{}
	cpus.Set(cpu)
	return h.launch(cmd, cpus)
}

// launch starts cmd on these CPUs; nil: the caller's CPUs.
func (h *Host) launch(cmd *exec.Cmd, cpus *unix.CPUSet) (*Process, error) {
	p := &Process{name: h.Name + ": " + filepath.Base(cmd.Path), cmd: cmd, done: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout = &p.output
	}
	if cmd.Stderr == nil {
		cmd.Stderr = &p.output
	}
	if cmd.WaitDelay == 0 {
		cmd.WaitDelay = grace // a grandchild may hold the pipe of its output
	}
	var attr syscall.SysProcAttr
	if cmd.SysProcAttr != nil {
		attr = *cmd.SysProcAttr
	}
	attr.Setpgid, attr.Pgid = true, 0
	// The signal comes when the *thread* that forked ends, see prctl(2), PR_SET_PDEATHSIG: hence the host's own thread,
	// which ends only after Close has waited for the processes.
	attr.Pdeathsig = syscall.SIGKILL
	cmd.SysProcAttr = &attr

	started := make(chan error, 1)
	select {
	case h.work <- func() { started <- h.lab.start(p, cpus) }:
	case <-h.lab.closed:
		return nil, fmt.Errorf("%s: start: the lab is closed", p.name)
	}
	if err := <-started; err != nil {
		return nil, fmt.Errorf("%s: start: %w", p.name, err)
	}
	return p, nil
}

// Run starts a command on the host, waits for its end and returns its standard output. Its error contains the end of
// its standard error. The command must not have writers for either.
func (h *Host) Run(cmd *exec.Cmd) ([]byte, error) {
	var stdout bytes.Buffer
	cmd.Stdout = &stdout
	p, err := h.Start(cmd)
	if err != nil {
		return nil, err
	}
	if err := p.Wait(); err != nil {
		return stdout.Bytes(), fmt.Errorf("%s: %w: %s", p.name, err, bytes.TrimSpace([]byte(p.Output())))
	}
	return stdout.Bytes(), nil
}

// start forks, unless the lab is closed, and keeps the process in l.processes until it has ended, for Close.
func (l *Lab) start(p *Process, cpus *unix.CPUSet) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.closed:
		return errors.New("the lab is closed")
	default:
	}
	if cpus != nil { // a child inherits the CPUs of the thread that forks: sched_setaffinity(2)
		var own unix.CPUSet
		if err := unix.SchedGetaffinity(0, &own); err != nil {
			return fmt.Errorf("CPUs of this thread: %w", err)
		}
		if err := unix.SchedSetaffinity(0, cpus); err != nil {
			return fmt.Errorf("choose the CPU: %w", err)
		}
		defer func() { _ = unix.SchedSetaffinity(0, &own) }() // it cannot fail: the thread had them before
	}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	l.processes[p] = struct{}{}
	go func() {
		p.reap()
		l.mu.Lock()
		delete(l.processes, p)
		l.mu.Unlock()
	}()
	return nil
}

// reap waits for the process and kills the rest of its group. It does so before it takes the exit status, since then
// the kernel may reuse the group's number.
func (p *Process) reap() {
	pid := p.cmd.Process.Pid
	err := unix.EINTR
	for err == unix.EINTR {
		err, _ = unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil).(unix.Errno)
	}
	if err == 0 {
		_ = unix.Kill(-pid, unix.SIGKILL)
	}
	p.err = p.cmd.Wait()
	close(p.done)
}

// Pid returns the process's number.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done returns a channel that is closed when the process has ended and all its output has been read.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the end of the process and returns nil if its exit status was 0. It may be called more than once.
func (p *Process) Wait() error {
	<-p.done
	return p.err
}

// Signal sends a signal to the process; os.ErrProcessDone if it has ended.
func (p *Process) Signal(sig os.Signal) error { return p.cmd.Process.Signal(sig) }

// Stop ends the process with SIGTERM, after 20 seconds with SIGKILL, and waits for its end. It returns nil if the
// exit status was 0, also when the process had ended before.
func (p *Process) Stop() error {
	if err := p.Signal(unix.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("%s: SIGTERM: %w", p.name, err)
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-p.done:
		if p.err != nil {
			return fmt.Errorf("%s: %w", p.name, p.err)
		}
		return nil
	case <-timer.C:
		_ = p.cmd.Process.Kill() // fails only if the process has just ended
		<-p.done
		return fmt.Errorf("%s (process %d): %w", p.name, p.Pid(), ErrKilled)
	}
}

// Output returns the last 256 KiB that the process has written to standard output and error so far.
func (p *Process) Output() string { return p.output.String() }

// tail is a writer that keeps the end of its input.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

const tailSize = 256 << 10 // the goroutines of a program

// Write implements io.Writer. It never fails.
func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, b...)
	if len(t.buf) > 2*tailSize {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-tailSize:]...)
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf[max(0, len(t.buf)-tailSize):])
}
