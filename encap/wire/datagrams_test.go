package wire

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"vstun/testdata/testkit"
)

func noClass([]byte) uint8 { return 0 }

// pairOfDatagrams opens two sockets, of which the first sends to the second.
func pairOfDatagrams(t *testing.T, six bool) (a, b *Datagrams, to Ends) {
	t.Helper()
	var all []*Datagrams
	for range 2 {
		d, err := OpenDatagrams(0, six)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		all = append(all, d)
	}
	port, err := all[1].Port()
	if err != nil {
		t.Fatal(err)
	}
	host := netip.MustParseAddr("127.0.0.1")
	if six {
		host = netip.IPv6Loopback()
	}
	return all[0], all[1], Ends{Peer: netip.AddrPortFrom(host, port)}
}

// receiveAll receives n datagrams by calls for most datagrams each.
func receiveAll(t *testing.T, d *Datagrams, n, most int) (all [][]byte, from Ends) {
	t.Helper()
	bufs, sizes, ends := make([][]byte, most), make([]int, most), make([]Ends, most)
	classes := make([]uint8, most)
	for i := range bufs {
		bufs[i] = make([]byte, 65535)
	}
	for len(all) < n {
		got, err := d.Receive(bufs, sizes, ends, classes)
		if err != nil {
			t.Fatal(err)
		}
		for i := range got {
			all = append(all, bytes.Clone(bufs[i][:sizes[i]]))
			from = ends[i]
		}
	}
	return all, from
}

// TestDatagrams: datagrams of every mixture of sizes arrive as they were sent, and the answers go back.
func TestDatagrams(t *testing.T) {
	for _, six := range []bool{false, true} {
		a, b, to := pairOfDatagrams(t, six)
		for round, lens := range [][]int{{1}, {0}, {0, 0, 3}, {1400, 1400, 1400, 9}, {9, 1400, 1400, 1400, 1400},
			{40, 30, 20, 10}, {10, 20, 30, 40}, make([]int, 200), {20000, 20000, 20000, 20000, 65507}} {
			var sent [][]byte
			for i, n := range lens {
				if len(lens) == 200 {
					n = 1200
				}
				sent = append(sent, bytes.Repeat([]byte{byte(round + i)}, n))
			}
			if n, err := a.Send(sent, noClass, to); n != 0 || err != nil {
				t.Fatalf("IPv6 %v, round %d: %d refused, %v", six, round, n, err)
			}
			got, from := receiveAll(t, b, len(sent), 1+round*7)
			for i := range sent {
				if !bytes.Equal(got[i], sent[i]) {
					t.Fatalf("IPv6 %v, round %d: datagram %d has %d bytes, want %d", six, round, i, len(got[i]),
						len(sent[i]))
				}
			}
			if from.Own != to.Peer.Addr() {
				t.Fatalf("came to %v, want %v", from.Own, to.Peer.Addr())
			}
			if _, err := b.Send([][]byte{{1, 2, 3}}, noClass, from); err != nil {
				t.Fatal(err)
			}
			if back, _ := receiveAll(t, a, 1, 1); !bytes.Equal(back[0], []byte{1, 2, 3}) {
				t.Fatalf("answer %x", back[0])
			}
		}
		if n := b.Overruns(); n != 0 {
			t.Errorf("%d overruns", n)
		}
	}
}

// TestDatagramClasses: each datagram has its own TOS or traffic class, also among others of one size.
func TestDatagramClasses(t *testing.T) {
	for _, six := range []bool{false, true} {
		a, b, to := pairOfDatagrams(t, six)
		var sent [][]byte
		for i := range 60 {
			p := make([]byte, 500)
			p[0], p[1] = []byte{0, 1, 2, 0x88, 0xfe}[i/4%5], byte(i)
			sent = append(sent, p)
		}
		if n, err := a.Send(sent, func(b []byte) uint8 { return b[0] }, to); n != 0 || err != nil {
			t.Fatalf("%d refused, %v", n, err)
		}
		bufs, sizes, ends, classes := make([][]byte, 7), make([]int, 7), make([]Ends, 7), make([]uint8, 7)
		for i := range bufs {
			bufs[i] = make([]byte, 1000)
		}
		for n := 0; n < len(sent); {
			got, err := b.Receive(bufs, sizes, ends, classes)
			if err != nil {
				t.Fatal(err)
			}
			for i := range got {
				if sizes[i] != 500 || bufs[i][1] != byte(n) || classes[i] != bufs[i][0] {
					t.Fatalf("IPv6 %v: datagram %d: %d bytes, number %d, class %#x, want %#x", six, n, sizes[i],
						bufs[i][1], classes[i], bufs[i][0])
				}
				n++
			}
		}
	}
}

// TestDatagramsRefused: Send counts what the kernel refuses, and sends the rest.
func TestDatagramsRefused(t *testing.T) {
	a, b, to := pairOfDatagrams(t, false)
	n, err := a.Send([][]byte{make([]byte, 65508), make([]byte, 65508), {7}}, noClass, to)
	if n != 2 || err != unix.EMSGSIZE {
		t.Errorf("%d refused, %v", n, err)
	}
	if got, _ := receiveAll(t, b, 1, 1); !bytes.Equal(got[0], []byte{7}) {
		t.Errorf("%x came", got[0])
	}
	to.Peer = netip.MustParseAddrPort("255.255.255.255:9") // not without SO_BROADCAST
	if n, err := a.Send([][]byte{{1}, {2}, {3}}, noClass, to); n != 3 || err != unix.EACCES {
		t.Errorf("%d refused, %v", n, err)
	}
}

