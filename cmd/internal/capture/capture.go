// Package capture writes the packets of a director's capture as a pcapng file.
package capture

import (
	"context"
	"io"
	"net/netip"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"vstun/balancer/forward"
	"vstun/encap/packet"
)

// The interfaces of the file.
const (
	before = iota
	after
)

// Counts is the size of a capture, in packets. Lost counts packets that were not written.
type Counts struct{ Before, After, Lost uint64 }

// Write writes the packets of from to w as they come. It returns when the capture or ctx has ended. It calls flush
// whenever it has written all packets so far. sources returns the kernel's source address of tunnel packets to a
// destination, for packets whose source the director leaves to the kernel.
func Write(ctx context.Context, w io.Writer, flush func() error, from *forward.Capture,
	sources func(netip.Addr) netip.Addr) (c Counts, err error) {
	const longest = 1 << 18 // tcpdump's unlimited
	face := func(name, comment string) pcapgo.NgInterface {
		return pcapgo.NgInterface{Name: name, Comment: comment, LinkType: layers.LinkTypeRaw, SnapLength: longest}
	}
	begin := time.Now()
	ng, err := pcapgo.NewNgWriterInterface(w, face("before", "as the director has read them: GSO packets are whole, "+
		"and some checksums are left to the network card"),
		pcapgo.NgWriterOptions{SectionInfo: pcapgo.NgSectionInfo{Application: "vstun director"}})
	if err != nil {
		return c, err
	}
	if _, err := ng.AddInterface(face("after", "as the director has sent them; headers that the kernel fills in are "+
		"reconstructed: the outer IPv4 checksum, an ID of 0, and in UDP tunnels all outer headers")); err != nil {
		return c, err
	}
	for {
		if err := ng.Flush(); err != nil {
			return c, err
		}
		if err := flush(); err != nil {
			return c, err
		}
		taken := from.Next(ctx)
		if len(taken) == 0 {
			break
		}
		for _, p := range taken {
			face, n := before, &c.Before
			if p.Sent {
				face, n = after, &c.After
				complete(p.Bytes, sources)
			}
			*n++
			info := gopacket.CaptureInfo{Timestamp: p.Time, CaptureLength: len(p.Bytes), Length: len(p.Bytes),
				InterfaceIndex: face}
			if err := ng.WritePacket(info, p.Bytes); err != nil {
				return c, err
			}
		}
	}
	c.Lost = from.Lost()
	for face, n := range []uint64{before: c.Before, after: c.After} {
		stats := pcapgo.NgInterfaceStatistics{StartTime: begin, EndTime: time.Now(), LastUpdate: time.Now(),
			PacketsReceived: n, PacketsDropped: c.Lost}
		if err := ng.WriteInterfaceStats(face, stats); err != nil {
			return c, err
		}
	}
	if err := ng.Flush(); err != nil {
		return c, err
	}
	return c, flush()
}

// complete fills in the fields of a sent packet's outer IPv4 header that the kernel fills in.
func complete(b []byte, sources func(netip.Addr) netip.Addr) {
	if packet.Version(b) != 4 {
		return
	}
	h := packet.IPv4(b)
	if source := sources(h.Dst()); h.Src().IsUnspecified() && source.Is4() {
		h.SetSrc(source.As4())
	}
	h.SetChecksum()
}
