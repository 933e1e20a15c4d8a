package health

import (
	"context"
	"errors"
	"net"
	"net/netip"
)

// Direct is the Path along this machine's routes, to a realserver's own address.
type Direct struct {
	Pinger func(ctx context.Context, to netip.Addr) error // nil: Ping fails
}

// DialContext implements Path.
func (Direct) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	// A short connection needs no keep-alives. Without them there are two system calls less.
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: false}, KeepAlive: -1}
	return d.DialContext(ctx, network, address)
}

// Ping implements Path.
func (d Direct) Ping(ctx context.Context, to netip.Addr) error {
	if d.Pinger == nil {
		return errors.New("this director can't ping")
	}
	return d.Pinger(ctx, to)
}
