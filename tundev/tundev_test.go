package tundev

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/testdata/testkit"
)

// both runs fn for a device with offloads and one without, each in a network namespace of its own.
func both(t *testing.T, fn func(t *testing.T, plain bool)) {
	for name, plain := range map[string]bool{"vnet": false, "plain": true} {
		t.Run(name, func(t *testing.T) {
			if _, err := os.Stat("/dev/net/tun"); err != nil {
				t.Skip("SKIPPED: needs /dev/net/tun")
			}
			testkit.InNamespace(t, func() { fn(t, plain) })
		})
	}
}

// TestPacketInPieces: a device with offloads takes it as one, another refuses it, and a packet without bytes is refused
// by both.
func TestPacketInPieces(t *testing.T) {
	both(t, func(t *testing.T, plain bool) {
		d, err := Open("tun0", Options{Queues: 1, Plain: plain})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		up(t, "tun0")
		c, err := net.ListenPacket("udp4", "10.99.0.1:9")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		const pieces = packet.MaxChain
		p := make(packet.IPv4, 28+pieces-1)
		packet.IPv4(p).Encode(packet.IPv4Fields{
			TotalLen: len(p), TTL: 64, Protocol: packet.ProtoUDP, Src: [4]byte{10, 99, 0, 7},
			Dst: [4]byte{10, 99, 0, 1},
		})
		binary.BigEndian.PutUint16(p[22:], 9)
		binary.BigEndian.PutUint16(p[24:], uint16(len(p)-20))
		for i := range p[28:] {
			p[28+i] = byte(i)
		}
		parts := [][]byte{p[:28]}
		for i := range p[28:] {
			parts = append(parts, p[28+i:29+i])
		}
		bufs := bufsOf(parts...)
		for i := range bufs[1:] {
			bufs[i].Next = bufs[i+1]
		}
		n, size, err := d.Queues()[0].WriteBatch(bufs[:1])
		if err != nil || plain && (n != 0 || size != 0) || !plain && (n != pieces || size != len(p)) {
			t.Fatalf("%d packets, %d bytes taken, %v", n, size, err)
		}
		if !plain {
			in := make([]byte, 2*pieces)
			if k, _, err := c.ReadFrom(in); err != nil || !bytes.Equal(in[:k], p[28:]) {
				t.Errorf("%x %v", in[:k], err)
			}
		}
		bufs[pieces-1].Next = bufsOf(nil)[0]
		if n, _, err := d.Queues()[0].WriteBatch(bufs[:1]); n != 0 || err != nil {
			t.Errorf("with a piece too many: %d, %v", n, err)
		}
	})
}

// up sets the device up, with 10.99.0.1/24.
func up(t *testing.T, name string) {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	addr, _ := netlink.ParseAddr("10.99.0.1/24")
	if err := errors.Join(netlink.AddrAdd(link, addr), netlink.LinkSetUp(link)); err != nil {
		t.Fatal(err)
	}
}

func bufsOf(packets ...[]byte) []*packet.Buf {
	bufs := packet.NewBufs(len(packets))
	var out []*packet.Buf
	for i, p := range packets {
		bufs[i].SetLen(copy(bufs[i].Room(), p))
		out = append(out, &bufs[i])
	}
	return out
}

func TestReadAndWrite(t *testing.T) {
	both(t, func(t *testing.T, plain bool) {
		d, err := Open("vt0", Options{Queues: 1, Plain: plain})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		up(t, "vt0")
		q := d.Queues()[0]

		c, err := net.Dial("udp", "10.99.0.7:9")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		const n = 100
		for i := range n {
			if _, err := fmt.Fprintf(c, "%03d", i); err != nil {
				t.Fatal(err)
			}
		}
		bufs := packet.NewBufs(64)
		for seen := 0; seen < n; {
			got, err := q.ReadBatch(bufs)
			if err != nil || got == 0 {
				t.Fatal(got, err)
			}
			for i := range bufs[:got] {
				var p packet.Info
				if d := p.Parse(bufs[i].Bytes()); d != drop.Accept || p.Flow.Dst.Is6() {
					continue // IPv6's greetings
				}
				if p.Flow.Dst != netip.MustParseAddr("10.99.0.7") || p.Flow.DstPort != 9 ||
					string(bufs[i].Bytes()[28:]) != fmt.Sprintf("%03d", seen) {
					t.Fatalf("packet %d: %v %q", seen, p.Flow, bufs[i].Bytes()[28:])
				}
				seen++
			}
		}

		local := c.LocalAddr().(*net.UDPAddr)
		answer := make(packet.IPv4, 28+5)
		packet.IPv4(answer).Encode(packet.IPv4Fields{
			TotalLen: len(answer), TTL: 64, Protocol: packet.ProtoUDP, Src: [4]byte{10, 99, 0, 7},
			Dst: [4]byte{10, 99, 0, 1},
		})
		binary.BigEndian.PutUint16(answer[20:], 9)
		binary.BigEndian.PutUint16(answer[22:], uint16(local.Port))
		binary.BigEndian.PutUint16(answer[24:], 13)
		copy(answer[28:], "hello")
		taken, size, err := q.WriteBatch(bufsOf(nil, []byte{0x45}, answer, bytes.Repeat([]byte{0xff}, 40)))
		if err != nil || taken < 1 || size < len(answer) {
			t.Fatalf("%d packets, %d bytes taken, %v", taken, size, err)
		}
		if n, err := q.Write(bufsOf(answer, []byte{0x15}, answer)); n != 1 || err != unix.EINVAL {
			t.Errorf("%d packets written, %v", n, err)
		}
		for range 2 {
			in := make([]byte, 16)
			k, err := c.Read(in)
			if err != nil || string(in[:k]) != "hello" {
				t.Errorf("%q %v", in[:k], err)
			}
		}
	})
}

