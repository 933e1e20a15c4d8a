package wireguard

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"vstun/encap/wire"
)

// endpoint is the ends of a peer's datagrams. All but cleared is immutable.
type endpoint struct {
	wire.Ends
	cleared atomic.Bool // the kernel's route decides on the source
}

// ClearSrc implements conn.Endpoint.
func (e *endpoint) ClearSrc() { e.cleared.Store(true) }

// SrcToString implements conn.Endpoint.
func (e *endpoint) SrcToString() string { return e.Own.String() }

// DstToString implements conn.Endpoint.
func (e *endpoint) DstToString() string { return e.Peer.String() }

// DstToBytes implements conn.Endpoint.
func (e *endpoint) DstToBytes() []byte {
	b, _ := e.Peer.MarshalBinary() // never fails
	return b
}

// DstIP implements conn.Endpoint.
func (e *endpoint) DstIP() netip.Addr { return e.Peer.Addr() }

// SrcIP implements conn.Endpoint.
func (e *endpoint) SrcIP() netip.Addr { return e.Own }

// bind is the conn.Bind of the library: the sockets of one UDP port. They are opened once.
type bind struct {
	four, six *wire.Datagrams // six is nil on a kernel without IPv6
	received  *received
	classes   classes
	classOf   func(b []byte) uint8 // of classes
	opened    atomic.Bool          // Open has been called
	closing   sync.Once
	sent      counter      // messages with packets that the library has sent, also those that the kernel has refused
	refused   counter      // messages with packets, and keepalives, that the kernel has refused
	lastErr   atomic.Int32 // errno of the last datagram that the kernel refused
	failed    atomic.Int64 // when that was, in nanoseconds since 1970
}

// note notes that the kernel has refused a call.
func (b *bind) note(err error) {
	if errno, ok := err.(unix.Errno); ok {
		b.lastErr.Store(int32(errno))
		b.failed.Store(time.Now().UnixNano())
	}
}

// recent is the time for which an error is reported.
const recent = time.Minute

// recentError returns the error of the last datagram that the kernel has refused, nil if that is long ago.
func (b *bind) recentError() error {
	if e := b.lastErr.Load(); e != 0 && time.Since(time.Unix(0, b.failed.Load())) < recent {
		return unix.Errno(e)
	}
	return nil
}

// received counts the datagrams of a port.
type received struct {
	transport counter // messages with packets, and keepalives
	handshake counter // messages of handshakes
	other     counter // that are no message
}

// openBind opens the sockets.
func openBind(port uint16, r *received) (*bind, error) {
	b := &bind{received: r}
	b.classOf = b.classes.of
	var err error
	if b.four, err = wire.OpenDatagrams(port, false); err != nil {
		return nil, err
	}
	if port == 0 {
		if port, err = b.four.Port(); err != nil {
			return nil, err
		}
	}
	if b.six, err = wire.OpenDatagrams(port, true); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, errors.Join(err, b.four.Close())
	}
	return b, nil
}

// Open implements conn.Bind. The port is openBind's.
func (b *bind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	port, err := b.four.Port()
	if err != nil {
		return nil, 0, net.ErrClosed
	}
	b.opened.Store(true)
	all := []conn.ReceiveFunc{b.receiver(b.four)}
	if b.six != nil {
		all = append(all, b.receiver(b.six))
	}
	return all, port, nil
}

// mostEndpoints is the number of recent endpoints that a receiver knows again.
const mostEndpoints = 1024

// afterError is the pause of a receiver after an error of the kernel, such as ENOMEM.
const afterError = 10 * time.Millisecond

