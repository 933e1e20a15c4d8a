// Package capture writes what a director's tap takes as a pcapng file.
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

// Counts is what a capture has come to, in packets.
type Counts struct{ Before, After, Lost uint64 }

// Write writes the packets of tap to w, as they come, and returns when there are no more, or with ctx. It calls flush
// whenever what there is has been written. sources are the addresses that the kernel sends tunnel packets from, by
// their destination, where the director leaves that to it.
func Write(ctx context.Context, w io.Writer, flush func() error, tap *forward.Capture,
	sources func(netip.Addr) netip.Addr) (c Counts, err error) {
	const longest = 1 << 18 // what tcpdump takes for unlimited
	face := func(name, comment string) pcapgo.NgInterface {
		return pcapgo.NgInterface{Name: name, Comment: comment, LinkType: layers.LinkTypeRaw, SnapLength: longest}
	}
	begin := time.Now()
	ng, err := pcapgo.NewNgWriterInterface(w, face("before", "as the director has read them, super-packets whole, "+
		"and with checksums that the kernel leaves to the network card"),
		pcapgo.NgWriterOptions{SectionInfo: pcapgo.NgSectionInfo{Application: "vstun director"}})
	if err != nil {
		return c, err
	}
	if _, err := ng.AddInterface(face("after", "as the director has sent them; what the kernel fills in itself is "+
		"made up: the outer IPv4 checksum, an ID of 0, and in UDP tunnels, where it makes all "+
		"headers, the outer ones")); err != nil {
		return c, err
	}
	for {
		if err := ng.Flush(); err != nil {
			return c, err
		}
		if err := flush(); err != nil {
			return c, err
		}
		taken := tap.Next(ctx)
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
	c.Lost = tap.Lost()
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

// complete fills in what the kernel would have in the IPv4 header of a packet that is sent.
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
