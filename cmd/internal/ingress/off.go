package ingress

import "log/slog"

// Reasons for a fast path that is off.
const (
	OffByKey    = `fast_path is "off"`
	OffIPsec    = "this host has IPsec policies, which the fast path cannot obey"
	OffNoDevice = "no device: packets come by none, or fast_path_devices names none that is up"
)

// Policies are this host's IPsec policies, which a program at ingress passes by. One goroutine uses them at a time.
type Policies struct {
	Ask     func() (in, out bool, err error) // query.HasIPsec
	unasked bool                             // the last question had no answer
	logged  bool                             // the answer that the log has
}

// Look reports whether there are policies for packets that come, and for those that leave. Without an answer of the
// kernel it returns false, and logs the first such error in a row.
func (p *Policies) Look(log *slog.Logger) (in, out bool) {
	in, out, err := p.Ask()
	if err != nil && !p.unasked {
		log.Warn("cannot ask for IPsec policies: the fast path goes on as if there were none", "error", err)
	}
	p.unasked = err != nil
	return in, out
}

// Log logs that there are policies which the fast path cannot obey, and later that there are none any more. has is the
// last answer of Look that matters.
func (p *Policies) Log(log *slog.Logger, has bool) {
	switch {
	case has && !p.logged:
		log.Info("there is no fast path while this host has IPsec policies")
	case !has && p.logged:
		log.Info("this host has no IPsec policies any more: the fast path goes on")
	}
	p.logged = has
}
