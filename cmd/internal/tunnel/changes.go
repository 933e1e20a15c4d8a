package tunnel

import (
	"fmt"
	"strings"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
)

// Changes returns the differences between the tunnels of two configurations. Those of WireGuard have their keys in w.
func Changes(was, is []config.PointToPoint, wasKeys, isKeys *config.WireGuard) (all []api.Change) {
	add := func(key string, old, next any, format string, args ...any) {
		all = append(all, api.Change{Key: "tunnel." + key, Old: old, New: next, Text: fmt.Sprintf(format, args...)})
	}
	for i := range is {
		p := &is[i]
		at := index(was, p.Name)
		if at < 0 {
			add("name", nil, p.Name, "tunnel %s to %v: added", p.Name, p.Remote)
			continue
		}
		before, now := values(&was[at]), values(p)
		for j, v := range now {
			if b := before[j]; b.value != v.value {
				add(v.key, b.value, v.value, "tunnel %s: %s %s -> %s", p.Name, v.key, shown(b.value), shown(v.value))
			}
		}
	}
	for i := range was {
		if p := &was[i]; index(is, p.Name) < 0 {
			add("name", p.Name, nil, "tunnel %s to %v: removed", p.Name, p.Remote)
		}
	}
	keys := config.WireGuardChanges(&config.WireGuard{Peers: wasKeys.TunnelPeers},
		&config.WireGuard{Peers: isKeys.TunnelPeers})
	for _, c := range keys {
		switch {
		case c.Key == "peer": // the tunnel has been added or removed
		case c.Old == c.New:
			add("wireguard."+c.Key, c.Old, c.New, "tunnel peer %v: %s changed", c.Peer, c.Key)
		default:
			add("wireguard."+c.Key, c.Old, c.New, "tunnel peer %v: %s %s -> %s", c.Peer, c.Key, shown(c.Old),
				shown(c.New))
		}
	}
	return all
}

// value is the value of a key, as a text or number.
type value struct {
	key   string
	value any
}

// values returns the values of all keys, in a fixed order.
func values(p *config.PointToPoint) []value {
	device, mss := "tun", "auto"
	if p.TAP {
		device = "tap"
	}
	if p.NoMSS {
		mss = "off"
	}
	probe, interval := "", ""
	if p.Probe.Address.IsValid() {
		probe, interval = p.Probe.Address.String(), p.Probe.Interval.String()
	}
	return []value{{"device", device}, {"encap", p.Encap.String()}, {"local", p.Local.String()},
		{"remote", p.Remote.String()}, {"addresses", list(p.Addresses)}, {"routes", list(p.Routes)}, {"key", p.Key},
		{"encap_port", p.EncapPort}, {"probe.address", probe}, {"probe.interval", interval},
		{"bridge", p.Bridge}, {"mtu", p.MTU}, {"mss", mss}}
}

// list returns elements with commas between them.
func list[T fmt.Stringer](all []T) string {
	var names []string
	for _, v := range all {
		names = append(names, v.String())
	}
	return strings.Join(names, ",")
}

// shown returns a value as a line of the log has it.
func shown(v any) string {
	if v == "" {
		return "none"
	}
	return fmt.Sprint(v)
}
