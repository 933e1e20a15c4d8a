// Package control is what a running program answers on its control socket: HTTP and JSON over a Unix socket that
// only its owner may use.
package control

import (
	"time"

	"vstun/encap/packet"
)

// DirectorStatus is what GET /status on a director's control socket returns, and what `director status --json`
// prints.
type DirectorStatus struct {
	Program       string            `json:"program"` // "director"
	Version       string            `json:"version"`
	Pid           int               `json:"pid"`
	Uptime        float64           `json:"uptime_seconds"`
	TUN           string            `json:"tun"`
	Queues        int               `json:"queues"`
	Offloads      string            `json:"offloads"` // of the TUN device: "csum tso uso", or fewer
	In            Traffic           `json:"in"`       // read from the TUN device
	Out           Traffic           `json:"out"`      // sent to realservers, with the tunnel's header, and ICMP to clients
	Drops         map[string]uint64 `json:"drops"`    // packets refused, by reason; only reasons that occurred
	Waiting       int               `json:"waiting"`  // fragments that wait for the rest of their packets: neither sent nor refused yet
	Connections   Connections       `json:"connections"`
	Services      []Service         `json:"services"`
	Leaving       Leaving           `json:"leaving"`
	Configuration Configuration     `json:"configuration"`
	Overruns      uint64            `json:"overruns"`             // packets that the kernel dropped because the director was too slow
	SendError     string            `json:"send_error,omitempty"` // the kernel's reason for the last packet that it refused to send
}

// Configuration is what came of reading the configuration file.
type Configuration struct {
	Read  time.Time `json:"read"`                   // when what is in force was read
	Error string    `json:"reload_error,omitempty"` // why a reload since then has changed nothing, a line for each fault
}

// Leaving is what remains of realservers that are not configured any more: they keep their connections until those end.
type Leaving struct {
	Realservers int                 `json:"realservers"`
	Connections int                 `json:"connections"`
	List        []LeavingRealserver `json:"list,omitempty"`
}

// LeavingRealserver is one of them.
type LeavingRealserver struct {
	Service  string `json:"service"`
	Address  string `json:"address"`
	Active   int    `json:"active"`
	Inactive int    `json:"inactive"`

	Templates int `json:"templates,omitempty"` // of clients that go elsewhere with their next connection
}

// Traffic counts packets and their bytes, IP headers included.
type Traffic struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Connections is the use of the connection table.
type Connections struct {
	Count       int    `json:"count"`
	Max         int    `json:"max"`
	HalfOpen    int    `json:"half_open"`               // TCP connections whose client has not answered yet
	HalfOpenMax int    `json:"half_open_max,omitempty"` // 0: they have no bound of their own
	Evicted     uint64 `json:"evicted"`                 // connections that made room for new ones: the oldest of the half-open
}

// Service is one virtual service with its realservers, in the order of the configuration.
type Service struct {
	Name           string       `json:"name"`
	VIPs           []string     `json:"vips"`
	Protocol       string       `json:"protocol"`
	Ports          []string     `json:"ports"` // "80", a range "8000-8099", or "0": every port
	Scheduler      string       `json:"scheduler"`
	SchedulerFlags []string     `json:"scheduler_flags,omitempty"` // as in the configuration
	Persistence    *Persistence `json:"persistence,omitempty"`
	OnePacket      bool         `json:"one_packet,omitempty"`
	Health         string       `json:"health,omitempty"` // "up": its quorum is reached; or "down"
	Quorum         int          `json:"quorum"`           // weight that must be up for that
	WeightUp       int          `json:"weight_up"`        // weights of the realservers that are up, or that nobody checks
	Sorry          bool         `json:"sorry"`            // its sorry server is in use
	Realservers    []Realserver `json:"realservers"`
}

// Persistence is how long, and for what networks, clients stay at one realserver.
type Persistence struct {
	Timeout  float64 `json:"timeout_seconds"`
	Netmask  int     `json:"netmask"`
	Netmask6 int     `json:"netmask6"`
}

// Realserver is one realserver of one service.
type Realserver struct {
	Address       string  `json:"address"`
	Encap         string  `json:"encap"`
	EncapKey      *uint32 `json:"encap_key,omitempty"` // of GRE; nil: none
	EncapChecksum bool    `json:"encap_checksum,omitempty"`
	Weight        int     `json:"weight"`                      // 0: it drains
	Configured    *int    `json:"configured_weight,omitempty"` // where an operator has set another
	Effective     int     `json:"effective_weight"`            // what its health leaves of it: the weight, or 0
	Health        string  `json:"health,omitempty"`            // "up", "down" or "unchecked"
	Check         *Check  `json:"check,omitempty"`             // nil: unchecked
	Upper         int     `json:"upper,omitempty"`             // thresholds of connections
	Lower         int     `json:"lower,omitempty"`
	Active        int     `json:"active"`      // connections that IPVS counts as active
	Inactive      int     `json:"inactive"`    // all others
	Templates     int     `json:"templates"`   // clients that persistence sends there
	Connections   uint64  `json:"connections"` // scheduled since the start
	Forwarded     Traffic `json:"forwarded"`   // packets of clients, without the tunnel's header
}

// Check is the last check of a realserver, and what its checks have come to.
type Check struct {
	Type     string  `json:"type"`             // tcp, http, https, dns, udp, ping, smtp or exec
	Via      string  `json:"via"`              // "tunnel" or "direct"
	Reason   string  `json:"reason"`           // why the last one went as it did, in one line
	Last     float64 `json:"last_seconds_ago"` // since it ended
	Duration float64 `json:"duration_seconds"` // that it took
	Since    float64 `json:"since_seconds"`    // that the realserver has been up, or down
}

// RealserverStatus is what GET /status on a realserver agent's control socket returns, and what
// `realserver status --json` prints.
type RealserverStatus struct {
	Program       string            `json:"program"` // "realserver"
	Version       string            `json:"version"`
	Pid           int               `json:"pid"`
	Uptime        float64           `json:"uptime_seconds"`
	TUN           string            `json:"tun"`
	Queues        int               `json:"queues"`
	Offloads      string            `json:"offloads"` // of the TUN device: "csum tso uso", or fewer
	VIPs          []string          `json:"vips"`
	Directors     []string          `json:"directors"`
	MSS           int               `json:"mss"`  // what servers advertise over IPv4
	MSS6          int               `json:"mss6"` // and over IPv6
	Configuration Configuration     `json:"configuration"`
	In            Traffic           `json:"in"`       // received from tunnels, with the tunnel's header
	Out           Traffic           `json:"out"`      // written to the TUN device
	Drops         map[string]uint64 `json:"drops"`    // packets refused, by reason; only reasons that occurred
	Merged        uint64            `json:"merged"`   // packets written as a part of another one, behind it
	Overruns      uint64            `json:"overruns"` // packets that the kernel dropped because the agent was too slow
}

// Drops is the reasons of t that occurred, by name.
func Drops(t *packet.Tally) map[string]uint64 {
	m := map[string]uint64{}
	for d, n := range t.Drops {
		if n > 0 {
			m[packet.Drop(d).String()] = n
		}
	}
	return m
}
