package neigh

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// mldQueryFrom is a query of version 1 for all groups.
func mldQueryFrom(from, to netip.Addr) []byte {
	b := mldReport(from, to)
	b[mldHead] = mldQuery
	clear(b[mldHead+8:])
	return sumMLD(b)
}

// sumMLD sets the checksum of a message of MLD.
func sumMLD(b []byte) []byte {
	b[mldHead+2], b[mldHead+3] = 0, 0
	binary.BigEndian.PutUint16(b[mldHead+2:], mldChecksum(b))
	return b
}

// TestMLDReport: the report is as Linux sends it (net/ipv6/mcast.c, igmp6_send).
func TestMLDReport(t *testing.T) {
	t.Parallel()
	const want = "6000000000200001" + "fe80000000000000000000fffe000080" + "ff0200000000000000000001ff000080" +
		"3a00050200000100" + "83007b840000" + "0000" + "ff0200000000000000000001ff000080"
	b := mldReport(portLocal, solicitedNode(portVIP6))
	if mldChecksum(b) != 0 {
		t.Error("the checksum is wrong")
	}
	copy(b[mldHead+2:], []byte{0x7b, 0x84})
	if got := hex.EncodeToString(b); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestMLDQuery: the rules of RFC 2710, sections 3 and 5, and RFC 3810, sections 5.1.14 and 6.2.
func TestMLDQuery(t *testing.T) {
	t.Parallel()
	good := mldQueryFrom(portHostLocal, allNodes)
	edit := func(offset int, bytes ...byte) []byte {
		b := mldQueryFrom(portHostLocal, allNodes)
		copy(b[offset:], bytes)
		return sumMLD(b)
	}
	damaged := bytes.Clone(good)
	damaged[mldHead+3]++
	second := append(bytes.Clone(good), 2, 125, 0, 0) // of version 2: robustness, interval, no sources
	binary.BigEndian.PutUint16(second[4:], uint16(len(second)-ipv6Len))
	for _, c := range []struct {
		name  string
		b     []byte
		valid bool
	}{
		{"version 1", good, true},
		{"version 2", sumMLD(second), true},
		{"to a VIP", mldQueryFrom(portHostLocal, portVIP6), true},
		{"with padding first", edit(ipv6Len+2, 1, 0, 5, 2, 0, 0), true},
		{"with padding bytes", edit(ipv6Len+2, 0, 0, 5, 2, 0, 0), true},
		{"with padding behind the message", append(bytes.Clone(good), 1, 2, 3), true},
		{"from behind a router", edit(7, 55), false},
		{"from no link-local address", mldQueryFrom(portHost6, allNodes), false},
		{"from no address", mldQueryFrom(unspecified, allNodes), false},
		{"with a wrong checksum", damaged, false},
		{"without router alert", edit(ipv6Len+2, 1, 4, 0, 0, 0, 0), false},
		{"with another router alert", edit(ipv6Len+2, 5, 2, 0, 1), false},
		{"with an option that is too long", edit(ipv6Len+2, 1, 9), false},
		{"a report", mldReport(portHostLocal, allNodes), false},
		{"short", good[:mldLen-1], false},
		{"a length beyond its end", edit(5, good[5]+1), false},
		{"a length that is too small", edit(5, good[5]-1), false},
	} {
		if got := isQuery(c.b); got != c.valid {
			t.Errorf("%s: %v, want %v", c.name, got, c.valid)
		}
	}
}

// TestMLDQueries: an invalid query has no answer. Many queries have one answer a second, with all groups.
func TestMLDQueries(t *testing.T) {
	t.Parallel()
	const vips, queries = 500, 100
	synctest.Test(t, func(t *testing.T) {
		w := &fakePort{}
		a := OpenOn(NewSharedPort(w), portLocal, slog.New(slog.DiscardHandler))
		all := []netip.Addr{portLocal}
		for i := range vips {
			all = append(all, netip.AddrFrom16([16]byte{0: 0xfd, 14: byte(i >> 8), 15: byte(i)}))
		}
		a.Set([]Device{{Name: "tap0", Index: 7, MAC: portMAC, Addrs: all}})
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { _ = a.Run(ctx) })
		time.Sleep(time.Minute) // the announcements are over
		w.take()
		groups := len(a.table.Load().solicitedNodes())

		far := mldQueryFrom(portHostLocal, portVIP6)
		far[7] = 55
		if a.Receive(portHostMAC, portMAC, unix.ETH_P_IPV6, far) {
			t.Error("an invalid query is taken")
		}
		time.Sleep(time.Minute)
		w.want(t)
		for range queries {
			if !a.Receive(portHostMAC, groupMAC(allNodes), unix.ETH_P_IPV6, mldQueryFrom(portHostLocal, allNodes)) {
				t.Error("a query is refused")
			}
			time.Sleep(2 * reportEvery / queries)
		}
		time.Sleep(time.Minute)
		seen := map[netip.Addr]int{}
		for _, f := range w.take() {
			if f.payload[mldHead] == mldAnswer {
				seen[netip.AddrFrom16([16]byte(f.payload[mldHead+8:]))]++
			}
		}
		for group, n := range seen {
			if n < 2 || n > 3 {
				t.Errorf("%v is reported %d times in two seconds", group, n)
			}
		}
		if len(seen) != groups {
			t.Errorf("%d groups of %d are reported", len(seen), groups)
		}
		cancel()
		running.Wait()
	})
}
