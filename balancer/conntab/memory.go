package conntab

import (
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// hugePages asks the kernel to back size bytes from p with huge pages (madvise(2), MADV_HUGEPAGE): a random lookup in a
// large table then doesn't miss the TLB. Without huge pages the table works the same, but slower; so an error is
// ignored.
func hugePages(p unsafe.Pointer, size uintptr) {
	const huge = 2 << 20
	skip := -uintptr(p) % huge
	if size < skip+huge {
		return
	}
	size = (size - skip) / huge * huge
	_ = unix.Madvise(unsafe.Slice((*byte)(unsafe.Add(p, skip)), size), unix.MADV_HUGEPAGE)
}

// loadByte reads the byte at p. A concurrent write is harmless, since the value is not used.
//
//go:norace
//go:noinline
func loadByte(p unsafe.Pointer) uint8 { return *(*uint8)(p) }

// addr returns a in its public form.
func addr[A address](a A) netip.Addr {
	if b, ok := any(a).([4]byte); ok {
		return netip.AddrFrom4(b)
	}
	return netip.AddrFrom16(any(a).([16]byte))
}
