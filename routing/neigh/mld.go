package neigh

import (
	"context"
	"encoding/binary"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// portGroups reports the port's multicast groups to the network's switches, by version 1 of MLD (RFC 2710), which those
// of version 2 understand. Without a report, a switch that snoops on MLD keeps solicitations from the port.
type portGroups struct {
	port    *SharedPort
	local   netip.Addr
	queried chan struct{} // there is a query to answer

	mu sync.Mutex
	in map[place]bool
}

const (
	// reports is the number of times that a new group is reported: RFC 2710, section 7.1.
	reports = 2
	// reportEvery is the least time between two answers to queries. A switch waits for 1 s or longer (RFC 2710, section
	// 7.8).
	reportEvery = time.Second
)

func newPortGroups(port *SharedPort, local netip.Addr) *portGroups {
	return &portGroups{port: port, local: local, queried: make(chan struct{}, 1)}
}

func (g *portGroups) set(want map[place]bool, anew func(index int) bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	var errs []error
	for p := range want {
		if !g.in[p] || anew(p.index) {
			for range reports {
				errs = append(errs, g.send(p.addr))
			}
		}
	}
	g.in = want
	err := errors.Join(errs...)
	if errors.Is(err, unix.EIO) { // the device is down: its next state brings another call
		return nil
	}
	return err
}

// asked notes a query, and returns true. One report answers all queries since the last one.
func (g *portGroups) asked() bool {
	signal(g.queried)
	return true
}

// answer answers queries until ctx is cancelled.
func (g *portGroups) answer(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.queried:
		}
		g.report(ctx)
		select {
		case <-ctx.Done():
			return
		case <-time.After(reportEvery):
		}
	}
}

// report reports all groups, until ctx is cancelled.
func (g *portGroups) report(ctx context.Context) {
	g.mu.Lock()
	in := slices.Collect(maps.Keys(g.in))
	g.mu.Unlock()
	for i, p := range in {
		if ctx.Err() != nil {
			return
		}
		_ = g.send(p.addr) // the next query asks again
		if (i+1)%announcePart == 0 {
			time.Sleep(announcePause)
		}
	}
}

func (g *portGroups) send(group netip.Addr) error {
	return g.port.SendFrame(groupMAC(group), unix.ETH_P_IPV6, mldReport(g.local, group))
}

func (g *portGroups) close() error { return nil }

// Messages of MLD have a hop-by-hop header with the option "router alert" (RFC 2711) in front, and a hop limit of 1.
const (
	mldHead     = ipv6Len + 8
	mldLen      = mldHead + 24
	mldHopLimit = 1
	mldQuery    = 130
	mldAnswer   = 131
	hopByHop    = 0 // next header
)

// Options of a hop-by-hop header.
const (
	padOne         = 0
	routerAlert    = 5
	routerAlertLen = 2
	routerAlertMLD = 0
)

// isQuery reports whether b is a valid query for multicast listeners, of version 1 or 2: RFC 2710, sections 3 and 5;
// RFC 3810, sections 5.1.14 and 6.2. Routers do not forward such a query, so it comes from this link.
func isQuery(b []byte) bool {
	if len(b) < mldLen || b[0]>>4 != 6 || b[6] != hopByHop || b[7] != mldHopLimit ||
		!netip.AddrFrom16([16]byte(b[8:])).IsLinkLocalUnicast() {
		return false
	}
	n := int(binary.BigEndian.Uint16(b[4:]))
	if n < mldLen-ipv6Len || n > len(b)-ipv6Len {
		return false
	}
	b = b[:ipv6Len+n]
	h := b[ipv6Len:mldHead]
	return h[0] == icmpv6 && h[1] == 0 && hasMLDAlert(h[2:]) && b[mldHead] == mldQuery && mldChecksum(b) == 0
}

// hasMLDAlert reports whether the options of a hop-by-hop header have a router alert for MLD.
func hasMLDAlert(options []byte) bool {
	for o := options; len(o) > 0; {
		if o[0] == padOne {
			o = o[1:]
			continue
		}
		if len(o) < 2 || 2+int(o[1]) > len(o) {
			return false
		}
		if o[0] == routerAlert {
			return o[1] == routerAlertLen && binary.BigEndian.Uint16(o[2:]) == routerAlertMLD
		}
		o = o[2+int(o[1]):]
	}
	return false
}

// mldChecksum is ndChecksum for a message of MLD. The hop-by-hop header does not count.
func mldChecksum(b []byte) uint16 {
	return ndChecksum(slices.Concat(b[:ipv6Len], b[mldHead:]))
}

// mldReport returns the report that the host with the link-local address from is in a group (RFC 2710, section 3).
func mldReport(from, group netip.Addr) []byte {
	b := make([]byte, mldLen)
	b[0], b[6], b[7] = 0x60, hopByHop, mldHopLimit
	binary.BigEndian.PutUint16(b[4:], mldLen-ipv6Len)
	copy(b[8:], from.AsSlice())
	copy(b[24:], group.AsSlice())
	copy(b[ipv6Len:], []byte{icmpv6, 0, routerAlert, routerAlertLen, 0, routerAlertMLD, 1, 0}) // and padding
	b[mldHead] = mldAnswer
	copy(b[mldHead+8:], group.AsSlice())
	binary.BigEndian.PutUint16(b[mldHead+2:], mldChecksum(b))
	return b
}
