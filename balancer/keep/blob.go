package keep

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"
)

// Blob is a text in a File that is replaced in one step: after an end at any moment there is the former text or the new
// one. Its methods may be called by any number of goroutines.
type Blob struct {
	file *File
	name string

	mu   sync.Mutex
	seq  uint64
	own  [2][]byte // sections that take turns
	made int       // sections so far
	last []byte
}

// A section of a Blob has the number of the text (uint64, 0: none), its length and its CRC-32 (uint32 each), and the
// text. The text with the highest number is the present one.
const (
	blobHeader = 16
	blobLayout = 1
)

// Blob returns the blob with this name, which is empty. name has at most 40 bytes.
func (f *File) Blob(name string) *Blob { return &Blob{file: f, name: name} }

func blobSection(name string, i int) string { return fmt.Sprintf("%s%d", name, i) }

// Set replaces the text. Without room the former text stays.
func (b *Blob) Set(text []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if slices.Equal(text, b.last) {
		return
	}
	to := &b.own[b.seq%2]
	if len(*to) < blobHeader+len(text) {
		size := 4096
		for size < blobHeader+len(text) {
			size *= 2
		}
		next := b.file.Section(blobSection(b.name, b.made), blobLayout, size)
		if next == nil {
			return
		}
		*to = next
		b.made++
	}
	number := (*uint64)(unsafe.Pointer(unsafe.SliceData(*to)))
	atomic.StoreUint64(number, 0)
	binary.NativeEndian.PutUint32((*to)[8:], uint32(len(text)))
	binary.NativeEndian.PutUint32((*to)[12:], crc32.ChecksumIEEE(text))
	copy((*to)[blobHeader:], text)
	b.seq++
	atomic.StoreUint64(number, b.seq)
	b.last = slices.Clone(text)
}

// Blob returns the text of a blob, nil for none.
func (f *Former) Blob(name string) (text []byte) {
	newest := uint64(0)
	for i := 0; ; i++ {
		s := f.Section(blobSection(name, i), blobLayout)
		if len(s) < blobHeader {
			return text
		}
		number, size := binary.NativeEndian.Uint64(s), binary.NativeEndian.Uint32(s[8:])
		if number <= newest || int(size) > len(s)-blobHeader {
			continue
		}
		if t := s[blobHeader : blobHeader+size]; crc32.ChecksumIEEE(t) == binary.NativeEndian.Uint32(s[12:]) {
			newest, text = number, slices.Clone(t)
		}
	}
}