// receiver returns a function that receives from d.
func (b *bind) receiver(d *wire.Datagrams) conn.ReceiveFunc {
	ends, classes := make([]wire.Ends, conn.IdealBatchSize), make([]uint8, conn.IdealBatchSize)
	known := map[netip.AddrPort]*endpoint{} // so that a datagram costs no allocation
	e := &endpoint{}                        // of the last datagram
	return func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		n, err := d.Receive(bufs, sizes, ends, classes)
		for ; err != nil; n, err = d.Receive(bufs, sizes, ends, classes) {
			if errors.Is(err, os.ErrClosed) {
				return 0, net.ErrClosed
			}
			b.note(err) // the library would end the receiver, with most errors at once, and log nothing
			time.Sleep(afterError)
		}
		for i := range n {
			if e.Ends != ends[i] || e.cleared.Load() {
				if e = known[ends[i].Peer]; e == nil || e.Own != ends[i].Own || e.cleared.Load() {
					if len(known) >= mostEndpoints {
						clear(known)
					}
					e = &endpoint{Ends: ends[i]}
					known[ends[i].Peer] = e
				}
			}
			eps[i] = e
			var class uint8 // nothing but CE matters
			if classes[i]&ecnMask == ce {
				class = ce
			}
			b.classes.set(bufs[i], class)
		}
		b.received.count(bufs[:n], sizes)
		return n, nil
	}
}

// count counts datagrams of these sizes.
func (r *received) count(bufs [][]byte, sizes []int) {
	var transport, handshake, other uint64
	for i, b := range bufs {
		if sizes[i] < device.MinMessageSize {
			other++
			continue
		}
		switch kind := binary.LittleEndian.Uint32(b); {
		case kind == device.MessageTransportType:
			transport++
		case kind == device.MessageInitiationType && sizes[i] == device.MessageInitiationSize,
			kind == device.MessageResponseType && sizes[i] == device.MessageResponseSize,
			kind == device.MessageCookieReplyType && sizes[i] == device.MessageCookieReplySize:
			handshake++
		default:
			other++
		}
	}
	r.transport.Add(transport)
	r.handshake.Add(handshake)
	r.other.Add(other)
}

// Send implements conn.Bind.
func (b *bind) Send(bufs [][]byte, to conn.Endpoint) error {
	e, ok := to.(*endpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	d := b.four
	if e.Peer.Addr().Is6() {
		d = b.six
	}
	if d == nil {
		return unix.EAFNOSUPPORT
	}
	defer b.countSent(bufs)
	ends := e.Ends
	if e.cleared.Load() {
		ends.Own = netip.Addr{}
	}
	refused, err := d.Send(bufs, b.classOf, ends)
	if ends.Own.IsValid() && refused == len(bufs) && (errors.Is(err, unix.EINVAL) ||
		errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ENETUNREACH)) { // the address may have left this host
		e.ClearSrc()
		refused, err = d.Send(bufs, b.classOf, wire.Ends{Peer: e.Peer})
	}
	if err == nil {
		return nil
	}
	b.note(err)
	if bufs[0][0] == device.MessageTransportType {
		b.refused.Add(uint64(refused))
	}
	return err
}

// countSent counts the messages with packets among bufs.
func (b *bind) countSent(bufs [][]byte) {
	n := uint64(0)
	for _, m := range bufs {
		if m[0] == device.MessageTransportType && len(m) > device.MessageKeepaliveSize {
			n++
		}
	}
	b.sent.Add(n)
}

// ParseEndpoint implements conn.Bind.
func (b *bind) ParseEndpoint(s string) (conn.Endpoint, error) {
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil, err
	}
	return &endpoint{Ends: wire.Ends{Peer: a}}, nil
}

// Close implements conn.Bind. The library calls it before Open, too.
func (b *bind) Close() error {
	if !b.opened.Load() {
		return nil
	}
	return b.shut()
}

// shut closes the sockets.
func (b *bind) shut() (err error) {
	b.closing.Do(func() {
		err = b.four.Close()
		if b.six != nil {
			err = errors.Join(err, b.six.Close())
		}
	})
	return err
}

// SetMark implements conn.Bind.
func (b *bind) SetMark(uint32) error { return nil }

// BatchSize implements conn.Bind.
func (b *bind) BatchSize() int { return conn.IdealBatchSize }
