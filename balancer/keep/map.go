package keep

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// huge is the size of a huge page.
const huge = 2 << 20

// mostHuge is the size up to which a mapping gets huge pages: they take a second for each 400 MB or so.
const mostHuge = 256 << 20

// mapShared maps size bytes of a file from offset on, which are allocated. A large part gets huge pages, if the kernel
// has them: a random lookup then doesn't miss the TLB. tmpfs has none by itself unless it is mounted so, but collapses
// pages on request (madvise(2), MADV_COLLAPSE, Linux 6.1). Without huge pages the memory works the same, but slower.
func mapShared(fd int, offset, size int64) ([]byte, error) {
	const access = unix.PROT_READ | unix.PROT_WRITE
	if size < huge {
		return unix.Mmap(fd, offset, int(size), access, unix.MAP_SHARED|unix.MAP_POPULATE)
	}
	// Huge pages need an address that is a multiple of their size.
	place, err := unix.MmapPtr(-1, 0, nil, uintptr(size+huge), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	at, err := unix.MmapPtr(fd, offset, unsafe.Add(place, -uintptr(place)%huge), uintptr(size), access,
		unix.MAP_SHARED|unix.MAP_FIXED)
	if err != nil {
		return nil, err
	}
	b := unsafe.Slice((*byte)(at), size)
	if size <= mostHuge {
		_ = unix.Madvise(b, unix.MADV_COLLAPSE)
	}
	_ = unix.Madvise(b, unix.MADV_POPULATE_WRITE) // what is not there yet comes with its use
	return b, nil
}
