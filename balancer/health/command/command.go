// Package command runs the programs of checks and notifications.
package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// StartError is the error of a program that cannot be started.
type StartError struct{ Err error }

func (e StartError) Error() string { return e.Err.Error() }

// Unwrap returns the kernel's error.
func (e StartError) Unwrap() error { return e.Err }

// maxOutput bounds the output of a program that is kept, in bytes.
const maxOutput = 4 << 10

// killWait bounds the time for which processes that a program has left running may hold its output open.
const killWait = 200 * time.Millisecond

// Run runs a program in a process group of its own and returns the first line of its output. command is its absolute
// path and its arguments. env is added to the environment of this process. When ctx ends, Run kills the group.
func Run(ctx context.Context, command, env []string) (string, error) {
	var out output
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = killWait
	if err := cmd.Start(); err != nil {
		return "", StartError{err}
	}
	err := cmd.Wait()
	line := out.firstLine()
	switch exit, ok := errors.AsType[*exec.ExitError](err); {
	case err == nil || errors.Is(err, exec.ErrWaitDelay) && cmd.ProcessState.Success():
		if line == "" {
			line = "exit status 0"
		}
		return line, nil
	case ctx.Err() != nil && line != "":
		return "", fmt.Errorf("not done in time, and killed: %s", line)
	case ctx.Err() != nil:
		return "", errors.New("not done in time, and killed")
	case ok && line != "":
		return "", fmt.Errorf("%v: %s", exit, line)
	case ok:
		return "", exit
	}
	return "", err
}

// output keeps the beginning of the bytes that are written to it.
type output struct{ kept []byte }

// Write implements io.Writer.
func (o *output) Write(p []byte) (int, error) {
	o.kept = append(o.kept, p[:min(len(p), maxOutput-len(o.kept))]...)
	return len(p), nil
}

func (o *output) firstLine() string {
	line, _, _ := bytes.Cut(bytes.TrimSpace(o.kept), []byte("\n"))
	return string(line)
}
