package api

import (
	"encoding/json"
	"fmt"
	"net"
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
	TUN      string  `json:"tun"`    // the device's name
	Device   string  `json:"device"` // "tun" or "tap"
	Queues   int     `json:"queues"`
	Offloads string  `json:"offloads"` // of the TUN device: "csum tso uso", or fewer
	In       Traffic `json:"in"`       // read from the TUN device
	// sent to realservers, with the tunnel's header, and ICMP and TCP resets to clients
	Out    Traffic           `json:"out"`
	Resets uint64            `json:"resets"` // of those, TCP resets
	Drops  map[string]uint64 `json:"drops"`  // packets refused, by reason; only reasons that occurred
	// fragments that wait for the rest of their packets
	Waiting     int         `json:"waiting"`
	Connections Connections `json:"connections"`
	Services    []Service   `json:"services"`
	Names       []Name      `json:"names,omitempty"` // that give realservers
	FastPath    FastPath    `json:"fast_path"`
	Checks      Checks      `json:"checks"`
	Leaving     Leaving     `json:"leaving"`
	// VIPs in a subnet of this host
	Announced     []Announced   `json:"announced,omitempty"`
	Neighbours    Neighbours    `json:"neighbours"`
	VRRP          []VRRP        `json:"vrrp,omitempty"`
	Sync          *Sync         `json:"sync,omitempty"`      // none without [sync]
	BGP           *BGP          `json:"bgp,omitempty"`       // none without [bgp]
	WireGuard     *WireGuard    `json:"wireguard,omitempty"` // none without [wireguard]
	Tables        *Tables       `json:"tables,omitempty"`    // for second chances; none without [second_chance]
	Tunnels       []Tunnel      `json:"tunnels,omitempty"`   // point-to-point tunnels
	Configuration Configuration `json:"configuration"`
	Mail          *Mail         `json:"mail,omitempty"` // notify.mail; nil: none
	// packets that the kernel dropped because the director was too slow
	Overruns uint64 `json:"overruns"`
	// the kernel's reason for the last packet that it refused to send
	SendError string `json:"send_error,omitempty"`
}

// Configuration is the outcome of reading the configuration file.
type Configuration struct {
	Read time.Time `json:"read"` // when the configuration in force was read
	// why a later reload was refused, a line for each fault
	Error string `json:"reload_error,omitempty"`
}

// Mail is the state of the receiver by mail.
type Mail struct {
	Server  string `json:"server"`  // HOST:PORT
	Sent    uint64 `json:"sent"`    // mails that a server has taken
	Failed  uint64 `json:"failed"`  // failed attempts at a mail
	Lost    uint64 `json:"lost"`    // changes of state that no mail has
	Waiting int    `json:"waiting"` // changes that wait for a mail
	// why the last attempt failed; or, if it did not, the recipients that the server refused
	Error string `json:"error,omitempty"`
	// time since the first of the failed attempts in a row; 0: the last one did not fail
	Failing float64 `json:"failing_seconds,omitempty"`
}

// Leaving is the realservers that are not configured any more and still have connections.
type Leaving struct {
	Realservers int                 `json:"realservers"`
	Connections int                 `json:"connections"`
	List        []LeavingRealserver `json:"list,omitempty"`
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
	HalfOpenMax int `json:"half_open_max,omitempty"` // 0: none
	// half-open connections that made room for new ones
	Evicted uint64 `json:"evicted"`
	// file in which the table outlives the process
	Keep string `json:"keep,omitempty"`
	// outcome of the start, if a former process has left a table
	Adopted *Adopted `json:"adopted,omitempty"`
}

// Adopted is what a director has taken over from a former process.
type Adopted struct {
	Connections int `json:"connections"`
	Templates   int `json:"templates"`
	Expired     int `json:"expired"` // entries that had ended meanwhile
	Dropped     int `json:"dropped"` // entries that could not be taken over
}

// Service is a virtual service with its realservers, in the order of the configuration.
type Service struct {
	Name           string       `json:"name"`
	VIPs           []string     `json:"vips"`
	Protocol       string       `json:"protocol"`
	Ports          Ports        `json:"ports"`
	Scheduler      string       `json:"scheduler"`
	SchedulerFlags []string     `json:"scheduler_flags,omitempty"` // as in the configuration
	Order          string       `json:"order,omitempty"`           // "address" of a hash scheduler with that order
	Persistence    *Persistence `json:"persistence,omitempty"`
	OnePacket      bool         `json:"one_packet,omitempty"`
	Health         string       `json:"health,omitempty"` // "up": the quorum is reached; or "down"
	Quorum         int          `json:"quorum"`           // weight that must be up
	// sum of the weights of the realservers that are up or unchecked
	WeightUp    int          `json:"weight_up"`
	Sorry       bool         `json:"sorry"` // the sorry server is in use
	Realservers []Realserver `json:"realservers"`
}

// Ports are the ports of a service: "80", a range "8000-8099", or "0" for every port. In JSON, as in the configuration,
// a port is a number and a range is a string.
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

// UnmarshalJSON reads the JSON of MarshalJSON.
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

// Persistence is a service's persistence: its timeout, and the prefix lengths of the networks that count as one client.
type Persistence struct {
	Timeout  float64 `json:"timeout_seconds"`
	Netmask  int     `json:"netmask"`
	Netmask6 int     `json:"netmask6"`
}

