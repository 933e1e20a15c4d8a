package packet

// Headroom is the room in front of a packet, in bytes: enough for the longest tunnel header.
const Headroom = 128

// MaxLen is the length of the largest packet a Buf holds, in bytes.
const MaxLen = 65535

// Buf is one packet in its own memory. Headroom in front of the packet lets a tunnel header be added without moving the
// packet. One goroutine owns a Buf.
type Buf struct {
	mem      []byte
	off, end int
	Offload  Offload
	// Next is the piece of the packet behind Bytes, nil for none. A GSO packet that was made of several packets stays
	// in their memory. Len and Bytes are of the first piece. Only the first piece's Offload counts.
	Next *Buf
}

// MaxChain is the largest number of pieces that a packet is in.
const MaxChain = 128

// NewBufs makes n empty buffers, side by side in one piece of memory.
func NewBufs(n int) []Buf {
	const size = Headroom + MaxLen + 1
	mem := make([]byte, n*size)
	bufs := make([]Buf, n)
	for i := range bufs {
		bufs[i] = Buf{mem: mem[i*size : (i+1)*size : (i+1)*size], off: Headroom, end: Headroom}
	}
	return bufs
}

// Room empties b and returns the MaxLen bytes for a packet. A reader writes the packet there and then calls SetLen.
func (b *Buf) Room() []byte {
	b.off, b.end, b.Offload, b.Next = Headroom, Headroom, Offload{}, nil
	return b.mem[Headroom : Headroom+MaxLen]
}

// RoomBehind is Room with n more bytes in front, at most Headroom, for a reader whose device puts a header of its own
// there. SetLen takes the length without it.
func (b *Buf) RoomBehind(n int) []byte {
	b.Room()
	return b.mem[Headroom-n : Headroom+MaxLen]
}

// SetLen sets the packet's length to n bytes. The bytes are in Room.
func (b *Buf) SetLen(n int) { b.end = b.off + n }

// Bytes is the packet. It is borrowed: valid until b is used again.
func (b *Buf) Bytes() []byte { return b.mem[b.off:b.end] }

// Len is the packet's length in bytes.
func (b *Buf) Len() int { return b.end - b.off }

// Prepend adds n bytes before the packet, at most Headroom in all, and returns them. Their contents are undefined.
func (b *Buf) Prepend(n int) []byte {
	b.off -= n
	return b.mem[b.off : b.off+n : b.off+n]
}

// Front is the number of bytes of b's memory in front of the packet. They may be another packet's, see Part.
func (b *Buf) Front() int { return b.off }

// Before returns the n bytes in front of the packet, at most Headroom. A device's reader has put a link-layer header
// there, or its writer takes one from there. Prepend overwrites it.
func (b *Buf) Before(n int) []byte { return b.mem[b.off-n : b.off : b.off] }

// Part returns the n bytes of b's packet from offset at on as a packet. It stays in b's memory, has no room in front,
// and is valid until b is used again.
func (b *Buf) Part(at, n int) Buf { return Buf{mem: b.mem, off: b.off + at, end: b.off + at + n} }

// Within returns the n bytes of mem from offset at on as a packet. It stays in mem, and is valid as long as mem is
// lent. The owner of the Buf may write to all of mem.
func Within(mem []byte, at, n int) Buf { return Buf{mem: mem, off: at, end: at + n} }

// Clone returns a copy of the packet in memory of its own, with its Offload and without room in front. The packet is in
// one piece.
func (b *Buf) Clone() *Buf {
	mem := append([]byte(nil), b.Bytes()...)
	return &Buf{mem: mem, end: len(mem), Offload: b.Offload}
}

// ChainLen is the length of the packet with all its pieces, in bytes.
func (b *Buf) ChainLen() (n int) {
	for ; b != nil; b = b.Next {
		n += b.Len()
	}
	return n
}

// Pieces is the number of the packet's pieces: the segments that were merged into it, or 1.
func (b *Buf) Pieces() (n int) {
	for ; b != nil; b = b.Next {
		n++
	}
	return n
}

// Strip takes n bytes from the packet's front.
func (b *Buf) Strip(n int) { b.off += n }

// A Segment is one packet to send: the bytes of Head, then those of Body. Two pieces let a part of a large packet be
// sent without a copy. Body may be empty. Both are borrowed until they are sent.
type Segment struct{ Head, Body []byte }

// Len is the packet's length in bytes.
func (s Segment) Len() int { return len(s.Head) + len(s.Body) }
