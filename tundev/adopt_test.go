package tundev

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/encap/packet"
	"vstun/testdata/testkit"
)

// held returns further descriptors of d's queues, as another process holds them.
func held(t *testing.T, d *Device) (fds []int) {
	t.Helper()
	for _, fd := range d.Descriptors() {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, dup)
	}
	return fds
}

// TestAdopt: the packets that come between two owners of a device wait, and none is lost.
func TestAdopt(t *testing.T) {
	both(t, func(t *testing.T, plain bool) {
		const packets = 300
		open := testkit.Descriptors(t, "/dev/net/tun")
		o := Options{Queues: 2, Plain: plain}
		d, err := Open("vt0", o)
		if err != nil {
			t.Fatal(err)
		}
		up(t, "vt0")
		offloads := d.Offloads()
		ends := make(chan error)
		for _, q := range d.Queues() {
			go func() {
				for bufs := packet.NewBufs(1); ; {
					if _, err := q.ReadBatch(bufs); err != nil {
						ends <- err
						return
					}
				}
			}()
		}
		if err := d.StopReading(); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := testkit.Receive(t, "a reader ends", ends); !errors.Is(err, os.ErrClosed) {
				t.Errorf("a reader ends with %v", err)
			}
		}
		if n, _, err := d.Queues()[0].WriteBatch(bufsOf(udpTo(t, 9))); n != 1 || err != nil {
			t.Errorf("after StopReading %d packets are written, %v", n, err)
		}
		fds := held(t, d)
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		c, err := net.Dial("udp4", "10.99.0.7:9")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for i := range packets {
			if _, err := c.Write(binary.BigEndian.AppendUint32(nil, uint32(i))); err != nil {
				t.Fatal(err)
			}
		}
		if d, err = Adopt("vt0", o, fds); err != nil {
			t.Fatal(err)
		}
		if d.Offloads() != offloads || d.Name() != "vt0" {
			t.Errorf("%s with %q, was %q", d.Name(), d.Offloads(), offloads)
		}
		got := make(chan uint32)
		for _, q := range d.Queues() {
			go func() {
				for bufs := packet.NewBufs(64); ; {
					n, err := q.ReadBatch(bufs)
					if err != nil {
						return
					}
					for _, b := range bufs[:n] {
						if p := b.Bytes(); len(p) == 32 && packet.IPv4(p).Protocol() == packet.ProtoUDP {
							got <- binary.BigEndian.Uint32(p[28:])
						}
					}
				}
			}()
		}
		for i := range packets {
			if n := testkit.Receive(t, "the next packet", got); n != uint32(i) {
				t.Fatalf("packet %d comes, want %d", n, i)
			}
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if _, err := netlink.LinkByName("vt0"); err == nil {
			t.Error("the device is still there")
		}
		if n := testkit.Descriptors(t, "/dev/net/tun"); n != open {
			t.Errorf("%d descriptors are left", n-open)
		}
	})
}

// udpTo returns a datagram to a port of 10.99.0.1.
func udpTo(t *testing.T, port uint16) []byte {
	t.Helper()
	p := make(packet.IPv4, 28)
	p.Encode(packet.IPv4Fields{TotalLen: len(p), TTL: 64, Protocol: packet.ProtoUDP, Src: [4]byte{10, 99, 0, 7},
		Dst: [4]byte{10, 99, 0, 1}})
	binary.BigEndian.PutUint16(p[22:], port)
	binary.BigEndian.PutUint16(p[24:], 8)
	return p
}

// TestAdoptRefuses: a device that is not as Open would make it is refused, and its descriptors are closed.
func TestAdoptRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		made, want Options
		named      string
		spoil      func(t *testing.T, fds []int) []int
		fault      string
	}{
		"name": {made: Options{Queues: 1}, want: Options{Queues: 1}, named: "vt1",
			fault: "called vt0, want vt1"},
		"more queues": {made: Options{Queues: 1}, want: Options{Queues: 2}, fault: "it has 1 queues, want 2"},
		"less queues": {made: Options{Queues: 3}, want: Options{Queues: 2}, fault: "it has 3 queues, want 2"},
		"offload": {made: Options{Queues: 1, Plain: true}, want: Options{Queues: 1},
			fault: "it has been opened with offload off, want on"},
		"no offload": {made: Options{Queues: 1}, want: Options{Queues: 1, Plain: true},
			fault: "it has been opened with offload on, want off"},
		"kind": {made: Options{Queues: 1}, want: Options{Queues: 1, TAP: true}, fault: "it is no TAP device"},
		"removed": {made: Options{Queues: 1}, want: Options{Queues: 1}, fault: "it has been removed",
			spoil: func(t *testing.T, fds []int) []int {
				link, err := netlink.LinkByName("vt0")
				if err != nil {
					t.Fatal(err)
				}
				if err := netlink.LinkDel(link); err != nil {
					t.Fatal(err)
				}
				return fds
			}},
		"header": {made: Options{Queues: 1}, want: Options{Queues: 1}, fault: "its headers have 12 bytes, want 10",
			spoil: func(t *testing.T, fds []int) []int {
				if err := unix.IoctlSetPointerInt(fds[0], unix.TUNSETVNETHDRSZ, 12); err != nil {
					t.Fatal(err)
				}
				return fds
			}},
		"detached": {made: Options{Queues: 2}, want: Options{Queues: 2}, fault: "it has other flags",
			spoil: func(t *testing.T, fds []int) []int {
				ifr, err := unix.NewIfreq("vt0")
				if err != nil {
					t.Fatal(err)
				}
				ifr.SetUint16(iffDetachQueue)
				if err := unix.IoctlIfreq(fds[1], unix.TUNSETQUEUE, ifr); err != nil {
					t.Fatal(err)
				}
				return fds
			}},
		"namespace": {made: Options{Queues: 1}, want: Options{Queues: 1}, fault: "it is in another network namespace",
			spoil: func(t *testing.T, fds []int) []int { // InNamespace leaves this namespace, too
				if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
					t.Fatal(err)
				}
				return fds
			}},
		"no device": {made: Options{Queues: 1}, want: Options{Queues: 1}, fault: "TUNGETIFF",
			spoil: func(t *testing.T, fds []int) []int {
				unix.Close(fds[0])
				fd, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
				if err != nil {
					t.Fatal(err)
				}
				return []int{fd}
			}},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := os.Stat("/dev/net/tun"); err != nil {
				t.Skip("SKIPPED: needs /dev/net/tun")
			}
			testkit.InNamespace(t, func() {
				before := testkit.Descriptors(t, "")
				d, err := Open("vt0", c.made)
				if err != nil {
					t.Fatal(err)
				}
				fds := held(t, d)
				if err := d.Close(); err != nil {
					t.Fatal(err)
				}
				if c.spoil != nil {
					fds = c.spoil(t, fds)
				}
				if c.named == "" {
					c.named = "vt0"
				}
				if d, err := Adopt(c.named, c.want, fds); d != nil || err == nil ||
					!strings.Contains(err.Error(), c.fault) {
					t.Errorf("%v, %v; want %q", d, err, c.fault)
				}
				if n := testkit.Descriptors(t, ""); n != before {
					t.Errorf("%d descriptors are left", n-before)
				}
			})
		})
	}
}