// datagram returns a packet of 40 bytes to the device's host.
func datagram() []byte {
	p := make([]byte, 40)
	packet.IPv4(p).Encode(packet.IPv4Fields{
		TotalLen: 40, TTL: 64, Protocol: packet.ProtoUDP, Src: [4]byte{10, 99, 0, 7}, Dst: [4]byte{10, 99, 0, 1},
	})
	return p
}

// TestMemoryInFront: what is in front of a packet in its memory stays, whether the kernel takes the packet or not. It
// is another packet's, if the packet is a part.
func TestMemoryInFront(t *testing.T) {
	both(t, func(t *testing.T, plain bool) {
		d, err := Open("vt0", Options{Queues: 1, Plain: plain})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		p := datagram()
		for _, isUp := range []bool{false, true} {
			if isUp {
				up(t, "vt0")
			}
			for _, front := range []int{0, 1, packet.VirtioLen - 1, packet.VirtioLen, 40} {
				whole := append(bytes.Repeat([]byte{0xaa}, front), p...)
				b := bufsOf(whole)[0].Clone().Part(front, len(p))
				n, err := d.Queues()[0].Write([]*packet.Buf{&b})
				if isUp != (n == 1 && err == nil) {
					t.Errorf("up: %v, %d bytes in front: %d packets written, %v", isUp, front, n, err)
				}
				if got := b.Before(front); !bytes.Equal(got, whole[:front]) || !bytes.Equal(b.Bytes(), p) {
					t.Errorf("%d bytes in front have become %x, the packet %x", front, got, b.Bytes())
				}
			}
		}
	})
}

func TestDownDeviceRefusesWrites(t *testing.T) {
	both(t, func(t *testing.T, plain bool) {
		d, err := Open("vt0", Options{Queues: 1, Plain: plain})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		p := datagram()
		if n, _, err := d.Queues()[0].WriteBatch(bufsOf(p)); n != 0 || err != nil {
			t.Errorf("%d packets taken, %v", n, err)
		}
		if n, err := d.Queues()[0].Write(bufsOf(p, p)); n != 0 || err != unix.EIO {
			t.Errorf("%d packets written, %v", n, err)
		}
	})
}

func TestQueuesAndClose(t *testing.T) {
	both(t, func(t *testing.T, plain bool) {
		before := testkit.Descriptors(t, "/dev/net/tun")
		d, err := Open("vt0", Options{Queues: 4, Plain: plain})
		if err != nil {
			t.Fatal(err)
		}
		if len(d.Queues()) != 4 || testkit.Descriptors(t, "/dev/net/tun") != before+4 {
			t.Errorf("%d queues, %d descriptors", len(d.Queues()), testkit.Descriptors(t, "/dev/net/tun")-before)
		}
		ends := make(chan error)
		for _, q := range d.Queues() {
			go func() {
				bufs := packet.NewBufs(1)
				for {
					if _, err := q.ReadBatch(bufs); err != nil {
						ends <- err
						return
					}
				}
			}()
		}
		q := d.Queues()[0]
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		for range 4 {
			if err := <-ends; !errors.Is(err, os.ErrClosed) {
				t.Errorf("a reader ends with %v", err)
			}
		}
		if _, _, err := q.WriteBatch(bufsOf([]byte{0x45})); !errors.Is(err, os.ErrClosed) {
			t.Errorf("write after Close: %v", err)
		}
		if _, err := netlink.LinkByName("vt0"); err == nil {
			t.Error("the device is still there")
		}
		if testkit.Descriptors(t, "/dev/net/tun") != before {
			t.Errorf("%d descriptors are left", testkit.Descriptors(t, "/dev/net/tun")-before)
		}
	})
}

