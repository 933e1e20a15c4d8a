package conntab

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// hugePages asks the kernel to back the table with huge pages (madvise(2), MADV_HUGEPAGE): a random lookup in a large table then doesn't
// miss the TLB. A kernel that has none says no, and all works as well, slower.
func hugePages(slots []entry) {
	const huge = 2 << 20
	p := unsafe.Pointer(unsafe.SliceData(slots))
	size := uintptr(len(slots)) * unsafe.Sizeof(entry{})
	skip := -uintptr(p) % huge
	if size < skip+huge {
		return
	}
	size = (size - skip) / huge * huge
	_ = unix.Madvise(unsafe.Slice((*byte)(unsafe.Add(p, skip)), size), unix.MADV_HUGEPAGE)
}

// loadByte reads e's first byte, whoever may write it: its value is of no account.
//
//go:norace
//go:noinline
func loadByte(e *entry) uint8 { return e.src[0] }
