// Package config turns the TOML files of both programs into typed and validated values.
//
// A file is decoded into plain maps first. A reader then reads it key by key, and collects every fault instead of
// stopping at the first. Other packages see no unchecked value. A fault is one line with the place, the fault and
// the legal values:
//
//	director.toml:7: service "web": quorum: 0 is out of range: want 1 to 2147483647, a sum of weights
//
// A service or realserver without a valid name or address is named by its position in the file, counted from 1:
// service[2] is the second [[service]].
//
// The tables of schedulers (package balancer), tunnels (package encap) and types of checks (check_types.go) define the
// legal names and keys.
package config

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vstun/balancer"
	"vstun/balancer/health/notify"
	"vstun/balancer/method"
	"vstun/encap"
)

// Director is the configuration of the director, director.toml. Every value is in force: defaults are filled in.
type Director struct {
	TUN         string // name of the TUN or TAP device, 1 to 15 bytes
	TAP         bool   // the device is a port of an Ethernet network
	Bridge      string // whose port a TAP device becomes; "": none
	Table       int    // routing table for the host's own packets to VIPs
	Queues      int    // workers and TUN queues, 1 to 256; 0 in the file is one per CPU
	Offload     bool   // use the offloads of the TUN device that the kernel has
	Source      Sources
	Control     string         // absolute path of the control socket, at most 107 bytes
	Metrics     netip.AddrPort // address of the HTTP server; the zero value: none
	Log         slog.Level     // least level that is logged
	Silent      bool           // clients of an unserved VIP or port get no answer
	NoResets    bool           // a TCP packet of an unknown connection gets no RST
	HashUnknown bool           // hash schedulers decide for TCP packets of unknown connections
	Announce    Announce
	FastPath    FastPath
	Connections Connections
	Services    []Service // at least one, in the file's order
	VRRP        []VRRP    // in the file's order; none: this director is always active
	Notify      Notify
	Sync        Sync
	BGP         BGP
	WireGuard   WireGuard
	Tunnels     []PointToPoint // in the file's order
	Warnings    []string       // keys without their apparent effect, one line each in the form of Errors
	Places      Places         // of values in VRRP and Sync, and of VIPs
	Digest      string         // of the text, as Digest returns it

	SecondChance SecondChance // tables for agents
}

// LocalTUN returns the name of the TUN device for the host's own packets to VIPs. The name begins with TUN and differs
// from it.
func (d *Director) LocalTUN() string {
	const longest, suffix = unix.IFNAMSIZ - 1, "-local"
	name := d.TUN[:min(len(d.TUN), longest-len(suffix))] + suffix
	if name == d.TUN {
		name = strings.TrimSuffix(name, suffix) + "-own"
	}
	return name
}

// Announce is how the director answers ARP and neighbour discovery for VIPs in a subnet of this host.
type Announce struct {
	Off     bool     // it does not
	Devices []string // on these devices alone; none: on every device that has such a subnet
	Warn    bool     // another host's answer for a VIP is a warning; else the director does not start
}

// FastPath is the programs of the fast path in the kernel.
type FastPath struct {
	Off     bool     // packets take the TUN device alone
	Devices []string // the programs are at these devices; none: at all that query.Device.Uplink reports
}

// ReplyTable returns the number of the routing table for replies of VS/NAT. No key table has this number: the table
// has a default route, which must not apply to other packets.
func (d *Director) ReplyTable() int { return d.Table + 1<<16 }

// Sources are the outer source addresses, at most one of each family. A family without one uses the source of the route
// to each realserver.
type Sources struct{ V4, V6 netip.Addr }

// For returns the source of a's family, or the zero Addr.
func (s Sources) For(a netip.Addr) netip.Addr {
	if a.Is4() {
		return s.V4
	}
	return s.V6
}

// List returns the configured sources.
func (s Sources) List() []netip.Addr {
	return slices.DeleteFunc([]netip.Addr{s.V4, s.V6}, func(a netip.Addr) bool { return !a.IsValid() })
}

// Connections is the [connections] table: the bounds of the connection table, and how its entries end.
type Connections struct {
	Max                     int  // entries, 1024 to 2^27
	SloppyTCP               bool // a TCP packet other than a SYN may open a connection
	Timeouts                Timeouts
	ExpireNoDest            bool // a packet of a removed realserver's connection removes the connection
	ExpireQuiescentTemplate bool // persistence does not keep clients on a realserver of weight 0
	// ConnReuse selects the states in which a SYN opens a new connection: 0 none, 1 TIME_WAIT and CLOSE, 2 also
	// FIN_WAIT.
	ConnReuse int
	// DropOnRemoval drops packets to a removed realserver. Otherwise its connections go on until they end.
	DropOnRemoval bool
	SecureTCP     SecureTCP // the defence against SYN floods
	HalfOpenMax   int       // number of half-open TCP connections from which SecureAuto defends; at most Max
	// Keep is the absolute path of the file in which the table outlives the process; "": none.
	Keep string
	// KeepBeside is set if Keep is the default, beside the control socket: another place will do if that is not on
	// tmpfs.
	KeepBeside bool
}

