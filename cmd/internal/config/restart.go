package config

import "slices"

// NeedsRestart returns the keys that differ between d and is and that a running director cannot change: they need
// another device, socket or table. A reload changes every other key.
func (d *Director) NeedsRestart(is *Director) []string {
	return changed([]restartKey{
		{"tun", d.TUN != is.TUN},
		{"device", d.TAP != is.TAP},
		{"bridge", d.Bridge != is.Bridge},
		{"queues", d.Queues != is.Queues},
		{"offload", d.Offload != is.Offload},
		{"control", d.Control != is.Control},
		{"fast_path", d.FastPath.Off && !is.FastPath.Off},
		{"vrrp (the first one)", len(d.VRRP) == 0 && len(is.VRRP) > 0},
		{"wireguard (the table)", d.WireGuard.On != is.WireGuard.On},
		{"wireguard.listen", d.WireGuard.Listen != is.WireGuard.Listen && d.WireGuard.On && is.WireGuard.On},
		{"connections.max", d.Connections.Max != is.Connections.Max},
		{"connections.keep", d.Connections.Keep != is.Connections.Keep &&
			!(d.Connections.KeepBeside && is.Connections.KeepBeside)}, // it follows control
		{"sync.interface", d.Sync.Interface != is.Sync.Interface},
		{"sync.group", d.Sync.Group != is.Sync.Group},
		{"sync.port", d.Sync.Port != is.Sync.Port},
		{"sync.peers", !slices.Equal(d.Sync.Peers, is.Sync.Peers)},
		{"sync.id", d.Sync.ID != is.Sync.ID},
		{"sync.key", d.Sync.Key != is.Sync.Key},
		{"sync.mode", d.Sync.Mode() != is.Sync.Mode()},
		// Port 179 is privileged.
		{"bgp.listen", is.BGP.Listen.IsValid() && d.BGP.Listen != is.BGP.Listen},
		{"bgp.as", is.BGP.Listen.IsValid() && d.BGP.On() && d.BGP.AS != is.BGP.AS},
		{"bgp.router_id", is.BGP.Listen.IsValid() && d.BGP.On() && d.BGP.RouterID != is.BGP.RouterID},
	})
}

// NeedsRestart returns the keys that differ between r and is and that a running agent cannot change. A reload changes
// every other key.
func (r *Realserver) NeedsRestart(is *Realserver) []string {
	return changed([]restartKey{
		{"tun", r.TUN != is.TUN},
		{"queues", r.Queues != is.Queues},
		{"offload", r.Offload != is.Offload},
		{"control", r.Control != is.Control},
		{"wireguard (the table)", r.WireGuard.On != is.WireGuard.On},
		{"wireguard.listen", r.WireGuard.Listen != is.WireGuard.Listen && r.WireGuard.On && is.WireGuard.On},
		{"fast_path", r.FastPath.Off && !is.FastPath.Off},
	})
}

// restartKey is a key that a reload cannot change.
type restartKey struct {
	name    string
	differs bool
}

func changed(keys []restartKey) (names []string) {
	for _, k := range keys {
		if k.differs {
			names = append(names, k.name)
		}
	}
	return names
}
