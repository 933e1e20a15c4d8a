package health

import (
	"context"
	"errors"
	"path/filepath"

	"vstun/balancer/health/command"
)

// Exec runs a program. Exit status 0 is a success. The first line of its output is the reason.
type Exec struct {
	Command []string // absolute path, and arguments
	Env     []string // "NAME=value", added to the director's environment
}

func (p Exec) prepare() (checker, error) {
	if len(p.Command) == 0 || !filepath.IsAbs(p.Command[0]) {
		return nil, errors.New("command: want the absolute path of a program, and its arguments")
	}
	return p, nil
}

func (p Exec) check(ctx context.Context, _ endpoint) (string, error) {
	line, err := command.Run(ctx, p.Command, p.Env)
	if start, ok := errors.AsType[command.StartError](err); ok {
		err = localError{start.Err}
	}
	return line, err
}

// descriptors returns 6: /dev/null, a pipe for the output, a pipe for a failure to start, and a pidfd.
func (Exec) descriptors() int { return 6 }
