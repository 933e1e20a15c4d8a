package api

import (
	"math"
	"time"

	"vstun/encap/wireguard"
)

// WireGuard is a program's end of the tunnels of WireGuard.
type WireGuard struct {
	PublicKey string          `json:"public_key"` // of this end
	Port      uint16          `json:"port"`
	Error     string          `json:"error,omitempty"` // the kernel's reason for the last datagram that it refused
	Peers     []WireGuardPeer `json:"peers"`
}

// WireGuardPeer is the far end of a tunnel.
type WireGuardPeer struct {
	Address   string   `json:"address"`                         // in the tunnel
	PublicKey string   `json:"public_key"`                      // the one that has the address
	Endpoint  string   `json:"endpoint,omitempty"`              // none: it has not come yet, and is not configured
	Handshake *float64 `json:"handshake_seconds_ago,omitempty"` // none: there was none
	In        uint64   `json:"received_bytes"`                  // of UDP payload
	Out       uint64   `json:"sent_bytes"`
}

// WireGuardOf returns the state of d, or nil if d is nil.
func WireGuardOf(d *wireguard.Device, now time.Time) *WireGuard {
	if d == nil {
		return nil
	}
	st := d.Status()
	w := &WireGuard{PublicKey: st.PublicKey.String(), Port: st.Port, Peers: []WireGuardPeer{}}
	if st.LastError != nil {
		w.Error = st.LastError.Error()
	}
	for _, p := range st.Peers {
		peer := WireGuardPeer{Address: p.Address.String(), PublicKey: p.PublicKey.String(), In: p.In, Out: p.Out}
		if p.Endpoint.IsValid() {
			peer.Endpoint = p.Endpoint.String()
		}
		if !p.Handshake.IsZero() {
			// A clock that was set back does not make a handshake one of the future.
			age := math.Round(max(now.Sub(p.Handshake).Seconds(), 0)*1000) / 1000
			peer.Handshake = &age
		}
		w.Peers = append(w.Peers, peer)
	}
	return w
}
