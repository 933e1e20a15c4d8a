package routing

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

func emptyDir(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		t.Errorf("left behind: %s", e.Name())
	}
}

func TestOpenIsALock(t *testing.T) {
	t.Parallel()
	newHost(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "director.journal")
	first, err := Open(path, nil)
	must(t, err)
	must(t, first.Set(fullState()))
	before, journal := machineState(t), readFile(t, path)
	lock := readFile(t, path+lockSuffix)

	_, err = Open(path, nil)
	want := "another program uses " + path + " (process " + strconv.Itoa(os.Getpid()) + "): "
	if err == nil || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "\n") {
		t.Errorf("error %q, want one line that begins with %q", err, want)
	}
	sameState(t, before, machineState(t))
	if readFile(t, path) != journal || readFile(t, path+lockSuffix) != lock {
		t.Error("the second Open changed the first one's files")
	}
	must(t, first.Close())
	emptyDir(t, dir)

	again, err := Open(path, nil)
	must(t, err)
	must(t, again.Close())
	emptyDir(t, dir)
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return string(b)
}

func TestFailedOpenLeavesNoLock(t *testing.T) {
	t.Parallel()
	newHost(t)
	before := machineState(t)
	path := filepath.Join(t.TempDir(), "journal.json")
	must(t, os.WriteFile(path, []byte("{"), 0o600))
	if _, err := Open(path, nil); err == nil {
		t.Fatal("a damaged journal was taken")
	}
	sameState(t, before, machineState(t))
	if readFile(t, path) != "{" {
		t.Error("the damaged journal was changed")
	}
	must(t, os.Remove(path))
	emptyDir(t, filepath.Dir(path))
}

func TestCloseAfterAFailedStartLeavesNoFile(t *testing.T) {
	t.Parallel()
	newHost(t)
	before := machineState(t)
	for name, spoil := range map[string]func(*State){
		"before a change":    func(s *State) { s.Links[0].Name = "nosuch" },
		"after some of them": func(s *State) { s.Sysctls[3].Value = "loose" },
	} {
		dir := t.TempDir()
		m, err := Open(filepath.Join(dir, "journal.json"), nil)
		must(t, err)
		s := fullState()
		spoil(&s)
		if err := m.Set(s); err == nil {
			t.Errorf("%s: no error", name)
		}
		must(t, m.Close())
		emptyDir(t, dir)
		sameState(t, before, machineState(t))
	}
}

// While the holder releases the lock, each other program gets a lock on an existing file, alone.
func TestLockIsHeldByOneAtATime(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "journal.json")
	var holders, taken atomic.Int32
	var crowd sync.WaitGroup
	for range 8 {
		crowd.Go(func() {
			for taken.Load() < 500 {
				l, err := acquireLock(path)
				if err != nil {
					continue
				}
				taken.Add(1)
				if n := holders.Add(1); n != 1 {
					t.Errorf("%d holders", n)
				}
				if !isFile(l.file, path+lockSuffix) {
					t.Error("the lock is on a file that is gone")
				}
				holders.Add(-1)
				l.release()
			}
		})
	}
	crowd.Wait()
	emptyDir(t, dir)
}

func TestReleaseLeavesTheFileOfAnother(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.json")
	first, err := acquireLock(path)
	must(t, err)
	must(t, os.Remove(path+lockSuffix)) // by hand
	second, err := acquireLock(path)
	must(t, err)
	first.release()
	if _, err := acquireLock(path); err == nil {
		t.Error("a third holder, while the second has the lock")
	}
	second.release()
}
