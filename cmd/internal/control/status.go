// Package control is what a running program answers on its control socket: HTTP and JSON over a Unix socket that
// only its owner may use.
package control

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"vstun/encap/packet/drop"
	"vstun/encap/packet/stats"
)

// DirectorStatus is what GET /status on a director's control socket returns, and what `director status --json`
// prints.
type DirectorStatus struct {
	Program  string  `json:"program"` // "director"
	Version  string  `json:"version"`
	Pid      int     `json:"pid"`
	Uptime   float64 `json:"uptime_seconds"`
	TUN      string  `json:"tun"`
	Queues   int     `json:"queues"`
	Offloads string  `json:"offloads"` // of the TUN device: "csum tso uso", or fewer
	In       Traffic `json:"in"`       // read from the TUN device
	// sent to realservers, with the tunnel's header, and ICMP and TCP resets to clients
	Out    Traffic           `json:"out"`
	Resets uint64            `json:"resets"` // of those, TCP resets
	Drops  map[string]uint64 `json:"drops"`  // packets refused, by reason; only reasons that occurred
	// fragments that wait for the rest of their packets: neither sent nor refused yet
	Waiting       int           `json:"waiting"`
	Connections   Connections   `json:"connections"`
	Services      []Service     `json:"services"`
	Checks        Checks        `json:"checks"`
	Leaving       Leaving       `json:"leaving"`
	Configuration Configuration `json:"configuration"`
	// packets that the kernel dropped because the director was too slow
	Overruns uint64 `json:"overruns"`
	// the kernel's reason for the last packet that it refused to send
	SendError string `json:"send_error,omitempty"`
}

// Configuration is what came of reading the configuration file.
type Configuration struct {
	Read time.Time `json:"read"` // when what is in force was read
	// why a reload since then has changed nothing, a line for each fault
	Error string `json:"reload_error,omitempty"`
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
	Count       int `json:"count"`
	Max         int `json:"max"`
	HalfOpen    int `json:"half_open"`               // TCP connections whose client has not answered yet
	HalfOpenMax int `json:"half_open_max,omitempty"` // 0: they have no bound of their own
	// connections that made room for new ones: the oldest of the half-open
	Evicted uint64 `json:"evicted"`
}

// Service is one virtual service with its realservers, in the order of the configuration.
type Service struct {
	Name           string       `json:"name"`
	VIPs           []string     `json:"vips"`
	Protocol       string       `json:"protocol"`
	Ports          Ports        `json:"ports"`
	Scheduler      string       `json:"scheduler"`
	SchedulerFlags []string     `json:"scheduler_flags,omitempty"` // as in the configuration
	Persistence    *Persistence `json:"persistence,omitempty"`
	OnePacket      bool         `json:"one_packet,omitempty"`
	Health         string       `json:"health,omitempty"` // "up": its quorum is reached; or "down"
	Quorum         int          `json:"quorum"`           // weight that must be up for that
	// weights of the realservers that are up, or that nobody checks
	WeightUp    int          `json:"weight_up"`
	Sorry       bool         `json:"sorry"` // its sorry server is in use
	Realservers []Realserver `json:"realservers"`
}

// Ports are the ports of a service: "80", a range "8000-8099", or "0", which is every port. In JSON they are as in the
// configuration: a port is a number, and a range is a string.
type Ports []string

func (p Ports) String() string { return strings.Join(p, ",") }

// MarshalJSON writes [80, "8000-8099"].
func (p Ports) MarshalJSON() ([]byte, error) {
	all := make([]any, len(p))
	for i, port := range p {
		all[i] = port
		if n, err := strconv.ParseUint(port, 10, 16); err == nil {
			all[i] = n
		}
	}
	return json.Marshal(all)
}

// UnmarshalJSON reads what MarshalJSON writes.
func (p *Ports) UnmarshalJSON(text []byte) error {
	var all []any
	if err := json.Unmarshal(text, &all); err != nil {
		return err
	}
	*p = nil
	for _, port := range all {
		*p = append(*p, fmt.Sprint(port))
	}
	return nil
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
	Configured    *int    `json:"configured_weight,omitempty"` // where an operator or a file has set another
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
	Type   string `json:"type"`   // tcp, http, https, dns, udp, ping, smtp, exec or file
	Via    string `json:"via"`    // "tunnel" or "direct"
	Reason string `json:"reason"` // why the last one went as it did, in one line
	// results in a row that contradict the realserver's health, up to the last one
	Streak   int     `json:"streak"`
	Last     float64 `json:"last_seconds_ago"` // since it ended
	Duration float64 `json:"duration_seconds"` // that it took
	Since    float64 `json:"since_seconds"`    // that the realserver has been up, or down
}

// ComingUp reports whether r is down, and its last checks have succeeded.
func (r *Realserver) ComingUp() bool {
	return r.Health == "down" && r.Check != nil && r.Check.Streak > 0
}

// Trouble is the reason of the last check of a realserver that is down, or whose last checks contradict its health;
// else "".
func (r *Realserver) Trouble() string {
	if r.Check == nil || r.Health != "down" && r.Check.Streak == 0 {
		return ""
	}
	return r.Check.Reason
}

// RealserverStatus is what GET /status on a realserver agent's control socket returns, and what
// `realserver status --json` prints.
type RealserverStatus struct {
	Program   string   `json:"program"` // "realserver"
	Version   string   `json:"version"`
	Pid       int      `json:"pid"`
	Uptime    float64  `json:"uptime_seconds"`
	TUN       string   `json:"tun"`
	Queues    int      `json:"queues"`
	Offloads  string   `json:"offloads"` // of the TUN device: "csum tso uso", or fewer
	VIPs      []string `json:"vips"`
	Directors []string `json:"directors"`
	Encap     []string `json:"encap"`
	EncapPort uint16   `json:"encap_port,omitempty"` // UDP port of gue and fou; 0: it has neither
	MSS       int      `json:"mss"`                  // what servers advertise over IPv4
	MSS6      int      `json:"mss6"`                 // and over IPv6

	Configuration Configuration `json:"configuration"`

	In      Traffic           `json:"in"`      // received from tunnels, with the tunnel's header
	Out     Traffic           `json:"out"`     // written to the TUN device
	Answers Traffic           `json:"answers"` // answers that left by the TUN device and were forwarded
	Drops   map[string]uint64 `json:"drops"`   // packets refused, by reason; only reasons that occurred
	Merged  uint64            `json:"merged"`  // packets written as a part of another one, behind it
	// packets that the kernel dropped because the agent was too slow
	Overruns uint64 `json:"overruns"`
	// the kernel's reason for the last answer that it refused to send
	SendError string `json:"send_error,omitempty"`

	// outer sources that were let in, questions apart
	FromDirectors []Counted `json:"from_directors"`
	// the last outer sources that are not in directors
	RefusedSources []Counted `json:"refused_sources,omitempty"`
	// the last inner destinations that are not in vips
	RefusedDestinations []Counted `json:"refused_destinations,omitempty"`
	Questions           uint64    `json:"questions"` // of directors' doctors, answered
}

// Counted is the packets of one address since the start, or since the address took the place of another in the worker's
// bounded list.
type Counted struct {
	Address string  `json:"address"`
	Packets uint64  `json:"packets"`
	Last    float64 `json:"last_seconds_ago"` // exact to a second
}

// Drops is the reasons of t that occurred, by name.
func Drops(t *stats.Tally) map[string]uint64 {
	m := map[string]uint64{}
	for d, n := range t.Drops {
		if n > 0 {
			m[drop.Reason(d).String()] = n
		}
	}
	return m
}
