package director

import "vstun/cmd/internal/config"

// wireguard compares two [wireguard] tables with their peers.
func (l difference) wireguard(was, is *config.WireGuard) {
	for _, c := range config.WireGuardChanges(was, is) {
		l := l.in("wireguard")
		if c.Peer.IsValid() {
			l = l.of("", c.Peer.String()).in("wireguard")
		}
		switch {
		case c.Old == "":
			l.note(c.Key, nil, c.New)
		case c.New == "":
			l.note(c.Key, c.Old, nil)
		case c.Old == c.New:
			l.add(c.Key, nil, nil, l.name(c.Key)+" changed")
		default:
			l.note(c.Key, c.Old, c.New)
		}
	}
}
