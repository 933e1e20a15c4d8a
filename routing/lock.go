package routing

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// fileLock is a file with a flock on it. The kernel drops the flock when its holder dies. The file contains the
// holder's pid.
type fileLock struct {
	file *os.File
}

const lockSuffix = ".lock"

// InUseError is the error of Open for a journal that another process holds.
type InUseError struct {
	Journal string
	PID     string // of that process, or "unknown"
}

func (e *InUseError) Error() string {
	return fmt.Sprintf("another program uses %s (process %s): stop it, or give this one another journal", e.Journal,
		e.PID)
}

// acquireLock takes the lock of a journal. If another process has it, the error is an InUseError.
func acquireLock(journal string) (*fileLock, error) {
	path := journal + lockSuffix
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if errors.Is(err, os.ErrPermission) {
			return nil, fmt.Errorf("lock: %w: it is another user's, or its directory is: run as that user, remove "+
				"it, or put the journal elsewhere", err)
		}
		if err != nil {
			return nil, fmt.Errorf("lock: %w", err)
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			defer f.Close()
			return nil, &InUseError{Journal: journal, PID: holder(f)}
		}
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		// The last holder may have removed the file after this process opened it. Others then lock a new file.
		if !isFile(f, path) {
			f.Close()
			continue
		}
		l := &fileLock{f}
		err = f.Truncate(0)
		if err == nil {
			_, err = fmt.Fprintln(f, os.Getpid())
		}
		if err != nil {
			l.release()
			return nil, fmt.Errorf("lock: %w", err)
		}
		return l, nil
	}
}

func holder(f *os.File) string {
	b, _ := io.ReadAll(io.LimitReader(f, 32))
	if pid := strings.TrimSpace(string(b)); pid != "" {
		return pid
	}
	return "unknown"
}

func isFile(f *os.File, path string) bool {
	a, errA := f.Stat()
	b, errB := os.Stat(path)
	return errA == nil && errB == nil && os.SameFile(a, b)
}

// release removes the file and then drops the lock. In this order, a program that opened the file in between sees that
// the file is gone, and makes another. If another program has replaced the file, it stays.
func (l *fileLock) release() {
	if isFile(l.file, l.file.Name()) {
		os.Remove(l.file.Name())
	}
	l.file.Close()
}
