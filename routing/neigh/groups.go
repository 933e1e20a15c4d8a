package neigh

import (
	"errors"
	"fmt"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// groups is the multicast groups that the process is a member of. The kernel reports them to switches by MLD, and to
// the network cards. It leaves them with the sockets.
type groups struct {
	conns  []*socket.Conn // as many as net.core.optmem_max requires; none: the kernel has no IPv6
	in     map[place]*socket.Conn
	closed bool
}

func openGroups() (*groups, error) {
	g := &groups{in: map[place]*socket.Conn{}}
	_, err := g.open()
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, err
	}
	return g, nil
}

// open opens one more socket.
func (g *groups) open() (*socket.Conn, error) {
	c, err := socket.Socket(unix.AF_INET6, unix.SOCK_DGRAM, 0, "udp6", nil)
	if err != nil {
		return nil, fmt.Errorf("socket for multicast groups: %w", err)
	}
	g.conns = append(g.conns, c)
	return c, nil
}

// set makes the process a member of the groups in want alone. It joins those in anew again: the device may have
// forgotten them. The error names the groups that could not be joined.
func (g *groups) set(want map[place]bool, anew func(index int) bool) error {
	if len(g.conns) == 0 {
		return nil
	}
	for p, c := range g.in {
		if !want[p] || anew(p.index) {
			_ = change(c, unix.IPV6_LEAVE_GROUP, p) // fails if its device is gone
			delete(g.in, p)
		}
	}
	var errs []error
	for p := range want {
		if g.in[p] != nil {
			continue
		}
		c, err := g.join(p)
		if err != nil {
			errs = append(errs, fmt.Errorf("join %s on device %d: %w", p.addr, p.index, err))
			continue
		}
		g.in[p] = c
	}
	return errors.Join(errs...)
}

// join joins a group by a socket with room for it, and returns the socket. A socket has net.core.optmem_max bytes for
// its groups.
func (g *groups) join(p place) (*socket.Conn, error) {
	for _, c := range g.conns {
		if err := change(c, unix.IPV6_JOIN_GROUP, p); !errors.Is(err, unix.ENOMEM) {
			return c, err
		}
	}
	c, err := g.open()
	if err != nil {
		return nil, err
	}
	return c, change(c, unix.IPV6_JOIN_GROUP, p)
}

// change joins or leaves a group.
func change(c *socket.Conn, option int, p place) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	request := unix.IPv6Mreq{Multiaddr: p.addr.As16(), Interface: uint32(p.index)}
	cerr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptIPv6Mreq(int(fd), unix.IPPROTO_IPV6, option, &request)
	})
	return errors.Join(cerr, err)
}

func (g *groups) close() error {
	if g.closed {
		return nil
	}
	g.closed = true
	var errs []error
	for _, c := range g.conns {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// solicitedNodes returns the groups that t needs.
func (t *table) solicitedNodes() map[place]bool {
	want := map[place]bool{}
	for index, d := range t.devices {
		for _, a := range d.Addrs {
			if a.Is6() {
				want[place{index, solicitedNode(a)}] = true
			}
		}
	}
	return want
}