// SecureTCP selects when the defence against SYN floods is on.
type SecureTCP string

const (
	SecureAuto   SecureTCP = "auto" // from HalfOpenMax half-open connections on
	SecureAlways SecureTCP = "always"
	SecureOff    SecureTCP = "off"
)

// Timeouts are the lifetimes of connections after their last packet, by state. Each is 1 s to 31 days.
type Timeouts struct {
	TCP    time.Duration // ESTABLISHED
	TCPFin time.Duration // FIN_WAIT
	TCPSyn time.Duration // SYN_RECV
	UDP    time.Duration
	SCTP   time.Duration // ESTABLISHED
}

// Service is one [[service]]: a set of realservers for each of its VIPs and ports. No two services share a VIP,
// protocol and port. balancer.EveryPort excludes the ports that another service names.
type Service struct {
	Name        string       // unique; 1 to 64 printable characters without whitespace
	VIPs        []netip.Addr // at least one, each once
	Protocol    string       // "tcp", "udp" or "sctp"
	Ports       []PortRange  // at least one; they do not overlap
	Scheduler   string       // one of balancer.Schedulers
	Flags       SchedulerFlags
	ByAddress   bool // hash schedulers take the realservers in order of address, and not of the file
	Persistence Persistence
	OnePacket   bool            // UDP only: each packet is scheduled by itself
	Check       *Check          // default check of the realservers; nil: none
	Forward     method.Kind     // default of RealserverRef.Forward
	Realservers []RealserverRef // with addresses, in the file's order, each ID once; may be empty
	Named       []RealserverRef // with names instead, in the file's order
	Resolve     Resolve         // of Named and Found; the zero value if there are none
	Found       RealserverRef   // realserver of each of Resolve.SRV's records, except for address, port and weight
	EncapPort   uint16          // UDP destination port of realservers whose Encap is "gue" or "fou"
	Quorum      int             // weight of up realservers from which the service is up, at least 1
	Hysteresis  int             // less than Quorum
	// Sorry gets new connections while the service is down; the zero value: none. If it has the ID of one of
	// Realservers, it is that realserver. Otherwise its weight is 1, and it is not checked.
	Sorry          RealserverRef
	DrainOnFailure bool // default of RealserverRef.DrainOnFailure
	AnnounceAlways bool // its VIPs are announced to routers also without its quorum
}

// HasSorry reports whether the service has a sorry server.
func (s *Service) HasSorry() bool { return s.Sorry.Address.IsValid() }

// HasTables reports whether agents get tables of s for second chances: it is for TCP, by mh, without persistence, whose
// templates lead clients elsewhere.
func (s *Service) HasTables() bool {
	return s.Protocol == "tcp" && s.Scheduler == "mh" && s.Persistence.Timeout == 0
}

// IsRealserver reports whether id is the ID of one of the service's realservers.
func (s *Service) IsRealserver(id netip.AddrPort) bool {
	return slices.ContainsFunc(s.Realservers, func(r RealserverRef) bool { return r.ID() == id })
}

// SchedulerFlags are the flags of schedulers that have any.
type SchedulerFlags = balancer.Flags

// Persistence sends all connections of a client to one realserver. The zero value is none.
type Persistence struct {
	Timeout  time.Duration // 1 s to 31 days; 0: none
	Netmask  int           // IPv4 addresses with this prefix length in common are one client; 1 to 32
	Netmask6 int           // the same for IPv6 addresses, 1 to 128
}

// PortRange is an inclusive range of ports, 1 ≤ First ≤ Last; or balancer.EveryPort.
type PortRange = balancer.PortRange

// RealserverRef is one [[service.realserver]]: a realserver in a service.
type RealserverRef struct {
	Address netip.Addr // never a VIP of any service
	Host    string     // name whose address it is, as it is written; "": the file has the address
	Forward method.Kind
	Port    uint16 // of NAT: the realserver's port; 0: the service's
	Tunnel         // of TUN
	Check   *Check // its own, or the pointer of its service's check; nil: it is not checked, and always up
	Weight  int    // 0 to 65535; 0 drains it
	Upper   int    // number of connections at which it gets no new ones; 0: no bound
	Lower   int    // it gets new ones again below this number, at most Upper; 0: three quarters of Upper

	// Standby is 0, or the rank of a realserver that gets no new connections while one with a lower rank is up.
	Standby int

	DrainOnFailure bool // a failure sets its weight to 0; else a failure removes it from the service
}

// ID identifies r within its service: its address, and its own port, where it has one, else 0.
func (r *RealserverRef) ID() netip.AddrPort { return netip.AddrPortFrom(r.Address, r.Port) }

// CheckedDirectly reports whether the check of r goes to r's own address, and not to the VIPs by r's forwarding method.
// r has a check.
func (r *RealserverRef) CheckedDirectly() bool { return r.Check.Direct || r.Forward == method.NAT }

// Via returns the path of the check of r, as the key via names it. r has a check.
func (r *RealserverRef) Via() string { return pick(r.CheckedDirectly(), "direct", "tunnel") }

