package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vstun/cmd/internal/lab"
)

const (
	echoPort    = 7
	echoTimeout = 2 * time.Second // for one byte to come back
	echoWarmUp  = 100             // round trips that don't count
)

// echo answers each byte with the same byte. Both ends use blocking sockets in threads of their own, which keeps Go's
// poller out of the figures.
type echo struct {
	listener net.Listener
	done     sync.WaitGroup
}

// startEcho listens on all addresses of a host.
func startEcho(h *lab.Host) (*echo, error) {
	ln, err := h.Listen("tcp", fmt.Sprintf(":%d", echoPort))
	if err != nil {
		return nil, err
	}
	e := &echo{listener: ln}
	e.done.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return // closed
			}
			e.done.Go(func() { serveEcho(conn.(*net.TCPConn)) })
		}
	})
	return e, nil
}

// serveEcho serves a connection until its end.
func serveEcho(conn *net.TCPConn) {
	nameThread(tripServer)
	file, err := conn.File()
	conn.Close()
	if err != nil {
		return
	}
	defer file.Close()
	fd := int(file.Fd()) // is blocking from here on
	buf := make([]byte, 1)
	for {
		n, err := unix.Read(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if n != 1 || err != nil {
			return
		}
		if _, err := unix.Write(fd, buf); err != nil {
			return
		}
	}
}

// close ends the server, whose connections must have ended.
func (e *echo) close() {
	e.listener.Close()
	e.done.Wait()
}

// roundTrips measures the time for one byte there and back on one TCP connection, count times, and returns the median
// and the 99th percentile in nanoseconds. On a fast path the connection must get there first.
func (p *tcpPath) roundTrips(ctx context.Context, count int) (p50, p99 float64, err error) {
	promotion, err := p.watchPromotion(ctx)
	if err != nil {
		return 0, 0, err
	}
	times := make([]time.Duration, 0, count)
	err = p.bed.lab.Client.Do(func() error {
		nameThread(tripClient)
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("socket: %w", err)
		}
		defer unix.Close(fd)
		limit := unix.NsecToTimeval(echoTimeout.Nanoseconds())
		if err := errors.Join(
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit), // connect's, too
			unix.Connect(fd, &unix.SockaddrInet4{Port: echoPort, Addr: p.addr.As4()}),
		); err != nil {
			return fmt.Errorf("connect: %w", err)
		}
		if err := p.warmUp(ctx, fd, promotion); err != nil {
			return err
		}
		for range count {
			took, err := roundTrip(fd)
			if err = errors.Join(err, ctx.Err()); err != nil {
				return err
			}
			times = append(times, took)
		}
		return nil
	})
	if err != nil {
		return 0, 0, fmt.Errorf("round trips to %s: %w", p.addr, err)
	}
	slices.Sort(times)
	return float64(percentile(times, 0.50)), float64(percentile(times, 0.99)), nil
}

// warmUp makes round trips that do not count, on a fast path until the kernel has the connection.
func (p *tcpPath) warmUp(ctx context.Context, fd int, promotion promotion) error {
	for deadline := time.Now().Add(fastTimeout); ; {
		for range echoWarmUp {
			if _, err := roundTrip(fd); err != nil {
				return err
			}
		}
		err := promotion.done(ctx, 1)
		if err == nil || ctx.Err() != nil || time.Now().After(deadline) {
			return errors.Join(err, ctx.Err())
		}
	}
}

// roundTrip sends a byte and waits for it to come back.
func roundTrip(fd int) (time.Duration, error) {
	buf := []byte{'x'}
	begin := time.Now()
	if _, err := unix.Write(fd, buf); err != nil {
		return 0, fmt.Errorf("write: %w", err)
	}
	n, err := unix.Read(fd, buf)
	for err == unix.EINTR { // a signal of the Go runtime
		n, err = unix.Read(fd, buf)
	}
	if err != nil {
		return 0, fmt.Errorf("no byte came back: %w", err)
	}
	if n != 1 {
		return 0, errors.New("the other end closed the connection")
	}
	return time.Since(begin), nil
}
