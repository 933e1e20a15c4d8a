package director

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"vstun/cmd/internal/config"
	"vstun/cmd/internal/words"
	"vstun/routing/query"
)

// This file checks whether [[vrrp]], [sync] and keys with names of devices fit this host.

// instanceLabel names an instance as the lines about the configuration do.
func instanceLabel(v *config.VRRP) string { return fmt.Sprintf("vrrp %q", v.Name) }

// checkPeers refuses peers that are this host alone.
func checkPeers(cfg *config.Director) error {
	all := slices.Clone(cfg.Sync.Peers)
	for i := range cfg.VRRP {
		all = append(all, cfg.VRRP[i].Peers...)
	}
	if len(all) == 0 {
		return nil
	}
	local, err := query.LocalLinks(all...)
	if err != nil {
		return err
	}
	var errs []error
	check := func(label string, peers []netip.Addr) {
		if len(peers) > 0 && !slices.ContainsFunc(peers, func(a netip.Addr) bool { return local[a] == "" }) {
			errs = append(errs, fmt.Errorf("%sall are addresses of this host: add those of the other directors",
				cfg.Places.At(label, "peers", "")))
		}
	}
	for i := range cfg.VRRP {
		check(instanceLabel(&cfg.VRRP[i]), cfg.VRRP[i].Peers)
	}
	check("sync", cfg.Sync.Peers)
	return errors.Join(errs...)
}

// checkOwn refuses the own address of this host among the addresses that move, if its device has no other one to send
// from. Only before the start: a master has the addresses.
func checkOwn(cfg *config.Director, devices []query.Device) error {
	var errs []error
	for i := range cfg.VRRP {
		v := &cfg.VRRP[i]
		at := slices.IndexFunc(devices, func(d query.Device) bool { return d.Name == v.Device })
		if at < 0 {
			continue
		}
		own := sources(v, &devices[at])
		if len(own) == 0 || slices.ContainsFunc(own, func(a netip.Addr) bool { return mover(cfg, a) == nil }) {
			continue
		}
		for _, a := range own {
			owner := mover(cfg, a)
			if slices.Contains(owner.VIPs, a) {
				continue // see checkLocal
			}
			key := "addresses"
			if slices.Contains(owner.Excluded, a) {
				key = "excluded"
			}
			errs = append(errs, fmt.Errorf("%s%v is the own address of this host on %s, which has no other one to "+
				"send from: want one that may move, and leave the host's own address out",
				cfg.Places.At(instanceLabel(owner), key, a.String()), a, v.Device))
		}
	}
	return errors.Join(errs...)
}

// mover returns the instance with which an address moves, or nil.
func mover(cfg *config.Director, a netip.Addr) *config.VRRP {
	for i := range cfg.VRRP {
		if v := &cfg.VRRP[i]; slices.Contains(v.Addrs, a) || slices.Contains(v.Excluded, a) {
			return v
		}
	}
	return nil
}

// sources returns the addresses of d from which an instance can send, by their family. IPv6 multicast goes from
// link-local ones.
func sources(v *config.VRRP, d *query.Device) (all []netip.Addr) {
	for _, p := range d.Addrs {
		a, six := p.Addr(), v.Addrs[0].Is6()
		if a.Is6() == six && (!six || len(v.Peers) > 0 || a.IsLinkLocalUnicast()) {
			all = append(all, a)
		}
	}
	return all
}

// deviceWarnings says which devices that cfg names are not there, and what else of [[vrrp]] and [sync] does not fit the
// devices of this host. It may fit later. Without devices, which a failed query leaves, it says nothing.
func deviceWarnings(cfg *config.Director, devices []query.Device) (all []string) {
	if len(devices) == 0 {
		return nil
	}
	for _, k := range []struct {
		key, outcome string
		names        []string
	}{
		{"announce_devices", "nothing is announced on it", cfg.Announce.Devices},
		{"fast_path_devices", "packets that come by it do not take the fast path", cfg.FastPath.Devices},
	} {
		for _, name := range k.names {
			if !slices.ContainsFunc(devices, func(d query.Device) bool { return d.Name == name }) {
				all = append(all, fmt.Sprintf("%sthere is no device %s, and %s: %s",
					cfg.Places.At("director", k.key, name), name, k.outcome, wantDevice(cfg, devices)))
			}
		}
	}
	return append(all, pairWarnings(cfg, devices)...)
}

