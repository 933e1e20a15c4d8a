package tundev

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"vstun/encap/packet"
)

// end is one of two hosts that are joined by their TUN or TAP devices: what one's kernel sends is read here and written
// to the other.
type end struct {
	ns     netns.NsHandle
	device *Device
	addr   string
	mac    [6]byte // of a TAP device
}

// do runs fn on a thread in e's namespace, which ends with it.
func (e *end) do(fn func() error) error {
	c := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(e.ns); err != nil {
			c <- err
			return
		}
		c <- fn()
	}()
	return <-c
}

// join makes two ends, and moves packets between them until the test ends. super counts the GSO packets.
func join(t *testing.T, tap, plainA, plainB bool) (a, b *end, super *sync.Map) {
	t.Helper()
	super = new(sync.Map)
	ends := []*end{{addr: "10.99.0.1", mac: [6]byte{2, 0, 0, 0, 0, 1}}, {addr: "10.99.0.2",
		mac: [6]byte{2, 0, 0, 0, 0, 2}}}
	for i, plain := range []bool{plainA, plainB} {
		e := ends[i]
		if err := e.make(tap, plain); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { e.ns.Close() })
	}
	var wg sync.WaitGroup
	for side := range ends {
		from, to := ends[side].device.Queues()[0], ends[1-side].device.Queues()[0]
		wg.Go(func() {
			bufs := packet.NewBufs(64)
			out := make([]*packet.Buf, 0, 64)
			for {
				n, err := from.ReadBatch(bufs)
				if err != nil {
					if !errors.Is(err, os.ErrClosed) {
						t.Error(err)
					}
					return
				}
				out = out[:0]
				for i := range bufs[:n] {
					if bufs[i].Bytes()[0]>>4 == 4 {
						if tap { // a device without ARP sends to its own address
							packet.Ethernet(bufs[i].Before(packet.EthernetHeaderLen)).SetDst(ends[1-side].mac)
						}
						if g := bufs[i].Offload.GSO; g != packet.GSONone {
							super.Store(g, true)
						}
						out = append(out, &bufs[i])
					}
				}
				if n, _, err := to.WriteBatch(out); (err != nil || n != len(out)) && !errors.Is(err, os.ErrClosed) {
					t.Errorf("%d of %d packets taken, %v", n, len(out), err)
				}
			}
		})
	}
	t.Cleanup(func() {
		for _, e := range ends {
			if err := e.device.Close(); err != nil {
				t.Error(err)
			}
		}
		wg.Wait()
	})
	return ends[0], ends[1], super
}

// make gives e a namespace and a device that is up.
func (e *end) make(tap, plain bool) error {
	c := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		var err error
		if e.ns, err = netns.New(); err != nil {
			c <- err
			return
		}
		c <- func() error {
			if e.device, err = Open("vt0", Options{Queues: 1, Plain: plain, TAP: tap, MAC: e.mac}); err != nil {
				return err
			}
			link, err := netlink.LinkByName("vt0")
			if err != nil {
				return err
			}
			addr, err := netlink.ParseAddr(e.addr + "/24")
			if err != nil {
				return err
			}
			return errors.Join(netlink.AddrAdd(link, addr), netlink.LinkSetUp(link))
		}()
	}()
	return <-c
}

func pairs(t *testing.T, fn func(t *testing.T, a, b *end, super *sync.Map, plain bool)) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root, to make network namespaces and TUN devices")
	}
	for _, tap := range []bool{false, true} {
		for _, a := range []bool{false, true} {
			for _, b := range []bool{false, true} {
				o := Options{TAP: tap}
				t.Run(fmt.Sprintf("%s-%s-to-%s", o.kind(), kind(a), kind(b)), func(t *testing.T) {
					x, y, super := join(t, tap, a, b)
					fn(t, x, y, super, a)
				})
			}
		}
	}
}

func kind(plain bool) string {
	if plain {
		return "plain"
	}
	return "vnet"
}

// TestTCPTransfer: the kernel's own TCP sends 30 MB from one device to another, of any kind, byte-exact.
func TestTCPTransfer(t *testing.T) {
	pairs(t, func(t *testing.T, a, b *end, super *sync.Map, plain bool) {
		var l net.Listener
		if err := b.do(func() (err error) { l, err = net.Listen("tcp", b.addr+":80"); return err }); err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		sum := make(chan [32]byte, 1)
		go func() {
			c, err := l.Accept()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			h := sha256.New()
			if _, err := io.Copy(h, c); err != nil {
				t.Error(err)
			}
			sum <- [32]byte(h.Sum(nil))
		}()
		data := make([]byte, 30<<20)
		rnd := rand.NewChaCha8([32]byte{1})
		rnd.Read(data)
		var c net.Conn
		if err := a.do(func() (err error) {
			c, err = net.DialTimeout("tcp", b.addr+":80", 5*time.Second)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(data); err != nil {
			t.Fatal(err)
		}
		c.Close()
		if got := <-sum; got != sha256.Sum256(data) {
			t.Error("what came is not what was sent")
		}
		if _, seen := super.Load(packet.GSOTCP); seen == plain {
			t.Errorf("GSO packets: %v", seen)
		}
	})
}

// TestUDPSegmentTransfer: one send with UDP_SEGMENT becomes datagrams of the right size at the other end.
func TestUDPSegmentTransfer(t *testing.T) {
	pairs(t, func(t *testing.T, a, b *end, super *sync.Map, plain bool) {
		var in, out *net.UDPConn
		if err := b.do(func() (err error) {
			in, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(b.addr), Port: 53})
			return err
		}); err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		if err := a.do(func() (err error) {
			out, err = net.DialUDP("udp4", nil, in.LocalAddr().(*net.UDPAddr))
			return err
		}); err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		raw, err := out.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var opt error
		if err := raw.Control(func(fd uintptr) {
			opt = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT,
				1000)
		}); err != nil || opt != nil {
			t.Skip("SKIPPED: this kernel has no UDP_SEGMENT: ", err, opt)
		}
		data := make([]byte, 10_500)
		for i := range data {
			data[i] = byte(i >> 4)
		}
		if _, err := out.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := in.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		var got []byte
		for i := range 11 {
			b := make([]byte, 2000)
			n, err := in.Read(b)
			if err != nil {
				t.Fatal(err)
			}
			if want := min(1000, len(data)-len(got)); n != want {
				t.Fatalf("datagram %d has %d bytes, want %d", i, n, want)
			}
			got = append(got, b[:n]...)
		}
		if !bytes.Equal(got, data) {
			t.Error("what came is not what was sent")
		}
	})
}
