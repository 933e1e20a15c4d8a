package conntab

import (
	"fmt"
	"hash/crc32"
	"net/netip"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Memory is memory that outlives the process, in named sections.
type Memory interface {
	// Section returns size bytes, all 0, aligned to a cache line. It returns nil if there is no room. layout identifies
	// the layout of the contents.
	Section(name string, layout uint32, size int) []byte
}

// Former is the Memory of a process that has ended.
type Former interface {
	// Section returns a section, nil if there is none with this layout. Nothing may be written there.
	Section(name string, layout uint32) []byte
}

// assuredSection has a bit for each number of a template: whether the template is assured.
const assuredSection = "assured"

// slotsSection returns the name of the section that has the slots of A.
func slotsSection[A address]() string {
	var a A
	return fmt.Sprintf("slots%d", len(a))
}

// slotsLayout identifies the layout of entries of A: sizes, offsets, states and flags. Another version of the program
// may have another one.
func slotsLayout[A address]() uint32 {
	var e entry[A]
	return crc32.ChecksumIEEE(fmt.Appendln(nil, 1, PerSecond, unsafe.Sizeof(e), unsafe.Offsetof(e.sport),
		unsafe.Offsetof(e.proto), unsafe.Offsetof(e.state), unsafe.Offsetof(e.flags), unsafe.Offsetof(e.dest),
		unsafe.Offsetof(e.expires), unsafe.Offsetof(e.value), unsafe.Offsetof(e.ref), strings.Join(stateNames[:], ","),
		twoWay, ended, reported))
}

// bitsLayout is the layout of a section of bits.
const bitsLayout = 1

// memoryFor returns n empty slots: in the table's Memory, else in private memory.
func memoryFor[A address](t *Table, n int) []entry[A] {
	var e entry[A]
	if b := t.section(slotsSection[A](), slotsLayout[A](), n*int(unsafe.Sizeof(e))); b != nil {
		return asSlice[entry[A]](b)
	}
	all := make([]entry[A], n)
	hugePages(unsafe.Pointer(unsafe.SliceData(all)), uintptr(n)*unsafe.Sizeof(e))
	return all
}

// section returns a section of the table's Memory, nil for none.
func (t *Table) section(name string, layout uint32, size int) []byte {
	if t.memory == nil {
		return nil
	}
	return t.memory.Section(name, layout, size)
}

// asSlice returns b as a slice of T, which has no pointers.
func asSlice[T any](b []byte) []T {
	var one T
	return unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/int(unsafe.Sizeof(one)))
}

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
