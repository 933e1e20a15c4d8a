package keep

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vstun/testdata/testkit"
)

// folder returns an empty folder on a tmpfs of size bytes (0: as large as the machine lets it be).
func folder(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size="+size); errors.Is(err, unix.EPERM) {
		t.Skip("SKIPPED: no right to mount a tmpfs")
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// create makes a file in which every section has room.
func create(t *testing.T, path string, former *Former) *File {
	t.Helper()
	f, err := Create(path, "1.2.3", former, func(_ string, err error) { t.Errorf("no room: %v", err) })
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func reopen(t *testing.T, path string) *Former {
	t.Helper()
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// TestSections: what is written is there for the next process, under its name and layout alone.
func TestSections(t *testing.T) {
	path := filepath.Join(folder(t, "64m"), "t.table")
	f := create(t, path, nil)
	contents := map[string][]byte{}
	for name, size := range map[string]int{"small": 10, "page": 4096, "large": 5<<20 + 1, "last": 1} {
		b := f.Section(name, 7, size)
		if len(b) != size || bytes.Count(b, []byte{0}) != size {
			t.Fatalf("%s has %d bytes", name, len(b))
		}
		for i := range b {
			b[i] = byte(i*31) + name[0]
		}
		contents[name] = bytes.Clone(b)
	}
	f.SetBase(time.Minute)
	if _, err := Open(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("before Commit the path has a file: %v", err)
	}
	if err := f.Commit(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); !errors.Is(err, ErrInUse) {
		t.Errorf("while it is in use: %v", err)
	}
	f.Section("late", 7, 3)[2] = 9
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	former := reopen(t, path)
	for name, want := range contents {
		if !bytes.Equal(former.Section(name, 7), want) {
			t.Errorf("%s is not what was written", name)
		}
		if former.Section(name, 8) != nil {
			t.Errorf("%s has another layout, too", name)
		}
	}
	if b := former.Section("late", 7); !bytes.Equal(b, []byte{0, 0, 9}) {
		t.Errorf("a section after Commit: %v", b)
	}
	if former.Section("other", 7) != nil || former.Version() != "1.2.3" {
		t.Errorf("other %v, version %q", former.Section("other", 7), former.Version())
	}
	if now := former.Now(); now < time.Minute || now > 2*time.Minute {
		t.Errorf("the former clock is at %v, and was at 1m", now)
	}
}

// TestSuccession: until Commit the former file is there, whatever happens to the new one.
func TestSuccession(t *testing.T) {
	path := filepath.Join(folder(t, "64m"), "t.table")
	for i := range 3 {
		var former *Former
		if i > 0 {
			former = reopen(t, path)
			if b := former.Section("n", 1); len(b) != 1 || b[0] != byte(i) {
				t.Fatalf("start %d finds %v", i, b)
			}
			// a start that fails
			if f := create(t, path, former); f.Section("n", 1, 1) == nil || f.Close() != nil {
				t.Fatal("the second file")
			}
			// and one that is killed: only its lock goes
			if f := create(t, path, former); unlock(f.file) != nil {
				t.Fatal("the third file")
			}
		}
		f := create(t, path, former)
		f.Section("n", 1, 1)[0] = byte(i + 1)
		if _, err := Create(path, "", nil, nil); !errors.Is(err, ErrInUse) {
			t.Errorf("a second process at the same time: %v", err)
		}
		if err := f.Commit(); err != nil {
			t.Fatal(err)
		}
		if former != nil && former.Close() != nil {
			t.Error("the former file")
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestRemove: what a process has left is removed, also if it was killed before Commit; what a process uses is not.
func TestRemove(t *testing.T) {
	dir := folder(t, "64m")
	path := filepath.Join(dir, "t.table")
	must(t, Remove(path))
	f := create(t, path, nil)
	if err := Remove(path); !errors.Is(err, ErrInUse) {
		t.Errorf("before Commit: %v", err)
	}
	must(t, f.Commit())
	if err := Remove(path); !errors.Is(err, ErrInUse) {
		t.Errorf("after Commit: %v", err)
	}
	must(t, f.Close())
	must(t, os.WriteFile(path+".new", nil, 0o600))
	must(t, Remove(path))
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestForeignFiles: files of the names that a process needs, which another user has made and locked, do not keep it
// from its own.
func TestForeignFiles(t *testing.T) {
	path := filepath.Join(folder(t, "64m"), "t.table")
	for _, name := range []string{path, path + ".new"} {
		foreign, err := os.Create(name)
		must(t, err)
		defer foreign.Close()
		must(t, errors.Join(foreign.Chmod(0o644), foreign.Chown(65534, 65534), lock(foreign)))
	}
	if _, err := Open(path); errors.Is(err, ErrInUse) {
		t.Error(err)
	}
	f, err := Create(path, "", nil, func(section string, err error) { t.Error(section, err) })
	must(t, err)
	if f.Section("a", 1, 100) == nil {
		t.Error("no section")
	}
	must(t, f.Commit())
	if _, err := Open(path); !errors.Is(err, ErrInUse) {
		t.Errorf("the file of this process: %v", err)
	}
	must(t, f.Close())
}

// TestNotRegular: a device, directory, FIFO or link at the path stays there, and no file is left beside it.
func TestNotRegular(t *testing.T) {
	for name, put := range map[string]func(path string) error{
		"device":    func(path string) error { return unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))) },
		"directory": func(path string) error { return os.Mkdir(path, 0o700) },
		"fifo":      func(path string) error { return unix.Mkfifo(path, 0o600) },
		"link":      func(path string) error { return os.Symlink("nowhere", path) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := folder(t, "8m")
			path := filepath.Join(dir, "t.table")
			must(t, put(path))
			before, err := os.Lstat(path)
			must(t, err)
			check := func(after string) {
				t.Helper()
				is, err := os.Lstat(path)
				if err != nil || is.Mode() != before.Mode() {
					t.Errorf("after %s: %v, %v", after, is, err)
				}
				if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
					t.Errorf("after %s: %v, %v", after, left, err)
				}
			}
			if _, err := Create(path, "", nil, nil); !errors.Is(err, ErrNotRegular) {
				t.Errorf("Create: %v", err)
			}
			check("Create")
			if err := Remove(path); err == nil {
				t.Error("Remove returns no error")
			}
			check("Remove")
		})
	}
}

// TestCommitFails: a file that cannot take its path is removed.
func TestCommitFails(t *testing.T) {
	dir := folder(t, "8m")
	path := filepath.Join(dir, "t.table")
	f := create(t, path, nil)
	must(t, os.Mkdir(path, 0o700)) // meanwhile
	if err := f.Commit(); err == nil {
		t.Error("Commit returns no error")
	}
	must(t, f.Close())
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestSettle: Settle changes no byte while others write, and takes sections that come later, too.
func TestSettle(t *testing.T) {
	f := create(t, filepath.Join(folder(t, "64m"), "t.table"), nil)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	used := func(size int) {
		t.Helper()
		b := f.Section(fmt.Sprint(size), 1, size)
		if len(b) != size {
			t.Fatalf("no section of %d bytes", size)
		}
		running.Go(func() {
			for n := byte(1); ctx.Err() == nil; n++ {
				for i := 0; i < size; i += 64 {
					if b[i] != n-1 {
						t.Errorf("byte %d of %d is %d, want %d", i, size, b[i], n-1)
						return
					}
					b[i] = n
				}
			}
		})
	}
	settled := func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.unsettled) == 0
	}
	used(9 << 20)
	used(100)
	if settled() {
		t.Error("a start waits for it")
	}
	running.Go(func() { must(t, f.Settle(ctx)) })
	testkit.Eventually(t, "the sections are settled", settled)
	used(5<<20 + 1)
	testkit.Eventually(t, "the third one is settled", settled)
	cancel()
	running.Wait()
	must(t, errors.Join(f.Commit(), f.Close()))
}

// TestNoRoom: a section is given or refused at once, and what is refused takes no space.
func TestNoRoom(t *testing.T) {
	path := filepath.Join(folder(t, "8m"), "t.table")
	var failures []error
	f, err := Create(path, "", nil, func(name string, err error) {
		failures = append(failures, fmt.Errorf("%s: %w", name, err))
	})
	if err != nil {
		t.Fatal(err)
	}
	if b := f.Section("fits", 1, 1<<20); b == nil {
		t.Fatal("no room for 1 MB of 8")
	}
	for range 2 {
		if b := f.Section("not", 1, 16<<20); b != nil {
			t.Fatal("16 MB of 8")
		}
	}
	if len(failures) != 1 || !errors.Is(failures[0], unix.ENOSPC) || !strings.HasPrefix(failures[0].Error(), "not: ") {
		t.Errorf("failures: %v", failures)
	}
	if f.Section("less", 1, 1<<20) == nil {
		t.Error("no room for another MB of 8")
	}
	if err := errors.Join(f.Commit(), f.Close()); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Size() > 5<<20 {
		t.Errorf("the file has %d bytes, %v", st.Size(), err)
	}
	if former := reopen(t, path); len(former.Section("fits", 1)) != 1<<20 || former.Section("not", 1) != nil {
		t.Error("other sections")
	}
}

// TestRoomForOne: where there is no room for two files, the former one makes room, and its sections stay readable.
func TestRoomForOne(t *testing.T) {
	path := filepath.Join(folder(t, "12m"), "t.table")
	want := leave(t, path, 5<<20)
	former := reopen(t, path)
	before := former.Section("a", 1)
	next := create(t, path, former)
	if next.Section("a", 1, 7<<20) == nil {
		t.Fatal("no room")
	}
	if !bytes.Equal(before, want) || !bytes.Equal(former.Section("a", 1), want) {
		t.Error("the former section has changed")
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the former file takes space: %v", err)
	}
	if err := errors.Join(next.Commit(), next.Close()); err != nil {
		t.Error(err)
	}
}

// TestFullTmpfs: where the former file has taken all space, its space is free for the next one, even for the header. To
// read the former file takes none: what is between its sections stays a hole.
func TestFullTmpfs(t *testing.T) {
	dir := folder(t, "8m")
	path := filepath.Join(dir, "t.table")
	want := leave(t, path, 3<<20)
	space := func() (st unix.Statfs_t) {
		must(t, unix.Statfs(dir, &st))
		return st
	}
	st := space()
	former := reopen(t, path)
	if now := space(); now.Bfree != st.Bfree {
		t.Errorf("%d pages are free, before %d", now.Bfree, st.Bfree)
	}
	full, err := os.Create(filepath.Join(dir, "full"))
	must(t, err)
	must(t, errors.Join(unix.Fallocate(int(full.Fd()), 0, 0, int64(st.Bfree)*st.Bsize), full.Close()))
	if !bytes.Equal(former.Section("a", 1), want) {
		t.Error("another section")
	}
	next := create(t, path, former)
	if next.Section("a", 1, 2<<20) == nil || !bytes.Equal(former.Section("a", 1), want) {
		t.Error("no room, or another former section")
	}
	must(t, errors.Join(next.Commit(), next.Close()))
}

// TestReserve: a large section leaves space for other programs on the tmpfs that they share. A small one need not.
func TestReserve(t *testing.T) {
	dir := folder(t, "64m")
	refused := 0
	f, err := Create(filepath.Join(dir, "t.table"), "", nil, func(string, error) { refused++ })
	must(t, err)
	was := shared
	shared = dir
	defer func() { shared = was }()
	if f.Section("fits", 1, 24<<20) == nil || f.Section("not", 1, 16<<20) != nil || f.Section("small", 1, 9000) == nil {
		t.Error("sections")
	}
	shared = was
	if f.Section("not shared", 1, 12<<20) == nil || refused != 1 {
		t.Errorf("%d refused", refused)
	}
	must(t, f.Close())
}

// TestUnusable: a file that is not this process's own, or damaged, is no reason to fail.
func TestUnusable(t *testing.T) {
	for name, c := range map[string]struct {
		spoil  func(t *testing.T, path string)
		reason string
	}{
		"empty":   {func(t *testing.T, path string) { must(t, os.Truncate(path, 0)) }, "too short"},
		"cut off": {func(t *testing.T, path string) { must(t, os.Truncate(path, 3*pageSize)) }, "cut off"},
		"other":   {func(t *testing.T, path string) { overwrite(t, path, 0, "something else") }, "no such file"},
		"layout":  {func(t *testing.T, path string) { overwrite(t, path, offLayout, "\x77") }, "another layout"},
		"boot":    {func(t *testing.T, path string) { overwrite(t, path, offBoot, "00000000-1111") }, "another boot"},
		"size":    {func(t *testing.T, path string) { overwrite(t, path, pageSize+offSecSize+5, "\x01") }, "damaged"},
		"start": {func(t *testing.T, path string) { overwrite(t, path, pageSize+offSecStart, "\x00\x00") },
			"damaged"},
		"writable": {func(t *testing.T, path string) { must(t, os.Chmod(path, 0o666)) }, "another user"},
		"foreign":  {func(t *testing.T, path string) { must(t, os.Chown(path, 65534, 65534)) }, "another user"},
		"linked":   {func(t *testing.T, path string) { must(t, os.Link(path, path+"2")) }, "one name"},
		"symbolic": {func(t *testing.T, path string) {
			must(t, os.Rename(path, path+"2"))
			must(t, os.Symlink(path+"2", path))
		}, "symbolic link"},
		"folder": {func(t *testing.T, path string) { must(t, os.Remove(path)); must(t, os.Mkdir(path, 0o700)) },
			"no regular file"},
		"fifo": {func(t *testing.T, path string) { must(t, os.Remove(path)); must(t, unix.Mkfifo(path, 0o600)) },
			"no regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(folder(t, "8m"), "t.table")
			f := create(t, path, nil)
			f.Section("a", 1, 100_000)
			must(t, errors.Join(f.Commit(), f.Close()))
			c.spoil(t, path)
			former, err := Open(path)
			var unusable *UnusableError
			if !errors.As(err, &unusable) || !strings.Contains(unusable.Reason, c.reason) {
				t.Errorf("%v, %v; want an UnusableError: %s", former, err, c.reason)
			}
		})
	}
}

