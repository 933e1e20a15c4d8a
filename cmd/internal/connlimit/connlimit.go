// Package connlimit bounds the connections of an http.Server: in all, and of each client. At a bound it closes the
// connection that has been idle for longest. So clients that keep connections open do not lock others out.
package connlimit

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Limit has the connections of one server. Its State is the server's ConnState.
type Limit struct {
	total, each int
	client      func(net.Conn) string
	open        sync.WaitGroup
	mu          sync.Mutex
	conns       map[net.Conn]*conn
}

// conn is a counted connection.
type conn struct {
	client string
	idle   bool // it waits for a request
	since  time.Time
}

// New returns a Limit. total bounds all connections, each the connections of one client. The function client names the
// client of a connection; connections of the client "" do not count, and are not closed.
func New(total, each int, client func(net.Conn) string) *Limit {
	return &Limit{total: total, each: each, client: client, conns: map[net.Conn]*conn{}}
}

// State follows a connection. At a bound without an idle connection, a new connection is refused with status 503.
func (l *Limit) State(c net.Conn, s http.ConnState) {
	switch s {
	case http.StateNew:
		l.open.Add(1)
		l.add(c)
	case http.StateActive, http.StateIdle:
		l.mu.Lock()
		if known := l.conns[c]; known != nil {
			known.idle, known.since = s == http.StateIdle, time.Now()
		}
		l.mu.Unlock()
	case http.StateClosed, http.StateHijacked:
		l.mu.Lock()
		delete(l.conns, c)
		l.mu.Unlock()
		l.open.Done()
	}
}

// Wait returns when the goroutines of all connections have ended. http.Server.Close does not wait for them. Call it
// after Serve has returned.
func (l *Limit) Wait() { l.open.Wait() }

// add makes room for a new connection, or refuses it.
func (l *Limit) add(c net.Conn) {
	client := l.client(c)
	if client == "" {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	same := 0
	for _, other := range l.conns {
		if other.client == client {
			same++
		}
	}
	switch {
	case same >= l.each:
		if !l.evict(client) {
			refuse(c, "this client has too many connections at a time: close some, or ask again")
			return
		}
	case len(l.conns) >= l.total:
		if !l.evict("") {
			refuse(c, "too many connections at a time: ask again")
			return
		}
	}
	l.conns[c] = &conn{client: client, idle: true, since: time.Now()}
}

// evict closes the connection of client, or of any client if client is "", that has been idle for longest. It reports
// whether there is an idle one.
func (l *Limit) evict(client string) bool {
	var oldest net.Conn
	for c, k := range l.conns {
		if k.idle && (client == "" || k.client == client) && (oldest == nil || k.since.Before(l.conns[oldest].since)) {
			oldest = c
		}
	}
	if oldest == nil {
		return false
	}
	delete(l.conns, oldest)
	oldest.Close()
	return true
}

// refuse answers a connection that has not been read from, and closes it.
func refuse(c net.Conn, why string) {
	_ = c.SetWriteDeadline(time.Now().Add(time.Second)) // the buffer of a new connection has room
	_, _ = fmt.Fprintf(c, "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; "+
		"charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n", len(why)+1)
	_, _ = io.WriteString(c, why+"\n")
	c.Close()
}

// ByAddress names the client of a connection over TCP: its IPv4 address, or the /64 of its IPv6 address, since one host
// may have a whole /64.
func ByAddress(c net.Conn) string {
	at, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return c.RemoteAddr().String()
	}
	if a := at.Addr().Unmap(); a.Is4() {
		return a.String()
	}
	return netip.PrefixFrom(at.Addr().WithZone(""), 64).Masked().String()
}

// ByProcess names the client of a connection over a Unix socket by user and process: SO_PEERCRED, unix(7). The program
// itself is "".
func ByProcess(c net.Conn) string {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return c.RemoteAddr().String()
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return "unknown"
	}
	var peer *unix.Ucred
	if raw.Control(func(fd uintptr) {
		peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}) != nil || err != nil {
		return "unknown"
	}
	if peer.Pid == int32(unix.Getpid()) {
		return ""
	}
	return fmt.Sprintf("uid %d, pid %d", peer.Uid, peer.Pid)
}
