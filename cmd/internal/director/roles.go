package director

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"vstun/balancer/health/notify"
	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/director/plan"
	"vstun/routing/neigh"
	"vstun/routing/query"
	"vstun/routing/vrrp"
)

// roles is the director's part in the election of VRRP. The zero value has no sockets: the director is always active.
// The controller's goroutine calls its methods, unless they say otherwise.
type roles struct {
	log      *slog.Logger
	notify   func(events ...notify.Event)
	rejoined func()           // an instance takes part again after a fault
	give     func(whole bool) // sends connections to the peers, before they get the roles: see peerSync.giveTable
	lost     func()           // a peer has got a role
	lan      *lan
	elected  func() vrrp.Roles // the present roles; nil: there is no [[vrrp]]
	router   *vrrp.Router      // nil: none
	gateways *neigh.Watcher    // nil: none
	asked    []neigh.Neighbour
	devices  []query.Device
	deaf     string // the last error of logDeaf; "": none
}

// open opens the sockets, if cfg has [[vrrp]].
func (r *roles) open(cfg *config.Director, log *slog.Logger, lan *lan) (err error) {
	r.log, r.lan, r.notify = log, lan, func(...notify.Event) {}
	r.give, r.lost, r.rejoined = func(bool) {}, func() {}, func() {}
	if len(cfg.VRRP) == 0 {
		return nil
	}
	if r.router, err = vrrp.Open(r.report); err != nil {
		return err
	}
	r.elected = r.router.Roles
	r.gateways, err = neigh.NewWatcher()
	return err
}

// now returns the present roles.
func (r *roles) now() vrrp.Roles {
	if r.elected == nil {
		return nil
	}
	return r.elected()
}

// isBackup reports whether another director is the master of an instance. It may be called from any goroutine.
func (r *roles) isBackup() bool {
	for _, role := range r.now() {
		if role == vrrp.Backup {
			return true
		}
	}
	return false
}

// changed returns the channel of changes of roles.
func (r *roles) changed() <-chan struct{} {
	if r.router == nil {
		return nil
	}
	return r.router.Changed()
}

// gatewayChanged returns the channel of changes of gateways.
func (r *roles) gatewayChanged() <-chan struct{} {
	if r.gateways == nil {
		return nil
	}
	return r.gateways.Changed()
}

func (r *roles) name() string { return "VRRP" }

func (r *roles) set(*plan.Desired) error { return nil }

// announce passes the state to the election, and the instances of a new configuration.
func (r *roles) announce(was, is *state) error {
	if r.router == nil {
		return nil
	}
	r.follow(is)
	if was == nil || was.inputs.File != is.inputs.File {
		r.router.Set(is.Config.Instances())
		r.logDeaf()
	}
	return nil
}

// logDeaf logs why VRRP packets of other directors may not come in, the same reason once in a row.
func (r *roles) logDeaf() {
	text := ""
	if err := r.router.JoinError(); err != nil {
		text = err.Error()
	}
	if text != "" && text != r.deaf {
		r.log.Error("VRRP packets of other directors may not come in", "error", text)
	}
	r.deaf = text
}

// follow passes the state of the devices, services and gateways to the election.
func (r *roles) follow(st *state) {
	if r.router == nil {
		return
	}
	r.followDevices(st.inputs.Devices)
	r.askGateways(st.Config)
	r.router.SetTracks(plan.Tracks(st.Config, r.devices, &st.Desired, r.gatewayUp))
}

// followDevices passes the host's devices to the election.
func (r *roles) followDevices(all []query.Device) {
	if r.router == nil {
		return
	}
	r.devices = all
	devices := make([]vrrp.Device, len(all))
	for i := range all {
		d := &all[i]
		devices[i] = vrrp.Device{Name: d.Name, Index: d.Index, Running: d.Running, Addrs: d.Addrs, Removals: d.Removals}
	}
	r.router.SetDevices(devices)
	r.logDeaf()
}

