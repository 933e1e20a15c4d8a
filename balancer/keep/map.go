package keep

import (
	"context"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// huge is the size of a huge page.
const huge = 2 << 20

// mostHuge is the size up to which a mapping gets huge pages: they take a second for each 400 MB or so.
const mostHuge = 256 << 20

// mapShared maps size bytes of a file from offset on, which are allocated, with the access PROT_…. Huge pages need an
// address that is a multiple of their size.
func mapShared(fd int, offset, size int64, access int) ([]byte, error) {
	if size < huge {
		at, err := unix.MmapPtr(fd, offset, nil, uintptr(size), access, unix.MAP_SHARED)
		if err != nil {
			return nil, err
		}
		return unsafe.Slice((*byte)(at), size), nil
	}
	place, err := unix.MmapPtr(-1, 0, nil, uintptr(size+huge), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	before := -uintptr(place) % huge
	at, err := unix.MmapPtr(fd, offset, unsafe.Add(place, before), uintptr(size), access,
		unix.MAP_SHARED|unix.MAP_FIXED)
	if err != nil {
		_ = unix.MunmapPtr(place, uintptr(size+huge))
		return nil, err
	}
	return unsafe.Slice((*byte)(at), size), nil
}

// unmap ends the mapping of a slice that mapShared has returned.
func unmap(b []byte) error {
	return unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(b)), uintptr(len(b)))
}

// settleShare is the share of a CPU that Settle takes, as a divisor.
const settleShare = 10

// Settle makes the sections faster, until ctx ends: it takes a tenth of a CPU, for ten seconds each 400 MB or so. A
// start does not wait for that. Other goroutines may use the sections meanwhile.
//
// A large section gets huge pages, if the kernel has them: a random lookup then doesn't miss the TLB. tmpfs has none by
// itself unless it is mounted so, but collapses pages on request (madvise(2), MADV_COLLAPSE, Linux 6.1). Without huge
// pages the memory works the same, but slower. Pages that have not been used yet are mapped (MADV_POPULATE_WRITE, Linux
// 5.14), otherwise with their first use.
func (f *File) Settle(ctx context.Context) error {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		part, collapse := f.takeUnsettled()
		if part == nil {
			select {
			case <-ctx.Done():
				return nil
			case <-f.added:
			}
			continue
		}
		begin := time.Now()
		if collapse {
			_ = unix.Madvise(part, unix.MADV_COLLAPSE)
		}
		_ = unix.Madvise(part, unix.MADV_POPULATE_WRITE)
		pause.Reset((settleShare - 1) * time.Since(begin))
		select {
		case <-ctx.Done():
			return nil
		case <-pause.C:
		}
	}
}

// takeUnsettled returns the next part that Settle has not had yet, nil if there is none, and whether it gets a huge
// page.
func (f *File) takeUnsettled() (part []byte, collapse bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.unsettled) == 0 {
		return nil, false
	}
	s := &f.unsettled[0]
	n := min(huge, len(s.rest))
	part, collapse = s.rest[:n], s.collapse
	if s.rest = s.rest[n:]; len(s.rest) == 0 {
		f.unsettled = f.unsettled[1:]
	}
	return part, collapse
}

// unsettled is the rest of a section that Settle has not had yet.
type unsettled struct {
	rest     []byte
	collapse bool // it gets huge pages
}
