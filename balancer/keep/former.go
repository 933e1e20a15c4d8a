package keep

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Former is the file of a process that has ended. Nothing may be written to its sections.
type Former struct {
	path    string
	version string
	base    time.Duration

	mu       sync.Mutex
	file     *os.File
	memory   []byte // the whole file; nil: closed
	parts    []part // of memory, that are no holes
	sections map[string]kept
}

// kept is a section of a Former.
type kept struct {
	layout uint32
	bytes  []byte
}

// part is the bytes from begin to end of a Former, in whole pages. All else are holes: to read there takes space, or is
// a SIGBUS on a full tmpfs.
type part struct{ begin, end uint64 }

// UnusableError is that a file has nothing for this process: it is of another boot or another layout, damaged, or of
// another user.
type UnusableError struct{ Path, Reason string }

func (e *UnusableError) Error() string { return e.Path + ": " + e.Reason }

// Open opens the file that a former process has left at path, and keeps other processes away from it. The error is
// os.ErrNotExist if there is none, ErrInUse if its process has not ended, or an *UnusableError.
func Open(path string) (*Former, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) {
		return nil, &UnusableError{path, "is a symbolic link"}
	}
	if err != nil {
		return nil, err
	}
	f := &Former{path: path, file: file, sections: map[string]kept{}}
	if err := f.open(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// open checks the file and finds its sections.
func (f *Former) open() error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.file.Fd()), &st); err != nil {
		return err
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1:
		return f.unusable("is no regular file of one name")
	case isForeign(&st) || st.Mode&0o022 != 0: // in /dev/shm anyone can make files
		return f.unusable("another user can write it")
	}
	if err := lock(f.file); err != nil {
		return err
	}
	if st.Size < pageSize {
		return f.unusable("is too short")
	}
	memory, err := mapShared(int(f.file.Fd()), 0, st.Size, unix.PROT_READ)
	if err != nil {
		return &os.PathError{Op: "mmap", Path: f.path, Err: err}
	}
	f.memory = memory
	boot, err := bootID()
	if err != nil {
		return err
	}
	h := memory[:pageSize]
	switch {
	case string(h[:len(magic)]) != magic:
		return f.unusable("is no such file")
	case binary.NativeEndian.Uint32(h[offLayout:]) != layout:
		return f.unusable("has another layout")
	case string(h[offBoot:offVersion]) != boot:
		return f.unusable("is of another boot")
	}
	f.version = text(h[offVersion : offVersion+lenVersion])
	f.base = time.Duration(binary.NativeEndian.Uint64(h[offBase:]))
	f.parts = append(f.parts, part{0, uint64(pageSize)})
	if err := f.index(binary.NativeEndian.Uint64(h[offEnd:])); err != nil {
		return err
	}
	for _, p := range f.parts { // Linux 5.14; otherwise pages are mapped with their first use
		_ = unix.Madvise(memory[p.begin:p.end], unix.MADV_POPULATE_READ)
	}
	return nil
}

// isForeign reports whether a file is of another user, who is not root.
func isForeign(st *unix.Stat_t) bool { return int(st.Uid) != os.Geteuid() && st.Uid != 0 }

// index finds the sections, up to the offset end.
func (f *Former) index(end uint64) error {
	if end > uint64(len(f.memory)) {
		return f.unusable("is cut off")
	}
	unit := uint64(pageSize)
	for at := unit; at < end; {
		if end-at < unit {
			return f.unusable("is damaged")
		}
		h := f.memory[at : at+unit]
		start, size := binary.NativeEndian.Uint64(h[offSecStart:]), binary.NativeEndian.Uint64(h[offSecSize:])
		if start < at+unit || start > end || size > end-start {
			return f.unusable("is damaged")
		}
		f.sections[text(h[:lenName])] = kept{binary.NativeEndian.Uint32(h[offSecLayout:]),
			f.memory[start : start+size : start+size]}
		f.parts = append(f.parts, part{at, at + unit}, part{start, min(start+size, uint64(len(f.memory)))})
		at = start + uint64(up(int64(size), pageSize))
	}
	return nil
}

func (f *Former) unusable(format string, args ...any) error {
	return &UnusableError{f.path, fmt.Sprintf(format, args...)}
}

// text returns the text of b, which is padded with 0.
func text(b []byte) string { return strings.TrimRight(string(b), "\x00") }

// Section returns a section, nil if there is none with this layout. It is valid until Close.
func (f *Former) Section(name string, layout uint32) []byte {
	if s := f.sections[name]; s.layout == layout {
		return s.bytes
	}
	return nil
}

// Has reports whether there is a section of this name, of any layout.
func (f *Former) Has(name string) bool {
	_, has := f.sections[name]
	return has
}

// Version returns the version of the former process's program.
func (f *Former) Version() string { return f.version }

// Now returns the present time on the former process's clock.
func (f *Former) Now() time.Duration { return bootTime() - f.base }

// detach copies the file to private memory, in place of its mapping, and removes it: its space is free then. Holes are
// left out.
func (f *Former) detach() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.file == nil {
		return nil
	}
	size := len(f.memory)
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	for _, p := range f.parts {
		copy(b[p.begin:p.end], f.memory[p.begin:p.end])
	}
	from, to := unsafe.Pointer(unsafe.SliceData(b)), unsafe.Pointer(unsafe.SliceData(f.memory))
	if _, err := unix.MremapPtr(from, uintptr(size), to, uintptr(size),
		unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED); err != nil {
		return fmt.Errorf("mremap: %w", err)
	}
	err = errors.Join(os.Remove(f.path), f.file.Close())
	f.file = nil
	return err
}

// Close gives up the file. Its sections must not be used any more.
func (f *Former) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var errs []error
	if f.memory != nil {
		errs = append(errs, unmap(f.memory))
		f.memory, f.sections = nil, nil
	}
	if f.file != nil {
		errs = append(errs, unlock(f.file))
		f.file = nil
	}
	return errors.Join(errs...)
}
