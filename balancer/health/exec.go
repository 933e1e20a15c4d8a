package health

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// Exec runs a program: exit status 0 is a success. The first line that it writes is the reason.
type Exec struct {
	Command []string // absolute path, and arguments
	Env     []string // "NAME=value", beside what the director has
}

func (p Exec) prepare() (checker, error) {
	if len(p.Command) == 0 || !filepath.IsAbs(p.Command[0]) {
		return nil, errors.New("command: want the absolute path of a program, and its arguments")
	}
	return p, nil
}

func (p Exec) check(ctx context.Context, _ place) (string, error) {
	return runCommand(ctx, p.Command, p.Env)
}

// maxOutput is how much of what a program writes is kept, in bytes.
const maxOutput = 4 << 10

// killWait is how long a program's output may stay open after its end, by what it has left running elsewhere.
const killWait = 200 * time.Millisecond

// runCommand runs a program in a process group of its own, which is killed as a whole when ctx ends, and returns the
// first line of its output.
func runCommand(ctx context.Context, command, env []string) (string, error) {
	var out output
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = killWait
	if err := cmd.Start(); err != nil {
		return "", ownFault{err}
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

// output keeps the beginning of what is written.
type output struct{ kept []byte }

// Write is io.Writer's.
func (o *output) Write(p []byte) (int, error) {
	o.kept = append(o.kept, p[:min(len(p), maxOutput-len(o.kept))]...)
	return len(p), nil
}

func (o *output) firstLine() string {
	line, _, _ := bytes.Cut(bytes.TrimSpace(o.kept), []byte("\n"))
	return string(line)
}