func TestRemovedDeviceIsAnError(t *testing.T) {
	both(t, func(t *testing.T, plain bool) {
		d, err := Open("vt0", Options{Queues: 1, Plain: plain})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		up(t, "vt0")
		link, err := netlink.LinkByName("vt0")
		if err != nil {
			t.Fatal(err)
		}
		end := make(chan error)
		go func() {
			bufs := packet.NewBufs(8)
			for {
				if _, err := d.Queues()[0].ReadBatch(bufs); err != nil {
					end <- err
					return
				}
			}
		}()
		if err := netlink.LinkDel(link); err != nil {
			t.Fatal(err)
		}
		if err := <-end; !strings.Contains(err.Error(), "removed by another program") {
			t.Errorf("a reader ends with %v", err)
		}
		if _, _, err := d.Queues()[0].WriteBatch(bufsOf(make([]byte, 40))); err == nil || !strings.Contains(err.Error(),
			"removed by another program") {
			t.Errorf("write: %v", err)
		}
	})
}

func TestOpenFailsCleanly(t *testing.T) {
	both(t, func(t *testing.T, plain bool) {
		before := testkit.Descriptors(t, "/dev/net/tun")
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "taken"}}); err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]string{
			"":                 "1 to 15 bytes",
			"sixteen-bytes-xx": "1 to 15 bytes",
			"taken":            "taken by another device",
		} {
			_, err := Open(name, Options{Queues: 2, Plain: plain})
			if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("Open(%q): %v, want %q", name, err, want)
			}
		}
		var was unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
			t.Fatal(err)
		}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Max: was.Max}); err != nil {
			t.Fatal(err)
		}
		_, err := Open("vs0", Options{Queues: 2, Plain: plain})
		if back := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); back != nil {
			t.Fatal(back)
		}
		if err == nil || !strings.Contains(err.Error(), "lower queues, or raise LimitNOFILE") ||
			strings.Contains(err.Error(), "\n") {
			t.Errorf("without a descriptor left: %v", err)
		}
		if testkit.Descriptors(t, "/dev/net/tun") != before {
			t.Errorf("%d descriptors are left", testkit.Descriptors(t, "/dev/net/tun")-before)
		}
	})
}

