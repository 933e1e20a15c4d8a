package health

import (
	"context"
	"errors"
	"net"
	"net/netip"
)

// Direct is the way that the machine's routes give, to a realserver's own address.
type Direct struct {
	Pinger func(ctx context.Context, to netip.Addr) error // nil: there is none
}

// DialContext is Path's.
func (Direct) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	// Keep-alives would be for connections that last; off, they cost two system calls less.
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: false}, KeepAlive: -1}
	return d.DialContext(ctx, network, address)
}

// Ping is Path's.
func (d Direct) Ping(ctx context.Context, to netip.Addr) error {
	if d.Pinger == nil {
		return errors.New("this director can't ping")
	}
	return d.Pinger(ctx, to)
}