// askGateways keeps the tracked gateways resolved, on the devices with a link in whose subnets they are.
func (r *roles) askGateways(cfg *config.Director) {
	var all []neigh.Neighbour
	for _, gateway := range plan.Gateways(cfg) {
		for _, d := range r.devices {
			in := func(p netip.Prefix) bool { return p.Contains(gateway) }
			if d.Running && slices.ContainsFunc(d.Addrs, in) { // the kernel asks by no other
				all = append(all, neigh.Neighbour{Device: d.Index, Address: gateway})
			}
		}
	}
	if slices.Equal(all, r.asked) {
		return
	}
	r.asked = all
	if err := r.gateways.Set(all); err != nil {
		r.log.Error("cannot watch the gateways of [[vrrp]]", "error", err)
	}
}

// gatewayUp reports whether a gateway answers on any device, and whether that is known: the kernel needs three seconds
// to find that a neighbour does not answer.
func (r *roles) gatewayUp(gateway netip.Addr) (up, known bool) {
	known = true
	for n, st := range r.gateways.States() {
		switch {
		case n.Address != gateway || st.Silent:
		case st.MAC != [6]byte{}:
			return true, true
		default:
			known = false
		}
	}
	return false, known
}

// report logs and notifies an event of the election. The Router calls it.
func (r *roles) report(e vrrp.Event) {
	args := []any{"instance", e.Instance}
	switch e.Kind {
	case vrrp.RoleChanged:
		args = append(args, "old", e.Old, "new", e.New, "reason", e.Reason)
		level := slog.LevelInfo
		if e.New == vrrp.Fault {
			level = slog.LevelWarn
		}
		r.log.Log(context.Background(), level, "VRRP role", args...)
		if e.Old == vrrp.Fault && e.New == vrrp.Backup {
			r.rejoined()
		}
		r.notify(notify.Event{Time: time.Now(), Kind: notify.KindVRRP, Service: e.Instance, Old: e.Old.String(),
			New: e.New.String(), Reason: e.Reason})
	case vrrp.Reannounce:
		if r.lan.answerer != nil {
			r.lan.answerer.Reannounce(e.Addrs)
		}
	case vrrp.TwoMasters:
		r.log.Error("two directors are master, and neighbours may send packets to either: "+remedy(e.Refusal),
			append(args, "peer", e.Peer)...)
	case vrrp.OneMaster:
		r.log.Info("one director is master again", append(args, "peer", e.Peer)...)
	case vrrp.Differs:
		r.log.Warn("another director has other addresses in the instance, and keepalived 2.2 ignores such packets: "+
			"write the same addresses there and here", append(args, "peer", e.Peer, "addresses", names(e.Addrs))...)
	case vrrp.Ignored:
		r.log.Warn("VRRP packets are ignored: "+remedy(e.Refusal),
			append(args, "peer", e.Peer, "refused", e.Refusal)...)
	}
}

// remedies says by the reason of a refusal what to do.
var remedies = map[vrrp.Refusal]string{
	vrrp.Accepted:    "it refuses or does not hear this director: director peers there; let IP protocol 112 pass",
	vrrp.BadVersion:  "set the same version at both",
	vrrp.BadCast:     "list peers at both, or at neither",
	vrrp.BadAuthType: "set the same password at both, or none",
	vrrp.BadPassword: "set the same password at both",
	vrrp.BadInterval: "set the same interval at both, which version 2 requires",
	vrrp.BadTTL:      "they come from another network: list peers, or look for the sender",
	vrrp.BadSource:   "add the sender to peers, or look for it",
	vrrp.NoTrailer:   "they have no HMAC: set the same key at both; until then key_mode = \"permissive\"",
	vrrp.BadTrailer:  "their HMAC is of an unknown type: look for its sender's program",
	vrrp.BadKey:      "set the same key and key_id at both",
	vrrp.BadHMAC:     "set the same key at both",
	vrrp.Stale:       "set both hosts' clocks",
	vrrp.Replayed:    "look for a sender that repeats old packets",
}

func remedy(r vrrp.Refusal) string {
	if s, ok := remedies[r]; ok {
		return s
	}
	return "look for a faulty sender"
}

