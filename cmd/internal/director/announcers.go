package director

import (
	"context"
	"errors"
	"net/url"
	"slices"
	"sync"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/director/plan"
)

// An announcer makes other hosts send the packets of VIPs here. The plan decides about the VIPs:
//
//	VRRP's roles, devices, quorum, announce_when, standby ─► plan.Plan ─► Desired ─► announcer ─► other hosts
//
// The controller's goroutine calls set and announce; any other one may call the rest.
type announcer interface {
	name() string
	// set puts the part of d in force that can be refused: on an error the caller sets the former one again.
	set(d *plan.Desired) error
	// announce replaces what was announced in was, nil at the start, by what is to be in is, which is in force.
	announce(was, is *state) error
	// shared reports whether other directors can have the VIPs in place of this one.
	shared() bool
	// standby gives the VIPs to them as far as the plan does not, or no longer.
	standby(on bool)
	// leave gives the VIPs up before the end, and returns when their packets do not come here any more.
	leave() error
	status(of *state, st *api.DirectorStatus)
	// close closes the sockets, also if open has failed half-way.
	close() error
}

// newAnnouncers returns d's announcers. The first one leaves last.
func (d *director) newAnnouncers() []announcer { return []announcer{&d.lan, &d.roles, &d.routers} }

// leave gives the VIPs up when ctx is cancelled, and returns when packets do not come here any more. Neighbours are
// answered to the last, unless another director gets the role to answer them.
func (d *director) leave(ctx context.Context) error {
	<-ctx.Done()
	errs := make([]error, len(d.announcers))
	var leaving sync.WaitGroup
	for i, a := range d.announcers[1:] {
		leaving.Go(func() { errs[i] = a.leave() })
	}
	leaving.Wait()
	return errors.Join(append(errs, d.announcers[0].leave())...)
}

// closeAnnouncers closes the announcers, the last one first.
func (d *director) closeAnnouncers() error {
	var errs []error
	for _, a := range slices.Backward(d.announcers) {
		errs = append(errs, a.close())
	}
	return errors.Join(errs...)
}

// hold keeps the director from taking VIPs from other directors, or no longer. Once it has VIPs, a new hold is about
// roles of VRRP alone. It may be called from any goroutine.
func (d *director) hold(held bool) {
	d.roles.hold(held)
	if !held && d.controller.state().inputs.Held {
		_ = d.controller.change(func(in *plan.Inputs) { in.Held = false })
	}
}

var errAlone = errors.New("this director has neither [[vrrp]] nor [bgp], so that it has no peers: it is always active")

// standby is POST /standby. It may be called from any goroutine.
func (d *director) standby(url.Values) (any, error) { return d.standBy(true) }

// activate is POST /active. It may be called from any goroutine.
func (d *director) activate(url.Values) (any, error) { return d.standBy(false) }

// standBy begins a standby, or ends it: also one whose announcers a reload has taken out of the configuration.
func (d *director) standBy(on bool) (any, error) {
	ends := !on && d.controller.state().inputs.Standby
	if !ends && !slices.ContainsFunc(d.announcers, announcer.shared) {
		return nil, errAlone
	}
	if on {
		d.sync.giveTable(true)
	}
	for _, a := range d.announcers {
		a.standby(on)
	}
	if err := d.controller.change(func(in *plan.Inputs) { in.Standby = on }); err != nil {
		return nil, err
	}
	return d.peers(), nil
}

// peers is the answer to GET /peers. It may be called from any goroutine.
func (d *director) peers() api.Peers {
	var st api.DirectorStatus
	d.announcersStatus(&st)
	return api.Peers{VRRP: st.VRRP, Sync: d.sync.status(), BGP: st.BGP}
}

func (d *director) announcersStatus(st *api.DirectorStatus) {
	state := d.controller.state()
	for _, a := range d.announcers {
		a.status(state, st)
	}
}
