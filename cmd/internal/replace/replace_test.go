package replace

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func write(t *testing.T, path, text string, mode fs.FileMode) {
	t.Helper()
	if err := errors.Join(os.WriteFile(path, []byte(text), mode), os.Chmod(path, mode)); err != nil {
		t.Fatal(err)
	}
}

// mustHave checks a file's text, owner, group and mode.
func mustHave(t *testing.T, path, text string, mode fs.FileMode, uid, gid uint32) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != text {
		t.Errorf("%s has %q, %v; want %q", path, got, err, text)
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil || fs.FileMode(st.Mode&0o7777) != mode || st.Uid != uid ||
		st.Gid != gid {
		t.Errorf("%s is of %d:%d with mode %o, %v; want %d:%d and %o", path, st.Uid, st.Gid, st.Mode, err, uid, gid,
			mode)
	}
}

// mustList checks the names in a folder.
func mustList(t *testing.T, dir string, want ...string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	if strings.Join(names, " ") != strings.Join(want, " ") {
		t.Errorf("%s has %q, want %q", dir, names, want)
	}
}

// TestReplace: the new text appears at Commit, with owner, group and mode, behind symbolic links, and after Discard
// not at all.
func TestReplace(t *testing.T) {
	dir, uid, gid := t.TempDir(), uint32(os.Getuid()), uint32(os.Getgid())
	file, links := filepath.Join(dir, "x.toml"), t.TempDir()
	link := filepath.Join(links, "link.toml")
	write(t, file, "old", 0o640)
	if os.Getuid() == 0 {
		uid, gid = 61234, 61235
		if err := os.Chown(file, int(uid), int(gid)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	write(t, tempName(file), "of a killed process", 0o400)
	for i, path := range []string{file, link} {
		before := []string{"old", "new0"}[i]
		r, err := Prepare(path, []byte("given up"))
		if err != nil {
			t.Fatal(err)
		}
		mustHave(t, file, before, 0o640, uid, gid)
		if err := r.Discard(); err != nil {
			t.Error(err)
		}
		mustList(t, dir, "x.toml")
		text := []string{"new0", "new1"}[i]
		if r, err = Prepare(path, []byte(text)); err != nil {
			t.Fatal(err)
		}
		mustHave(t, file, before, 0o640, uid, gid)
		if err := errors.Join(r.Commit(), r.Discard()); err != nil {
			t.Error(err)
		}
		mustHave(t, file, text, 0o640, uid, gid)
		mustList(t, dir, "x.toml")
	}
	if to, err := os.Readlink(link); err != nil || to != file {
		t.Errorf("the link leads to %q, %v", to, err)
	}
	write(t, tempName(file), "of a killed process", 0o400)
	Clean(link)
	mustList(t, dir, "x.toml")
	mustList(t, links, "link.toml")
}

// TestAccessList: the access control list stays, and none comes from the folder: an owning group without rights gets
// none.
func TestAccessList(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "x.toml")
	// acl(5): version, and for each entry tag, rights and user: owner rw, user 61236 r, group none, mask r, others none
	list := []byte("\x02\x00\x00\x00" + "\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\x34\xef\x00\x00" +
		"\x04\x00\x00\x00\xff\xff\xff\xff" + "\x10\x00\x04\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff")
	write(t, file, "old", 0o600)
	replace := func() {
		t.Helper()
		r, err := Prepare(file, []byte("new"))
		if err == nil {
			err = r.Commit()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Setxattr(file, accessList, list, 0); err != nil {
		t.Skipf("SKIPPED: needs a file system with access control lists: %v", err)
	}
	replace()
	got := make([]byte, 1000)
	if n, err := unix.Getxattr(file, accessList, got); err != nil || !bytes.Equal(got[:n], list) {
		t.Errorf("the list is %x, %v, want %x", got[:max(n, 0)], err, list)
	}
	mustHave(t, file, "new", 0o640, uint32(os.Getuid()), uint32(os.Getgid()))
	write(t, file, "old", 0o600)
	if err := errors.Join(unix.Removexattr(file, accessList), os.Chmod(file, 0o640),
		unix.Setxattr(dir, "system.posix_acl_default", list, 0)); err != nil {
		t.Fatal(err)
	}
	replace()
	if n, err := unix.Getxattr(file, accessList, got); !errors.Is(err, unix.ENODATA) {
		t.Errorf("the list is %x, %v, want none", got[:max(n, 0)], err)
	}
	mustHave(t, file, "new", 0o640, uint32(os.Getuid()), uint32(os.Getgid()))
}

// TestFullDisk: the error says that the disk is full, the file stays, and nothing is left.
func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root, to mount a file system")
	}
	dir := t.TempDir()
	done := make(chan struct{})
	go func() { // its thread, with a mount namespace of its own, ends with it
		defer close(done)
		runtime.LockOSThread()
		if err := errors.Join(unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS),
			unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
			unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k")); err != nil {
			t.Error(err)
			return
		}
		file := filepath.Join(dir, "x.toml")
		if err := os.WriteFile(file, []byte("old"), 0o600); err != nil {
			t.Error(err)
			return
		}
		if _, err := Prepare(file, make([]byte, 1<<20)); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%v, want that the disk is full", err)
		}
		mustHave(t, file, "old", 0o600, 0, 0)
		mustList(t, dir, "x.toml")
	}()
	<-done
}

// TestIrreplaceable: the error names the reason, the file stays, and nothing is left.
func TestIrreplaceable(t *testing.T) {
	dir := t.TempDir()
	for name, make := range map[string]func(path string) error{
		"no such file":       func(string) error { return nil },
		"no regular file":    func(path string) error { return unix.Mkfifo(path, 0o600) },
		"not a directory":    func(path string) error { return os.Symlink("/dev/null/x", path) },
		"no such file or":    func(path string) error { return os.Symlink("missing", path) },
		"too many":           func(path string) error { return os.Symlink(path, path) },
		"is no regular file": func(path string) error { return os.Mkdir(path, 0o700) },
	} {
		path := filepath.Join(dir, "x.toml")
		if err := make(path); err != nil {
			t.Fatal(err)
		}
		if _, err := Prepare(path, []byte("new")); err == nil || !strings.Contains(err.Error(), name) ||
			strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
		_ = os.Remove(path) // it may be missing
		mustList(t, dir)
	}
}

// TestCommitFails: the file has become something else meanwhile. Nothing is left.
func TestCommitFails(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x.toml")
	write(t, path, "old", 0o600)
	r, err := Prepare(path, []byte("new"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := r.Commit(); err == nil {
		t.Error("a file has replaced a folder")
	}
	mustList(t, dir, "x.toml")
}