// leave makes the file of a process that has ended, with a section "a" of n bytes, which it returns.
func leave(t *testing.T, path string, n int) (section []byte) {
	t.Helper()
	f := create(t, path, nil)
	b := f.Section("a", 1, n)
	for i := range b {
		b[i] = byte(i * 7)
	}
	section = bytes.Clone(b)
	must(t, errors.Join(f.Commit(), f.Close()))
	must(t, errors.Join(unmap(f.header), unmap(b))) // the process's end
	return section
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func overwrite(t *testing.T, path string, at int64, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt([]byte(text), at)
	must(t, errors.Join(err, f.Close()))
}

// TestBlob: a text replaces the one before, of whatever size, and a damaged text gives way to that.
func TestBlob(t *testing.T) {
	path := filepath.Join(folder(t, "64m"), "t.table")
	f := create(t, path, nil)
	b := f.Blob("text")
	must(t, f.Commit())
	read := func() string {
		if f.file != nil {
			must(t, unlock(f.file)) // as if it were killed
		}
		former, err := Open(path)
		must(t, err)
		text := string(former.Blob("text"))
		must(t, former.Close())
		f.file, err = os.OpenFile(path, os.O_RDWR, 0)
		must(t, err)
		return text
	}
	if got := read(); got != "" {
		t.Errorf("an empty blob has %q", got)
	}
	for _, n := range []int{1, 0, 10, 5000, 20, 30, 9000, 9000, 40_000, 1} {
		text := strings.Repeat("x", n) + time.Now().String()
		b.Set([]byte(text))
		if got := read(); got != text {
			t.Errorf("of %d bytes %d are there", len(text), len(got))
		}
	}
	b.Set([]byte("before"))
	b.Set([]byte("after"))
	b.own[(b.seq+1)%2][blobHeader] = '!'
	if got := read(); got != "before" {
		t.Errorf("with a damaged text there is %q", got)
	}
	must(t, f.Close())
}

// TestPath: beside the socket on tmpfs, else in /dev/shm.
func TestPath(t *testing.T) {
	dir := folder(t, "1m")
	for socket, want := range map[string]string{
		dir + "/director.sock": dir + "/director.table",
		dir + "/c":             dir + "/c.table",
		"/proc/a%b/c.sock":     "/dev/shm/vstun%proc%a%%b%c.table",
		"/not/there/c.sock":    "/dev/shm/vstun%not%there%c.table",
	} {
		if got := Path(socket, ".table"); got != want {
			t.Errorf("%s: %s, want %s", socket, got, want)
		}
	}
	if _, err := Create("/proc/t.table", "", nil, nil); !errors.Is(err, ErrNoTmpfs) {
		t.Errorf("a file elsewhere: %v", err)
	}
}
