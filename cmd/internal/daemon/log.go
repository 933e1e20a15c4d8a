package daemon

import (
	"bytes"
	"io"
	"log/slog"
	"os"
	"time"
)

// Logger returns a log of records of at least level, which may change at any time, on standard error. It never waits
// for a reader: when too many lines are unread, further lines are lost. At the program's end, flush waits up to
// flushWait for the last lines.
func Logger(level slog.Leveler) (log *slog.Logger, flush func()) {
	q := newLineQueue(os.Stderr)
	return slog.New(slog.NewTextHandler(q, &slog.HandlerOptions{Level: level})), q.flush
}

const (
	logLines  = 1000                   // lines that wait to be written
	flushWait = 200 * time.Millisecond // for the last lines
)

// lineQueue is a Writer that never blocks.
type lineQueue chan queued

// queued is a line to be written. Without a line it is a mark: written is closed when all lines before are written.
type queued struct {
	line    []byte
	written chan struct{}
}

func newLineQueue(out io.Writer) lineQueue {
	q := make(lineQueue, logLines)
	go func() { // ends with the program
		for next := range q {
			if next.line != nil {
				_, _ = out.Write(next.line) // there is nowhere to report it
			} else {
				close(next.written)
			}
		}
	}()
	return q
}

// Write takes one line.
func (q lineQueue) Write(line []byte) (int, error) {
	select {
	case q <- queued{line: bytes.Clone(line)}:
	default:
	}
	return len(line), nil
}

func (q lineQueue) flush() {
	timeout := time.After(flushWait)
	done := queued{written: make(chan struct{})}
	select {
	case q <- done:
	case <-timeout:
		return
	}
	select {
	case <-done.written:
	case <-timeout:
	}
}

// loggedWarnings bounds the warnings of a configuration that are logged.
const loggedWarnings = 50

// LogWarnings logs the warnings of a configuration.
func LogWarnings(log *slog.Logger, warnings []string) {
	for i, w := range warnings {
		if i == loggedWarnings {
			log.Warn("configuration: more warnings, not logged", "warnings", len(warnings)-i)
			return
		}
		log.Warn("configuration: " + w)
	}
}