// hold keeps the director from taking a role from another master, or no longer.
func (r *roles) hold(held bool) {
	if r.router != nil {
		r.router.SetHeld(held)
	}
}

func (r *roles) shared() bool { return r.router != nil }

// standby gives the roles up, or takes them again.
func (r *roles) standby(on bool) {
	switch {
	case r.router == nil:
	case on:
		r.router.Standby()
	default:
		r.router.Activate()
	}
}

// status sets the instances.
func (r *roles) status(_ *state, st *api.DirectorStatus) {
	if r.router == nil {
		return
	}
	list := r.router.Status()
	for i := range list {
		st.VRRP = append(st.VRRP, vrrpStatus(&list[i]))
	}
}

func vrrpStatus(s *vrrp.Status) api.VRRP {
	v := api.VRRP{Name: s.Name, Interface: s.Device, RouterID: s.RouterID, Version: s.Version, Group: s.Group,
		Role: s.Role.String(), Since: s.Since.Seconds(), Reason: s.Reason, Fault: s.Fault, Standby: s.Standby,
		Held: s.Held, Priority: s.InForce, Configured: s.Priority, Interval: s.MasterInterval.Seconds(),
		Addresses: names(s.Addrs), Sent: s.Counts.Sent, Received: s.Counts.Received, Elected: s.Counts.Elected,
		Conflicts: s.Counts.Conflicts, Paused: s.Counts.Paused, Failed: s.Counts.Failed, Refused: map[string]uint64{}}
	s.Counts.Refused.All(func(r vrrp.Refusal, n uint64) {
		if n > 0 {
			v.Refused[r.String()] = n
		}
	})
	if s.SendError != nil {
		v.SendError, v.SendErrorAge = s.SendError.Error(), s.SendErrorAge.Seconds()
	}
	for _, t := range s.Tracks {
		v.Tracks = append(v.Tracks, api.Track{Name: t.Name, Up: t.Up, Weight: t.Weight})
	}
	for _, p := range s.Peers {
		peer := api.Peer{Address: p.Addr.String(), Priority: p.Priority, Last: p.Age.Seconds(),
			Refused: p.Refusal.String(), Differs: p.Differs}
		if p.Refusal != vrrp.Accepted {
			peer.Fix = remedy(p.Refusal)
		}
		v.Peers = append(v.Peers, peer)
	}
	if s.Rival.IsValid() {
		v.OtherMaster = &api.OtherMaster{Address: s.Rival.String(), Refused: s.RivalRefused.String(),
			Fix: remedy(s.RivalRefused)}
	}
	return v
}

// learnt is the time in which neighbours learn of a new master, after its first advertisement.
const learnt = 200 * time.Millisecond

// leave gives the roles up, and returns when another director has them, and the neighbours know: they still send
// packets here until then. They get no answers meanwhile.
func (r *roles) leave() error {
	if r.router == nil {
		return nil
	}
	if newMaster(r.router.Roles(), nil) {
		r.give(false) // peers have the rest
	}
	err := r.lan.leave()
	if r.router.HandOver() {
		time.Sleep(learnt)
	}
	r.router.Stop()
	return err
}

// run takes part in the election until ctx is cancelled: call leave first.
func (r *roles) run(ctx context.Context) error {
	if r.router == nil {
		<-ctx.Done()
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, 2)
	for _, run := range []func(context.Context) error{r.gateways.Run, r.router.Run} {
		go func() {
			defer cancel()
			failed <- run(ctx)
		}()
	}
	return errors.Join(<-failed, <-failed)
}

// newMaster reports whether this director is the master of an instance by roles, and is not by before.
func newMaster(roles, before vrrp.Roles) bool {
	for name, role := range roles {
		if role == vrrp.Master && before[name] != vrrp.Master {
			return true
		}
	}
	return false
}

// close closes the sockets, also if open has failed half-way.
func (r *roles) close() (err error) {
	if r.router != nil {
		err = r.router.Close()
	}
	if r.gateways != nil {
		err = errors.Join(err, r.gateways.Close())
	}
	return err
}