// Check is the last check of a realserver, and its state by all checks so far.
type Check struct {
	Type   string `json:"type"`   // tcp, http, https, dns, udp, ping, smtp, exec or file
	Via    string `json:"via"`    // "tunnel": to the VIPs, by the forwarding method; or "direct"
	Reason string `json:"reason"` // result of the last check, in one line
	// consecutive results, up to the last, that contradict the realserver's health
	Streak   int     `json:"streak"`
	Last     float64 `json:"last_seconds_ago"` // its end
	Duration float64 `json:"duration_seconds"` // its length
	Since    float64 `json:"since_seconds"`    // the realserver has been up, or down
}

// RealserverStatus is what GET /status on a realserver agent's control socket returns, and what
// `realserver status --json` prints.
type RealserverStatus struct {
	Program      string        `json:"program"` // "realserver"
	Version      string        `json:"version"`
	Pid          int           `json:"pid"`
	Uptime       float64       `json:"uptime_seconds"`
	TUN          string        `json:"tun"`
	Queues       int           `json:"queues"`
	Offloads     string        `json:"offloads"` // of the TUN device: "csum tso uso", or fewer
	VIPs         []string      `json:"vips"`
	OwnVIPs      bool          `json:"own_vips"` // the agent's device has them; else another program has
	Directors    []string      `json:"directors"`
	Encap        []string      `json:"encap"`
	EncapPort    uint16        `json:"encap_port,omitempty"`    // UDP port of gue and fou; 0: it has neither
	WireGuard    *WireGuard    `json:"wireguard,omitempty"`     // none without [wireguard]
	Tunnels      []Tunnel      `json:"tunnels,omitempty"`       // point-to-point tunnels
	SecondChance *SecondChance `json:"second_chance,omitempty"` // none if it is off
	MSS          int           `json:"mss"`                     // that servers advertise over IPv4
	MSS6         int           `json:"mss6"`                    // and over IPv6

	Configuration Configuration `json:"configuration"`

	In      Traffic           `json:"in"`      // received from tunnels, with the tunnel's header
	Out     Traffic           `json:"out"`     // given to the TUN device
	Answers Traffic           `json:"answers"` // answers that left by the TUN device and were forwarded
	Drops   map[string]uint64 `json:"drops"`   // packets refused, by reason; only reasons that occurred
	Merged  uint64            `json:"merged"`  // packets written behind another one, in the same write
	// packets that the kernel dropped because the agent was too slow
	Overruns uint64 `json:"overruns"`
	// the kernel's reason for the last answer that it refused to send
	SendError string `json:"send_error,omitempty"`

	FastPath FastPath `json:"fast_path"`

	// outer sources that were accepted, without questions
	FromDirectors []Counted `json:"from_directors"`
	// the last outer sources that were refused: not in directors
	RefusedSources []Counted `json:"refused_sources,omitempty"`
	// the last inner destinations that were refused: not in vips
	RefusedDestinations []Counted `json:"refused_destinations,omitempty"`
	Questions           uint64    `json:"questions"` // of directors' doctors, answered
}

// Counted is the packets of an address since the start, or since it entered the worker's bounded list.
type Counted struct {
	Address string  `json:"address"`
	Packets uint64  `json:"packets"`
	Last    float64 `json:"last_seconds_ago"` // to a second
}

// Drops returns the counts of the reasons in t that occurred.
func Drops(t *stats.Tally) map[string]uint64 {
	m := map[string]uint64{}
	for d, n := range t.Drops {
		if n > 0 {
			m[drop.Reason(d).String()] = n
		}
	}
	return m
}

// Title returns the service's name, protocol, first virtual port and scheduler: "web tcp 198.51.100.80:80 wlc".
func (s *Service) Title() string {
	first := ""
	if len(s.VIPs) > 0 {
		first = net.JoinHostPort(s.VIPs[0], strings.Join(s.Ports, ","))
	}
	if n := len(s.VIPs) - 1; n > 0 {
		first += fmt.Sprintf(" +%d", n)
	}
	return strings.Join([]string{s.Name, s.Protocol, first, s.Scheduler}, " ")
}

// Settings returns the scheduler and the other settings, in the words of ipvsadm: "sh (sh-port) persistent 300 ops".
func (s *Service) Settings() string {
	words := []string{s.Scheduler}
	if len(s.SchedulerFlags) > 0 {
		words = append(words, "("+strings.Join(s.SchedulerFlags, ",")+")")
	}
	if s.Order != "" {
		words = append(words, "order "+s.Order)
	}
	if p := s.Persistence; p != nil {
		words = append(words, fmt.Sprintf("persistent %d", time.Duration(p.Timeout*float64(time.Second))/time.Second))
		if p.Netmask != 32 {
			words = append(words, fmt.Sprintf("netmask %d", p.Netmask))
		}
		if p.Netmask6 != 128 {
			words = append(words, fmt.Sprintf("netmask6 %d", p.Netmask6))
		}
	}
	if s.OnePacket {
		words = append(words, "ops")
	}
	return strings.Join(words, " ")
}

// Name returns the program's name.
func (s DirectorStatus) Name() string { return s.Program }

// Name returns the program's name.
func (s RealserverStatus) Name() string { return s.Program }
