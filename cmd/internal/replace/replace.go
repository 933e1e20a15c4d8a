// Package replace gives a file another text in one step: a reader, and the next start after a crash, finds the whole
// former text or the whole new one.
package replace

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Replacement is the new text of a file. It lies in a file of its own beside it until Commit.
type Replacement struct{ path, temp string }

// Prepare writes the new text of the file at path to the disk, with the file's owner, group, mode and access list. Of a
// symbolic link it replaces the file that the link leads to. An error is a reason why the file cannot be replaced; then
// nothing is left. The caller calls Commit or Discard, and prepares no other text for the file until then.
func Prepare(path string, text []byte) (*Replacement, error) {
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, err
	}
	info, err := replaceable(target)
	if err != nil {
		return nil, fmt.Errorf("%s %w", target, err)
	}
	r := &Replacement{path: target, temp: tempName(target)}
	if err := remove(r.temp); err != nil { // of a process that was killed
		return nil, err
	}
	f, err := os.OpenFile(r.temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err = fill(f, text, target, info); err != nil {
		return nil, errors.Join(err, r.Discard())
	}
	return r, nil
}

// fill makes f a file with this text, and with the owner, group, mode and access list of the file at path, as in info.
func fill(f *os.File, text []byte, path string, info *unix.Statx_t) error {
	err := keepOwner(f, int(info.Uid), int(info.Gid))
	if err == nil {
		err = keepAccess(f, path)
	}
	if err == nil {
		_, err = f.Write(text)
	}
	if err == nil {
		err = f.Chmod(fs.FileMode(info.Mode & 0o777))
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// keepOwner gives f an owner and group.
func keepOwner(f *os.File, uid, gid int) error {
	var is unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &is); err != nil {
		return err
	}
	if int(is.Uid) == uid && int(is.Gid) == gid {
		return nil
	}
	if err := f.Chown(uid, gid); err != nil {
		return fmt.Errorf("it belongs to user %d and group %d, to which this program, as user %d and group %d, cannot "+
			"give a new file: %w", uid, gid, is.Uid, is.Gid, err)
	}
	return nil
}

// accessList is the name of a file's access control list; acl(5).
const accessList = "system.posix_acl_access"

// keepAccess gives f the access control list of the file at path, or none, even if the folder has a default one. With a
// list, a mode has no rights of the group: they would become those of the list's mask.
func keepAccess(f *os.File, path string) error {
	list := make([]byte, 64<<10) // the largest that Linux has
	n, err := unix.Lgetxattr(path, accessList, list)
	switch {
	case err == nil:
		err = unix.Fsetxattr(int(f.Fd()), accessList, list[:n], 0)
	case errors.Is(err, unix.ENODATA):
		err = unix.Fremovexattr(int(f.Fd()), accessList)
	}
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	return err
}

// replaceable returns what is known of a file that rename(2) can replace, or the reason why it can't.
func replaceable(path string) (*unix.Statx_t, error) {
	var info unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS, &info); err != nil {
		return nil, fmt.Errorf("cannot be examined: %w", err)
	}
	switch {
	case info.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, errors.New("is no regular file")
	case info.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0:
		return nil, errors.New("is a mount of its own, as of a container's volume: mount its folder instead")
	case info.Attributes&(unix.STATX_ATTR_IMMUTABLE|unix.STATX_ATTR_APPEND) != 0:
		return nil, errors.New("is immutable, see chattr(1)")
	}
	return &info, nil
}

// Commit puts the new text in the place of the former one. On an error the file has its former text, and nothing is
// left.
func (r *Replacement) Commit() error {
	if err := os.Rename(r.temp, r.path); err != nil {
		return errors.Join(err, r.Discard())
	}
	syncFolder(filepath.Dir(r.path))
	return nil
}

// Discard removes the new text. After Commit it does nothing.
func (r *Replacement) Discard() error { return remove(r.temp) }

// Clean removes the new text that a killed process has left beside the file at path. It does nothing if it may not.
func Clean(path string) {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		_ = remove(tempName(target)) // the next Prepare reports it
	}
}

// tempName returns the path of the new text, in the folder of the file: a rename does not cross file systems.
func tempName(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".vstun-new")
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// syncFolder keeps a crash of the machine from undoing a rename, if the folder's file system can do that.
func syncFolder(path string) {
	if d, err := os.Open(path); err == nil {
		_ = d.Sync() // without it the former text, which is whole, may come back
		_ = d.Close()
	}
}
