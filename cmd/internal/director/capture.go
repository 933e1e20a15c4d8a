package director

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"net/url"

	"vstun/balancer/forward"
	"vstun/cmd/internal/api"
	"vstun/cmd/internal/capture"
)

// capture answers GET /capture: packets of the flows that the query asks for, before and after encapsulation, as
// pcapng.
func (d *director) capture(q url.Values) (func(ctx context.Context, w io.Writer, flush func() error) (any, error),
	error) {
	want, err := api.ParseCapture(q)
	if err != nil {
		return nil, err
	}
	if err := d.checkNames(&api.Filter{VIP: want.VIP, Realserver: want.Realserver}); err != nil {
		return nil, err
	}
	tap := forward.NewCapture(forward.CaptureFilter{Client: want.Client, ClientPort: want.ClientPort, VIP: want.VIP,
		Port: want.Port, Realserver: want.Realserver}, want.Packets, want.Bytes)
	if !d.plane.shared.StartCapture(tap) {
		return nil, errors.New("another capture is running: wait for its end")
	}
	return func(ctx context.Context, w io.Writer, flush func() error) (any, error) {
		ctx, cancel := context.WithTimeout(ctx, want.Time)
		defer cancel()
		defer context.AfterFunc(ctx, func() { d.plane.shared.StopCapture(tap) })() // also while w waits for its reader
		defer d.plane.shared.StopCapture(tap)
		defer d.plane.fast.exclude(tap)()
		n, err := capture.Write(ctx, w, flush, tap, d.sourceTo)
		return api.Captured(n), err
	}, nil
}

// endCapture answers POST /capture/end: it ends the running capture.
func (d *director) endCapture(url.Values) (any, error) {
	d.plane.shared.StopCurrentCapture()
	return struct{}{}, nil
}

// sourceTo returns the source address that the kernel gives a tunnel packet to a realserver, if it is known.
func (d *director) sourceTo(a netip.Addr) netip.Addr {
	return d.controller.state().inputs.Paths[a].Source
}
