// Package keep has memory that outlives its process: sections of a file on tmpfs, which the process maps. Another
// process finds them there after any end of the first one, kill -9 included.
//
// The file begins with a page, the header:
//
//	 0  magic, 8 bytes "vstunkep"
//	 8  layout of the file, uint32
//	12  free, uint32
//	16  end of the sections, uint64: sections beyond are not there
//	24  base, int64: CLOCK_BOOTTIME at tick 0 of the process's clock, in nanoseconds
//	32  boot id, 36 bytes
//	68  version of the program, 60 bytes, padded with 0
//
// Sections follow, each in whole pages: a page with name (48 bytes, padded with 0), layout (uint32), free (uint32),
// offset (uint64) and size (uint64) of the contents, then the contents, those of a large section at a multiple of 2 MB.
// The space of a section is allocated before it is mapped: a hole in a file on a full tmpfs is a SIGBUS. Numbers have
// the byte order of the machine. A lock on the file (flock) keeps another process away.
//
// A new file is made beside the former one, under a name of its own. It takes the former's name when it has everything,
// so an end in between loses nothing.
package keep

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	magic  = "vstunkep"
	layout = 1
	page   = 4096 // of the file; the machine's pages may be larger
)

// Offsets in the header, and in the first page of a section.
const (
	offLayout  = 8
	offEnd     = 16
	offBase    = 24
	offBoot    = 32
	offVersion = 68
	lenVersion = 60

	lenName      = 48
	offSecLayout = 48
	offSecStart  = 56
	offSecSize   = 64
)

// File is a file that this process fills. Its methods may be called by any number of goroutines.
type File struct {
	path   string // once Commit has returned
	temp   string
	failed func(section string, err error)
	header []byte

	mu     sync.Mutex
	file   *os.File
	end    int64
	room   int64   // sections of this size and larger have none
	former *Former // whose space may be used
	moved  bool    // Commit has been called

	unsettled []unsettled
	added     chan struct{} // to unsettled
}

// pageSize is the size of pages of the machine, and so the unit of sections.
var pageSize = int64(max(os.Getpagesize(), page))

// Create makes a file that takes the path with Commit. version is the program's. It calls failed for a section for
// which there is no room. The folder of path must be on tmpfs. former may be nil; its space is used if there is not
// enough for both.
func Create(path, version string, former *Former, failed func(section string, err error)) (*File, error) {
	if err := onTmpfs(filepath.Dir(path)); err != nil {
		return nil, err
	}
	f := &File{path: path, temp: path + ".new", failed: failed, room: math.MaxInt64, former: former, end: pageSize,
		added: make(chan struct{}, 1)}
	err := errors.Join(checkReplaceable(path), removeUnused(f.temp, true))
	if err != nil {
		return nil, err
	}
	if f.file, err = os.OpenFile(f.temp, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600); err != nil {
		return nil, err
	}
	if f.header, err = f.start(version); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// ErrNotRegular is that a path has no regular file but a directory, a link, or a device such as /dev/null: for
// statfs(2), /dev is a tmpfs, too.
var ErrNotRegular = errors.New("is no regular file")

// checkReplaceable returns ErrNotRegular unless the path has nothing, a regular file, or something of another user: in
// /dev/shm anyone can make something of this name.
func checkReplaceable(path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG && !isForeign(&st) {
		return fmt.Errorf("%s %w", path, ErrNotRegular)
	}
	return nil
}

// removeUnused removes a file of a process that has ended, if it is there. With foreign it removes one of another user
// in any case, or fails without ErrInUse: in /dev/shm anyone can make a file of this name, and lock it.
func removeUnused(path string, foreign bool) error {
	old, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = old.Close() }()
	var st unix.Stat_t
	if err := unix.Fstat(int(old.Fd()), &st); err != nil {
		return err
	}
	if foreign && isForeign(&st) {
		return os.Remove(path)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("%s %w", path, ErrNotRegular)
	}
	if err := lock(old); err != nil {
		return err
	}
	return os.Remove(path)
}

// start locks the file and writes its header.
func (f *File) start(version string) ([]byte, error) {
	if err := lock(f.file); err != nil {
		return nil, err
	}
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	h, err := f.allocate(0, pageSize)
	if f.freeFormer(err) {
		h, err = f.allocate(0, pageSize)
	}
	if err != nil {
		return nil, err
	}
	binary.NativeEndian.PutUint32(h[offLayout:], layout)
	binary.NativeEndian.PutUint64(h[offEnd:], uint64(pageSize))
	copy(h[offBoot:offVersion], boot)
	copy(h[offVersion:offVersion+lenVersion], version)
	copy(h, magic)
	return h, nil
}

// Section adds a section of size bytes, all 0. Its memory stays valid until the process ends. name has at most 48
// bytes, and no other section has it. Without room Section returns nil, and so does each later call for as many bytes.
func (f *File) Section(name string, layout uint32, size int) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	if int64(size) >= f.room {
		return nil
	}
	b, err := f.section(name, layout, int64(size))
	if f.freeFormer(err) {
		b, err = f.section(name, layout, int64(size))
	}
	if err != nil {
		f.room = int64(size)
		_ = f.file.Truncate(f.end) // a part may have been allocated
		f.failed(name, err)
		return nil
	}
	return b
}

// freeFormer frees the space of the former file if err is that there is too little. It reports whether it has.
func (f *File) freeFormer(err error) bool {
	if !errors.Is(err, unix.ENOSPC) || f.former == nil {
		return false
	}
	err = f.former.detach()
	f.former = nil
	return err == nil
}

