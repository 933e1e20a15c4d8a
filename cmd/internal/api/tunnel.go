package api

import "fmt"

// Tunnel is a point-to-point tunnel.
type Tunnel struct {
	Name      string   `json:"name"`   // of its device
	Device    string   `json:"device"` // "tun" or "tap"
	Encap     string   `json:"encap"`
	EncapPort uint16   `json:"encap_port,omitempty"` // UDP port of gue and fou
	Key       uint32   `json:"key,omitempty"`        // of gre; 0: none
	Local     string   `json:"local"`
	Remote    string   `json:"remote"`
	Addresses []string `json:"addresses,omitempty"`
	Routes    []string `json:"routes,omitempty"`
	Bridge    string   `json:"bridge,omitempty"`
	Offloads  string   `json:"offloads"` // of the device: "csum tso uso", or fewer
	MTU       int      `json:"mtu"`      // of the device, in bytes
	PathMTU   int      `json:"path_mtu"` // of the path to the peer, in bytes; of wireguard without its own part
	MSS       int      `json:"mss"`      // to which SYNs are lowered over IPv4; 0: they are not
	MSS6      int      `json:"mss6"`     // and over IPv6
	State     string   `json:"state"`    // "up" or "down"
	// why it is down
	Reason string            `json:"reason,omitempty"`
	In     Traffic           `json:"in"`    // packets from the peer, with the tunnel's headers
	Out    Traffic           `json:"out"`   // packets to the peer, with the tunnel's headers
	Drops  map[string]uint64 `json:"drops"` // packets refused, by reason; only reasons that occurred
	// time since the last packet from the peer, to a second; nil: none has come
	Heard *float64     `json:"heard_seconds_ago,omitempty"`
	Probe *TunnelProbe `json:"probe,omitempty"` // none is configured
	// the kernel's reason for the last packet that it refused to send
	SendError string `json:"send_error,omitempty"`
}

// Format returns device and encapsulation: "tap,gre,key=7".
func (t *Tunnel) Format() string {
	text := t.Device + "," + t.Encap
	if t.EncapPort != 0 {
		text += fmt.Sprintf(",port=%d", t.EncapPort)
	}
	if t.Key != 0 {
		text += fmt.Sprintf(",key=%d", t.Key)
	}
	return text
}

// TunnelProbe is the pings through a tunnel.
type TunnelProbe struct {
	Address   string  `json:"address"`
	Interval  float64 `json:"interval_seconds"`
	Sent      uint64  `json:"sent"`
	Answered  uint64  `json:"answered"`
	RoundTrip float64 `json:"round_trip_seconds"` // of the last one that was answered
	Failures  int     `json:"failures"`           // in a row, up to the last one
	Reason    string  `json:"reason,omitempty"`   // of the last one, if it failed
}