// CheckPort returns the port that the check of r examines, or 0 for a check without one. r has a check.
func (r *RealserverRef) CheckPort() uint16 {
	if r.Check.DefaultPort && r.Port != 0 {
		return r.Port
	}
	return r.Check.Port
}

// Notify is the [notify] table: the receivers of changes of health. By default there is none.
type Notify = notify.Config

// Tunnel is a tunnel to a realserver.
type Tunnel struct {
	Encap    string // one of Encaps
	Key      uint32 // of GRE, where HasKey is set
	HasKey   bool   // "gre" only
	Checksum bool   // send GRE's own checksum, or UDP's; not of "ipip"
	// Own is this end's address in the tunnel, of "wireguard" only.
	Own netip.Addr
}

// Encaps returns the tunnels' names.
func Encaps() []string { return encapsWith(func(encap.Kind) bool { return true }) }

// MSSOff leaves the MSS and the routes of answers unchanged.
const MSSOff = -1

// Realserver is the configuration of the realserver agent, realserver.toml. Every value is in force: defaults are
// filled in.
type Realserver struct {
	TUN       string         // name of the TUN device, 1 to 15 bytes
	AnyTUN    bool           // TUN is the default: another name will do
	Queues    int            // workers, sockets and TUN queues, 1 to 256; 0 in the file is one per CPU
	Offload   bool           // use the offloads of the TUN device that the kernel has
	VIPs      []netip.Addr   // addresses to accept, each once; none: Tunnels is all it has
	Directors []netip.Prefix // outer sources to accept, without host bits; each once, at least one if there is a tunnel
	// ForeignVIPs is set if another program on the host takes the packets to the VIPs, such as kube-proxy; there is a
	// tunnel then. Else the agent adds the VIPs to its device.
	ForeignVIPs bool
	// Encaps are the tunnels to accept, each once, of Encaps; not both gue and fou, which share one port. An agent for
	// VS/DR alone has none.
	Encaps       []string
	EncapPort    uint16 // UDP port of gue and fou
	Key          uint32 // of GRE, where HasKey is set
	HasKey       bool   // GRE packets must have Key; else they must have no key
	WireGuard    WireGuard
	SecondChance SecondChance
	Tunnels      []PointToPoint // in the file's order
	// MSS is the largest value that SYN-ACKs may advertise, 88 to 65495 bytes; 0: the value that fits the tunnel; or
	// MSSOff.
	MSS      int
	FastPath FastPath
	Table    int            // routing table for replies, and priority of the rule that leads to it
	Control  string         // absolute path of the control socket, at most 107 bytes
	Metrics  netip.AddrPort // address of the HTTP server; the zero value: none
	Log      slog.Level     // least level that is logged
	Warnings []string       // keys without their apparent effect, one line each in the form of Errors
}

// Digest returns a text's SHA-256, in hexadecimal digits.
func Digest(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// LoadDirector reads and validates director.toml. Once the file can be read, an error is of type *Errors.
func LoadDirector(path string) (*Director, error) {
	text, err := Read(path)
	if err != nil {
		return nil, err
	}
	return ParseDirector(path, text)
}

// LoadRealserver reads and validates realserver.toml. Once the file can be read, an error is of type *Errors.
func LoadRealserver(path string) (*Realserver, error) {
	text, err := Read(path)
	if err != nil {
		return nil, err
	}
	return ParseRealserver(path, text)
}

// Errors are all faults of one file, one line each, in the form "file:line: path of the key: fault: remedy". A missing
// key has the line of its table's header, or 1. A fault in TOML's own syntax is reported alone, with its column:
// "file:line:column: …".
type Errors []string

// Error joins the lines by newlines.
func (e *Errors) Error() string { return strings.Join(*e, "\n") }

// MaxFileSize is far above any real configuration. It bounds the memory for a slip such as -c /dev/zero.
const MaxFileSize = 16 << 20

// readTimeout is the time that a FIFO or a terminal may take to reach its end.
const readTimeout = 2 * time.Second

// Read reads the text of a configuration file, which need not be valid.
func Read(path string) ([]byte, error) {
	text, err := readBounded(path)
	switch {
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("%w: want a file that the program's user owns, or that every user may read: the "+
			"program has no privilege for files, even as root", err)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, fmt.Errorf("%s: has no end: name a configuration file with -c, or close what writes to this one",
			path)
	case err != nil:
		return nil, fmt.Errorf("%w: name a readable configuration file with -c", err)
	}
	return text, nil
}

// readBounded reads a file that may be a FIFO or a device, in bounded time and memory.
func readBounded(path string) ([]byte, error) {
	// O_NONBLOCK: a FIFO without a writer is an empty file
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	_ = file.SetReadDeadline(time.Now().Add(readTimeout)) // fails for a regular file, which needs no deadline
	text, err := io.ReadAll(io.LimitReader(file, MaxFileSize+1))
	if err != nil {
		return nil, err
	}
	if len(text) > MaxFileSize {
		return nil, fmt.Errorf("%s: is larger than %d MiB", path, MaxFileSize>>20)
	}
	return text, nil
}