// section is Section without a second try.
func (f *File) section(name string, layout uint32, size int64) ([]byte, error) {
	start := f.end + pageSize
	if size >= huge {
		start = up(start, huge)
	}
	h, err := f.allocate(f.end, pageSize)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unmap(h) }()
	b, err := f.allocate(start, up(size, pageSize))
	if err != nil {
		return nil, err
	}
	f.unsettled = append(f.unsettled, unsettled{b, huge <= size && size <= mostHuge})
	select {
	case f.added <- struct{}{}:
	default:
	}
	copy(h[:lenName], name)
	binary.NativeEndian.PutUint32(h[offSecLayout:], layout)
	binary.NativeEndian.PutUint64(h[offSecStart:], uint64(start))
	binary.NativeEndian.PutUint64(h[offSecSize:], uint64(size))
	f.end = start + up(size, pageSize)
	atomic.StoreUint64((*uint64)(unsafe.Pointer(&f.header[offEnd])), uint64(f.end))
	return b[:size:size], nil
}

// up rounds n up to a multiple of unit, a power of two.
func up(n, unit int64) int64 { return (n + unit - 1) &^ (unit - 1) }

// allocate allocates size bytes from offset on, and maps them.
func (f *File) allocate(offset, size int64) ([]byte, error) {
	fd := int(f.file.Fd())
	err := f.spare(size)
	if err == nil {
		err = unix.Fallocate(fd, 0, offset, size)
	}
	for errors.Is(err, unix.EINTR) {
		err = unix.Fallocate(fd, 0, offset, size)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: no room for %d MB: %w", f.temp, up(size, 1<<20)>>20, err)
	}
	b, err := mapShared(fd, offset, size, unix.PROT_READ|unix.PROT_WRITE)
	if err != nil {
		return nil, fmt.Errorf("%s: mmap: %w", f.temp, err)
	}
	return b, nil
}

// reserve is the space that a large section leaves in the tmpfs of shared. systemd refuses to reload its units with
// less than 16 MB (verify_run_space in systemd's src/core/dbus-manager.c), and other programs' files are there, too.
const reserve = 32 << 20

var shared = "/run"

// spare returns ENOSPC if size bytes more would leave other programs too little space.
func (f *File) spare(size int64) error {
	if size < huge {
		return nil
	}
	var file, folder unix.Stat_t
	var space unix.Statfs_t
	fd := int(f.file.Fd())
	if unix.Fstat(fd, &file) != nil || unix.Stat(shared, &folder) != nil || file.Dev != folder.Dev ||
		unix.Fstatfs(fd, &space) != nil {
		return nil
	}
	if int64(space.Bavail)*space.Bsize-size < reserve {
		return unix.ENOSPC
	}
	return nil
}

// SetBase notes that the process's clock is at now. A clock that stops while the machine sleeps is noted again from
// time to time.
func (f *File) SetBase(now time.Duration) {
	base := int64(bootTime() - now)
	at := (*int64)(unsafe.Pointer(&f.header[offBase]))
	if d := base - atomic.LoadInt64(at); d < -int64(time.Millisecond) || d > int64(time.Millisecond) {
		atomic.StoreInt64(at, base)
	}
}

// Commit gives the file its path, in place of the former one's.
func (f *File) Commit() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.former = nil
	err := os.Rename(f.temp, f.path)
	f.moved = err == nil
	return err
}

// Close gives up the file, for another process. The sections stay mapped. Without Commit the file is removed.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var err error
	if !f.moved {
		err = os.Remove(f.temp)
	}
	f.room, f.former, f.moved = 0, nil, true
	if f.file != nil {
		err = errors.Join(err, unlock(f.file))
		f.file = nil
	}
	return err
}

// Path returns the path at which a program with this control socket keeps its memory, under a name that ends with
// suffix: beside the socket if that folder is on tmpfs, else in /dev/shm.
func Path(socket, suffix string) string {
	beside := strings.TrimSuffix(socket, ".sock") + suffix
	if onTmpfs(filepath.Dir(socket)) == nil {
		return beside
	}
	return filepath.Join(SharedMemory, "vstun"+strings.ReplaceAll(strings.ReplaceAll(beside, "%", "%%"), "/", "%"))
}

// SharedMemory is the folder for files whose socket is not on tmpfs (shm_overview(7)).
const SharedMemory = "/dev/shm"

// Remove removes what a process that has ended has left at path. It is no error if there is nothing. The error is
// ErrInUse if the process has not ended, and ErrNotRegular if the path has something else than a file.
func Remove(path string) error {
	return errors.Join(removeUnused(path, false), removeUnused(path+".new", false))
}

// ErrNoTmpfs is that a folder is not on tmpfs.
var ErrNoTmpfs = errors.New("is not on tmpfs")

// onTmpfs returns an error unless the folder is on tmpfs.
func onTmpfs(folder string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(folder, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: folder, Err: err}
	}
	if st.Type != unix.TMPFS_MAGIC {
		return fmt.Errorf("%s %w", folder, ErrNoTmpfs)
	}
	return nil
}

// bootTime returns the time since the machine's boot, sleep included: CLOCK_BOOTTIME.
func bootTime() time.Duration {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) // Linux 2.6.39
	return time.Duration(now.Nano())
}

// bootID returns the random identity of the machine's present boot (random(4)).
func bootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id)), err
}

// ErrInUse is that another process has the file.
var ErrInUse = errors.New("another process uses it")

// unlock gives up the lock of a file and closes it. A mapping alone would keep the lock.
func unlock(f *os.File) error {
	return errors.Join(unix.Flock(int(f.Fd()), unix.LOCK_UN), f.Close())
}

// lock takes the lock of an open file, which ends with the process at the latest.
func lock(f *os.File) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == unix.EWOULDBLOCK {
		return fmt.Errorf("%s: %w", f.Name(), ErrInUse)
	}
	return err
}
