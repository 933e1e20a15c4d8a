package wire

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"vstun/encap/packet"
)

// Receivers share the packets of the same sockets. Open and Use replace sockets while the receivers run. Sockets that
// stay lose no packet.
//
// A program that gives up CAP_NET_RAW first calls Spare to open raw sockets for later use. They are parked: bound to an
// address that no packet has as destination. A parked socket receives no packet, costs nothing per packet, and does not
// keep the kernel from answering "protocol unreachable". Binding it to all addresses again needs no capability.
type Receivers []*Receiver

// Parked raw sockets are bound to IPv4's dummy address (RFC 7600), or to one of IPv6's discard-only prefix (RFC 6666).
var (
	nowhere4 = netip.MustParseAddr("192.0.0.8")
	nowhere6 = netip.MustParseAddr("100::1")
)

// Spare opens and parks raw sockets, except those that rs have already. On a kernel without IPv6 it skips those over
// IPv6.
func (rs Receivers) Spare(sockets ...Socket) error {
	for i, r := range rs {
		for _, s := range sockets {
			if slices.Contains(r.sockets, s) {
				continue
			}
			fd, err := s.open(i, len(rs))
			if s.Over6 && errors.Is(err, unix.EAFNOSUPPORT) {
				continue
			}
			if err == nil {
				if err = s.park(fd); err != nil {
					unix.Close(fd)
				}
			}
			if err != nil {
				return fmt.Errorf("%s: %w", s, err)
			}
			err = r.fds.Change(func(nums []int) ([]int, int) {
				r.sockets = append(slices.Clone(r.sockets), s)
				return append(nums, fd), r.used
			})
			if err != nil {
				unix.Close(fd)
				return err
			}
		}
	}
	return nil
}

// Opened is a set of open sockets. Their packets wait until Use.
type Opened struct {
	receivers Receivers
	sockets   []Socket
	fresh     []map[Socket]int // descriptors, by receiver
	woken     []Socket         // sockets that were parked
}

// Open opens the sockets that rs do not use yet, and unparks parked ones. The caller then calls Use, or Close to give
// them up. An error changes nothing.
func (rs Receivers) Open(sockets ...Socket) (_ *Opened, err error) {
	o := &Opened{receivers: rs, sockets: sockets, fresh: make([]map[Socket]int, len(rs))}
	defer func() {
		if err != nil {
			o.Close()
		}
	}()
	for _, s := range sockets {
		if at := slices.Index(rs[0].sockets, s); at >= 0 && at < rs[0].used {
			continue
		} else if at >= 0 {
			o.woken = append(o.woken, s)
			if err := rs.each(s, s.wake); err != nil {
				return nil, err
			}
			continue
		}
		for i := range rs {
			fd, err := s.open(i, len(rs))
			if err != nil {
				return nil, fmt.Errorf("%s: %w", s, err)
			}
			if o.fresh[i] == nil {
				o.fresh[i] = map[Socket]int{}
			}
			o.fresh[i][s] = fd
		}
	}
	return o, nil
}

// each calls fn for the descriptor of s in each receiver.
func (rs Receivers) each(s Socket, fn func(fd int) error) error {
	for _, r := range rs {
		if err := r.fds.Acquire(); err != nil {
			return err
		}
		err := fn(int(r.fds.Num(slices.Index(r.sockets, s))))
		r.fds.Release()
		if err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
	}
	return nil
}

// Close gives up the sockets of Open: it closes new ones, and parks those that were parked. After Use it does nothing.
func (o *Opened) Close() {
	for _, s := range o.woken {
		_ = o.receivers.each(s, s.park) // fails only if the receivers are closed
	}
	o.woken = nil
	for _, fresh := range o.fresh {
		for _, fd := range fresh {
			unix.Close(fd)
		}
	}
	o.fresh = nil
}

// Use makes the receivers receive from the sockets that were passed to Open, and from no others. It closes the other
// UDP sockets, with the packets that wait in them, and parks the other raw ones. It returns os.ErrClosed after
// Receivers.Close.
func (o *Opened) Use() error {
	for i, r := range o.receivers {
		err := r.fds.Change(func(nums []int) ([]int, int) { return r.exchange(o.sockets, o.fresh[i], nums) })
		if err != nil {
			o.fresh = o.fresh[i:]
			o.woken = nil
			o.Close()
			return err
		}
	}
	o.fresh, o.woken = nil, nil
	return nil
}

// exchange makes r receive from sockets, whose descriptors are in nums or fresh. It returns all descriptors, the used
// ones first, and how many are used.
func (r *Receiver) exchange(sockets []Socket, fresh map[Socket]int, nums []int) (next []int, used int) {
	all := slices.Clone(sockets)
	for _, s := range sockets {
		if fd, ok := fresh[s]; ok {
			next = append(next, fd)
		} else {
			next = append(next, nums[slices.Index(r.sockets, s)])
		}
	}
	for i, s := range r.sockets {
		switch {
		case slices.Contains(sockets, s):
		case s.Protocol == packet.ProtoUDP || i < r.used && s.park(nums[i]) != nil:
			r.lost += overruns(uintptr(nums[i]))
			unix.Close(nums[i])
		default:
			all, next = append(all, s), append(next, nums[i])
		}
	}
	r.sockets, r.used, r.next = all, len(sockets), len(sockets)
	return next, r.used
}

// Close closes all sockets, and ends each ReadBatch.
func (rs Receivers) Close() error {
	var errs []error
	for _, r := range rs {
		if err := r.Close(); !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// park binds the raw socket fd so that it receives no packets, and discards those that wait.
func (s Socket) park(fd int) error {
	to, level, freebind := nowhere4, unix.IPPROTO_IP, unix.IP_FREEBIND
	if s.Over6 {
		to, level, freebind = nowhere6, unix.IPPROTO_IPV6, unix.IPV6_FREEBIND
	}
	if err := unix.SetsockoptInt(fd, level, freebind, 1); err != nil {
		return err
	}
	if err := bindRaw(fd, to); err != nil {
		return err
	}
	drain(fd)
	return nil
}

// wake makes the parked raw socket fd receive packets of its protocol again.
func (s Socket) wake(fd int) error {
	drain(fd)
	if s.Over6 {
		return bindRaw(fd, netip.IPv6Unspecified())
	}
	return bindRaw(fd, netip.IPv4Unspecified())
}

func bindRaw(fd int, a netip.Addr) error {
	if a.Is4() {
		return unix.Bind(fd, &unix.SockaddrInet4{Addr: a.As4()})
	}
	return unix.Bind(fd, &unix.SockaddrInet6{Addr: a.As16()})
}