// TestNoGroups: on a host that forwards IPv6, the device is in no multicast group beside those of every device, and so
// the kernel reports none into it.
func TestNoGroups(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root")
	}
	testkit.NewNamespace(t)
	for _, conf := range []string{"all", "default"} {
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+conf+"/forwarding", []byte("1"), 0); err != nil {
			t.Skipf("SKIPPED: needs IPv6: %v", err)
		}
	}
	d, err := Open("tun0", Options{Queues: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	groups, err := os.ReadFile("/proc/thread-self/net/igmp6")
	if err != nil {
		t.Fatal(err)
	}
	const routers = "ff020000000000000000000000000002"
	for line := range strings.Lines(string(groups)) {
		if strings.Contains(line, " tun0 ") && strings.Contains(line, routers) {
			t.Errorf("it is in the routers' group: %s", line)
		}
	}
	if !strings.Contains(string(groups), " tun0 ") {
		t.Errorf("the device has no IPv6 at all: %s", groups)
	}
}

// TestTAPDevice: a TAP device has its MAC address, and takes no part in ARP. Send returns the kernel's error.
func TestTAPDevice(t *testing.T) {
	both(t, func(t *testing.T, plain bool) {
		mac := [6]byte{0xfe, 1, 2, 3, 4, 5}
		d, err := Open("tap0", Options{Queues: 2, Plain: plain, TAP: true, MAC: mac})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		link, err := netlink.LinkByName("tap0")
		if err != nil {
			t.Fatal(err)
		}
		if a := link.Attrs(); [6]byte(a.HardwareAddr) != mac || a.RawFlags&unix.IFF_NOARP == 0 ||
			a.RawFlags&unix.IFF_MULTICAST != 0 {
			t.Errorf("address %v, flags %#x", a.HardwareAddr, a.RawFlags)
		}
		p := datagram()
		b, q := bufsOf(p)[0], d.Queues()[1].Writer()
		h := make(packet.Ethernet, packet.EthernetHeaderLen)
		h.SetDst([6]byte{2, 0, 0, 0, 0, 1})
		h.SetSrc([6]byte{2, 0, 0, 0, 0, 2})
		h.SetType(packet.EtherTypeIPv4)
		if err := q.Send(h, b); err != unix.EIO {
			t.Errorf("while the device is down: %v", err)
		}
		up(t, "tap0")
		if err := q.Send(h, b); err != nil {
			t.Error(err)
		}
		if err := q.Send(h, bufsOf(nil)[0]); err != unix.EINVAL {
			t.Errorf("without bytes: %v", err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if err := q.Send(h, b); !errors.Is(err, os.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}

// TestTaggedFrame: a packet behind VLAN tags, with work left to the kernel, passes a bridge to another TAP device.
func TestTaggedFrame(t *testing.T) {
	both(t, func(t *testing.T, plain bool) {
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
		if err := errors.Join(netlink.LinkAdd(bridge), netlink.LinkSetUp(bridge)); err != nil {
			t.Fatal(err)
		}
		var ports []*Device
		for _, name := range []string{"tap0", "tap1"} {
			d, err := Open(name, Options{Queues: 1, Plain: plain, TAP: true, Host: true})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			ports = append(ports, d)
			link, err := netlink.LinkByName(name)
			if err == nil {
				err = errors.Join(netlink.LinkSetMaster(link, bridge), netlink.LinkSetUp(link))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		for tags := range 3 {
			for _, gso := range []bool{false, true} {
				link := []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2}
				for range tags {
					link = append(link, 0x81, 0, 0, 7)
				}
				link = append(link, 8, 0)
				p := unfinished(gso)
				if err := ports[0].Queues()[0].Writer().Send(link, p); err != nil {
					t.Fatal(err)
				}
				what := fmt.Sprintf("%d tags, GSO %v", tags, gso)
				taggedArrives(t, what, ports[1], link, len(p.Bytes())-40)
			}
		}
	})
}

// unfinished returns a TCP packet with an unfinished checksum, large or not.
func unfinished(gso bool) *packet.Buf {
	p := make([]byte, 40+100)
	o := packet.Offload{Partial: true, CsumStart: packet.IPv4HeaderLen, CsumOffset: packet.TCPChecksumAt}
	if gso {
		p = make([]byte, 40+3000)
		o.GSO, o.Size = packet.GSOTCP, 1000
	}
	packet.IPv4(p).Encode(packet.IPv4Fields{TotalLen: len(p), TTL: 64, Protocol: packet.ProtoTCP,
		Src: [4]byte{10, 99, 0, 7}, Dst: [4]byte{10, 99, 0, 8}})
	s := packet.TCP(p[packet.IPv4HeaderLen:])
	s.SetHeaderLen(packet.TCPHeaderLen)
	s.SetFlags(packet.FlagACK)
	s.SetPartialChecksum(packet.PseudoSum(p, packet.ProtoTCP, len(s)))
	b := bufsOf(p)[0]
	b.Offload = o
	return b
}

// taggedArrives reads from d until n bytes of payload have come behind link, in packets of TCP that are right.
func taggedArrives(t *testing.T, what string, d *Device, link []byte, n int) {
	t.Helper()
	defer time.AfterFunc(testkit.Patience, func() { _ = d.Close() }).Stop()
	bufs := packet.NewBufs(64)
	for n > 0 {
		got, err := d.Queues()[0].ReadBatch(bufs)
		if err != nil {
			t.Fatalf("%s: %d bytes have not come: %v", what, n, err)
		}
		for i := range bufs[:got] {
			b := &bufs[i]
			b.Prepend(packet.EthernetHeaderLen)
			if len(b.Bytes()) < len(link) || !bytes.Equal(b.Bytes()[:len(link)], link) {
				continue // the bridge's or the host's own
			}
			b.Strip(len(link))
			if b.Offload.Partial {
				b.Offload.CsumStart -= uint16(len(link) - packet.EthernetHeaderLen)
			}
			p, gso := packet.IPv4(b.Bytes()), b.Offload.GSO
			if p.Check() != drop.Accept || b.Finish() != drop.Accept {
				t.Fatalf("%s: %+v, %x", what, b.Offload, p)
			}
			s := p[packet.IPv4HeaderLen:p.TotalLen()]
			if sum := packet.Fold(packet.Sum(s, p.PseudoSum(len(s)))); sum != 0xffff {
				t.Fatalf("%s: GSO %v, sum %#x", what, gso, sum)
			}
			n -= len(s) - packet.TCPHeaderLen
		}
	}
}

// TestHostDevice: a device for the host has multicast, and ARP as far as its kind has it.
func TestHostDevice(t *testing.T) {
	both(t, func(t *testing.T, plain bool) {
		for _, tap := range []bool{false, true} {
			d, err := Open("site0", Options{Queues: 1, Plain: plain, TAP: tap, Host: true})
			if err != nil {
				t.Fatal(err)
			}
			link, err := netlink.LinkByName("site0")
			if err != nil {
				t.Fatal(err)
			}
			a := link.Attrs()
			if arp := a.RawFlags&unix.IFF_NOARP == 0; a.RawFlags&unix.IFF_MULTICAST == 0 || arp != tap {
				t.Errorf("TAP %v: flags %#x", tap, a.RawFlags)
			}
			if tap != (len(a.HardwareAddr) == 6) {
				t.Errorf("TAP %v: MAC address %v", tap, a.HardwareAddr)
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}