// pairWarnings is the part of deviceWarnings about [[vrrp]] and [sync].
func pairWarnings(cfg *config.Director, devices []query.Device) (all []string) {
	for i := range cfg.VRRP {
		v := &cfg.VRRP[i]
		label := instanceLabel(v)
		all = append(all, trackWarnings(cfg, v, devices)...)
		at := slices.IndexFunc(devices, func(d query.Device) bool { return d.Name == v.Device })
		if at < 0 {
			all = append(all, fmt.Sprintf("%sthere is no device %s, and without it the instance has a fault: %s",
				cfg.Places.At(label, "interface", ""), v.Device, wantDevice(cfg, devices)))
			continue
		}
		if own := sources(v, &devices[at]); v.Source.IsValid() && !slices.Contains(own, v.Source) {
			own = slices.DeleteFunc(own, func(a netip.Addr) bool { return mover(cfg, a) != nil })
			want := "give it to the device"
			if len(own) > 0 {
				want = "want " + words.OneOf(names(own))
			}
			all = append(all, fmt.Sprintf("%s%v is no address of %s, and without it the instance has a fault: %s",
				cfg.Places.At(label, "source", ""), v.Source, v.Device, want))
		}
	}
	if text := noSyncDevice(cfg, devices); text != "" {
		all = append(all, text)
	}
	return all
}

// trackWarnings says which devices of v's tracks are not there.
func trackWarnings(cfg *config.Director, v *config.VRRP, devices []query.Device) (all []string) {
	for i := range v.Track {
		k := &v.Track[i]
		if k.Device == "" || slices.ContainsFunc(devices, func(d query.Device) bool { return d.Name == k.Device }) {
			continue
		}
		outcome := "the instance has a fault"
		switch {
		case k.Weight < 0:
			outcome = fmt.Sprintf("the priority is lower by %d", -k.Weight)
		case k.Weight > 0:
			outcome = fmt.Sprintf("the priority is not raised by %d", k.Weight)
		}
		label := fmt.Sprintf("%s: track[%d]", instanceLabel(v), i+1)
		all = append(all, fmt.Sprintf("%sthere is no device %s, and without it %s: %s",
			cfg.Places.At(label, "interface", ""), k.Device, outcome, wantDevice(cfg, devices)))
	}
	return all
}

// noSyncDevice says that the device of [sync] is not there; "" if it is, or if the director makes it: a tunnel's.
func noSyncDevice(cfg *config.Director, devices []query.Device) string {
	name := cfg.Sync.Interface
	if name == "" || slices.ContainsFunc(devices, func(d query.Device) bool { return d.Name == name }) ||
		slices.ContainsFunc(cfg.Tunnels, func(p config.PointToPoint) bool { return p.Name == name }) {
		return ""
	}
	return fmt.Sprintf("%sthere is no device %s, and without it the director does not start: %s",
		cfg.Places.At("sync", "interface", ""), name, wantDevice(cfg, devices))
}

// wantDevice names the devices that there are, without the director's own and the loopback device.
func wantDevice(cfg *config.Director, devices []query.Device) string {
	var all []string
	for i := range devices {
		if d := &devices[i]; !d.Loopback && d.Name != cfg.TUN && d.Name != cfg.LocalTUN() {
			all = append(all, d.Name)
		}
	}
	if len(all) == 0 {
		return "there is none but lo"
	}
	slices.SortFunc(all, strings.Compare)
	return "want " + words.OneOf(all)
}