// TestDatagramsTooLarge: a datagram that its buffer cannot hold is none, and affects no other.
func TestDatagramsTooLarge(t *testing.T) {
	a, b, to := pairOfDatagrams(t, false)
	if _, err := a.Send([][]byte{make([]byte, 100), make([]byte, 100), make([]byte, 7)}, noClass, to); err != nil {
		t.Fatal(err)
	}
	bufs := [][]byte{make([]byte, 50), make([]byte, 150), make([]byte, 50)}
	sizes, ends := make([]int, 3), make([]Ends, 3)
	for n := 0; n < 3; {
		got, err := b.Receive(bufs[n:], sizes[n:], ends[n:], make([]uint8, 3))
		if err != nil {
			t.Fatal(err)
		}
		n += got
	}
	if sizes[0] != 0 || sizes[1] != 100 || sizes[2] != 7 {
		t.Errorf("sizes %v", sizes)
	}
}

// TestDatagramsClose: Close ends a Receive, and what is called later.
func TestDatagramsClose(t *testing.T) {
	a, b, to := pairOfDatagrams(t, true)
	ended := make(chan error)
	go func() {
		_, err := b.Receive([][]byte{make([]byte, 9)}, make([]int, 1), make([]Ends, 1), make([]uint8, 1))
		ended <- err
	}()
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Receive ends with %v", err)
	}
	if _, err := b.Send([][]byte{{1}}, noClass, to); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Send after Close: %v", err)
	}
	port, err := a.Port()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDatagrams(port, true); err == nil || !strings.Contains(err.Error(), "choose another port") {
		t.Errorf("two sockets have one port: %v", err)
	}
}

func TestDatagramsAllocations(t *testing.T) {
	a, b, to := pairOfDatagrams(t, false)
	out := make([][]byte, 64)
	for i := range out {
		out[i] = make([]byte, 1400)
	}
	bufs, sizes, ends := make([][]byte, 128), make([]int, 128), make([]Ends, 128)
	classes := make([]uint8, 128)
	for i := range bufs {
		bufs[i] = make([]byte, 65535)
	}
	if n := testing.AllocsPerRun(200, func() {
		if _, err := a.Send(out, noClass, to); err != nil {
			t.Fatal(err)
		}
		for n := 0; n < len(out); {
			got, err := b.Receive(bufs, sizes, ends, classes)
			if err != nil {
				t.Fatal(err)
			}
			n += got
		}
	}); n >= 1 {
		t.Errorf("%v allocations for %d datagrams", n, len(out))
	}
}

// TestDatagramsLinkLocal: a datagram from a link-local address is answered by the device that it came by.
func TestDatagramsLinkLocal(t *testing.T) {
	open := func(device, address string) (d *Datagrams, index int) {
		t.Helper()
		addr, err := netlink.ParseAddr(address)
		if err != nil {
			t.Fatal(err)
		}
		addr.Flags |= unix.IFA_F_NODAD
		link := up(t, device)
		if err := netlink.AddrAdd(link, addr); err != nil {
			t.Fatal(err)
		}
		if d, err = OpenDatagrams(0, true); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		return d, link.Attrs().Index
	}
	testkit.InNamespace(t, func() {
		here, err := netns.Get()
		if err == nil {
			defer here.Close()
			err = netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "near"}, PeerName: "far"})
		}
		if err != nil {
			t.Fatal(err)
		}
		testkit.InNamespace(t, func() {
			inner, err := netns.Get()
			if err != nil {
				t.Fatal(err)
			}
			defer inner.Close()
			h, err := netlink.NewHandleAt(here)
			if err != nil {
				t.Fatal(err)
			}
			defer h.Close()
			link, err := h.LinkByName("far")
			if err == nil {
				err = h.LinkSetNsFd(link, int(inner))
			}
			if err == nil { // another index than that of near
				err = netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "x"}, PeerName: "y"})
			}
			if err != nil {
				t.Fatal(err)
			}
			b, far := open("far", "fe80::b/64")
			if err := netns.Set(here); err != nil {
				t.Fatal(err)
			}
			a, near := open("near", "fe80::a/64")
			port, err := b.Port()
			if err = errors.Join(err, netns.Set(inner)); err != nil {
				t.Fatal(err)
			}
			testLinkLocal(t, a, b, Ends{Peer: netip.AddrPortFrom(linkLocal("fe80::b", near), port)},
				linkLocal("fe80::a", far))
		})
	})
}

func linkLocal(address string, device int) netip.Addr {
	return netip.MustParseAddr(address).WithZone(strconv.Itoa(device))
}

// testLinkLocal sends a datagram from a to b, and the answer. want is the address that it comes from.
func testLinkLocal(t *testing.T, a, b *Datagrams, to Ends, want netip.Addr) {
	testkit.Eventually(t, "the devices are up", func() bool {
		_, err := a.Send([][]byte{{1}}, noClass, to)
		return err == nil
	})
	_, from := receiveAll(t, b, 1, 1)
	if from.Peer.Addr() != want {
		t.Errorf("a datagram from %v, want %v", from.Peer.Addr(), want)
	}
	if _, err := b.Send([][]byte{{2}}, noClass, from); err != nil {
		t.Fatalf("the answer: %v", err)
	}
	if back, _ := receiveAll(t, a, 1, 1); !bytes.Equal(back[0], []byte{2}) {
		t.Errorf("answer %x", back[0])
	}
	if n := testing.AllocsPerRun(20, func() {
		if _, err := a.Send([][]byte{{1}}, noClass, to); err != nil {
			t.Fatal(err)
		}
	}); n > 1 {
		t.Errorf("%v allocations for a datagram that is sent", n)
	}
}
