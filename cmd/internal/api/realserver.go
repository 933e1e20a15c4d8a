package api

import (
	"fmt"
	"net/netip"
	"strings"

	"vstun/balancer/method"
	"vstun/cmd/internal/words"
)

// Realserver is a realserver of a service. Its address, and its port where it has one, identify it there.
type Realserver struct {
	Address       string  `json:"address"`
	Port          uint16  `json:"port,omitempty"`      // its own, of nat; 0: it has the service's
	Host          string  `json:"host,omitempty"`      // name whose address it is; "": the file has the address
	Forward       string  `json:"forward"`             // "tun", "dr" or "nat"
	Encap         string  `json:"encap,omitempty"`     // of tun
	EncapKey      *uint32 `json:"encap_key,omitempty"` // of GRE; nil: none
	EncapChecksum bool    `json:"encap_checksum,omitempty"`
	Weight        int     `json:"weight"`                      // 0: it drains
	Configured    *int    `json:"configured_weight,omitempty"` // if an operator or a file has set another weight
	Effective     int     `json:"effective_weight"`            // by its health: the weight, or 0
	Health        string  `json:"health,omitempty"`            // "up", "down" or "unchecked"
	Check         *Check  `json:"check,omitempty"`             // nil: unchecked
	Upper         int     `json:"upper,omitempty"`             // thresholds of connections
	Lower         int     `json:"lower,omitempty"`
	Active        int     `json:"active"`      // connections, by IPVS's count
	Inactive      int     `json:"inactive"`    // all other connections
	Templates     int     `json:"templates"`   // persistent clients
	Connections   uint64  `json:"connections"` // scheduled since the start
	Forwarded     Traffic `json:"forwarded"`   // packets of clients, without the tunnel's header
	// Replies are its packets to clients that have passed the director, by nat.
	Replies Traffic `json:"replies,omitzero"`
	// Unanswered is the packets of clients since the last reply, by nat; 0 if no new connection is among them.
	Unanswered uint64 `json:"unanswered,omitempty"`

	// Unreachable is the reason why packets cannot get to a realserver of VS/DR, which is then down.
	Unreachable string `json:"unreachable,omitempty"`
	// Standby is set while realservers of SRV records with a lower priority number have its connections.
	Standby bool `json:"standby,omitempty"`
}

// Name returns the realserver's address, and its own port, where it has one: "10.0.11.2:8080".
func (r *Realserver) Name() string { return realserverName(r.Address, r.Port) }

// Method returns the forwarding method as ipvsadm names it, with the tunnel of tun: "Masq", "Tunnel,gre,key=7,csum".
func (r *Realserver) Method() string {
	return methodName(r.Forward, r.Encap, r.EncapKey, r.EncapChecksum)
}

func methodName(forward, encap string, key *uint32, checksum bool) string {
	kind, _ := method.ParseKind(forward)
	name := kind.Title()
	if kind != method.TUN {
		return name
	}
	name += "," + encap
	if key != nil {
		name += fmt.Sprintf(",key=%d", *key)
	}
	if checksum {
		name += ",csum"
	}
	return name
}

// ComingUp reports whether r is down while its last checks have succeeded.
func (r *Realserver) ComingUp() bool {
	return r.Health == "down" && r.Check != nil && r.Check.Streak > 0
}

// Trouble returns why r is unreachable, or the reason of the last check if r is down, or if its last checks contradict
// its health; else "".
func (r *Realserver) Trouble() string {
	if r.Unreachable != "" {
		return r.Unreachable
	}
	if r.Check == nil || r.Health != "down" && r.Check.Streak == 0 {
		return ""
	}
	return r.Check.Reason
}

// LeavingRealserver is a realserver of a service that is not configured any more, or not with this method.
type LeavingRealserver struct {
	Service       string  `json:"service"`
	Address       string  `json:"address"`
	Port          uint16  `json:"port,omitempty"` // its own, of nat
	Forward       string  `json:"forward"`        // "tun", "dr" or "nat"
	Encap         string  `json:"encap,omitempty"`
	EncapKey      *uint32 `json:"encap_key,omitempty"`
	EncapChecksum bool    `json:"encap_checksum,omitempty"`
	Active        int     `json:"active"`
	Inactive      int     `json:"inactive"`
	// persistent clients, whose next connections go to other realservers
	Templates int `json:"templates,omitempty"`
}

// Name returns the realserver's address, and its own port, where it has one.
func (r *LeavingRealserver) Name() string { return realserverName(r.Address, r.Port) }

// Method returns the forwarding method, as that of a configured realserver.
func (r *LeavingRealserver) Method() string {
	return methodName(r.Forward, r.Encap, r.EncapKey, r.EncapChecksum)
}

func realserverName(address string, port uint16) string {
	a, err := netip.ParseAddr(address)
	if err != nil {
		return address
	}
	return words.Realserver(netip.AddrPortFrom(a, port))
}

// ParseRealserver reads the name of a realserver: its address, or its address and port. Without a port, the port is 0.
func ParseRealserver(s string) (netip.AddrPort, error) {
	a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"))
	if err == nil {
		return netip.AddrPortFrom(a, 0), nil
	}
	if ap, err := netip.ParseAddrPort(s); err == nil && ap.Port() != 0 {
		return ap, nil
	}
	return netip.AddrPort{}, fmt.Errorf("realserver %q is not an address: want one such as 10.0.11.2 or "+
		"10.0.11.2:8080", s)
}

// Names reports whether name, as ParseRealserver has read it, names the realserver id. An address without a port names
// all realservers that have it.
func Names(name, id netip.AddrPort) bool {
	return name.Addr() == id.Addr() && (name.Port() == 0 || name.Port() == id.Port())
}
