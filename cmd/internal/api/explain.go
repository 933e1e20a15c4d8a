package api

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"vstun/cmd/internal/words"
)

// Explanation is the answer to GET /explain on a director's control socket: where the packets of a flow go, and why.
type Explanation struct {
	Protocol   string      `json:"protocol"`
	Client     string      `json:"client"`
	ClientPort uint16      `json:"client_port"` // 0: any
	VIP        string      `json:"vip"`
	Port       uint16      `json:"port"`
	Realserver string      `json:"realserver,omitempty"` // its Name; none: the packets are dropped
	Drop       string      `json:"drop,omitempty"`       // the reason of the drop
	Why        string      `json:"why"`                  // the reason of the decision, in one line
	FastPath   bool        `json:"fast_path,omitempty"`  // the kernel forwards the flow's packets
	NextHop    string      `json:"next_hop,omitempty"`   // the realserver that gives the packets a second chance
	Role       string      `json:"role,omitempty"`       // its role in VRRP sends the VIP's packets elsewhere
	Service    string      `json:"service,omitempty"`    // with the VIP, protocol and port
	Scheduler  string      `json:"scheduler,omitempty"`
	Connection *Connection `json:"connection,omitempty"`
	Template   *Connection `json:"template,omitempty"`
	Candidates []Candidate `json:"realservers,omitempty"` // of the service
	// similar virtual ports, if no service has this one: "tcp 198.51.100.80:80 (web)"
	Near []string `json:"near,omitempty"`
}

// Candidate is a realserver that the scheduler considers for a new connection.
type Candidate struct {
	Realserver
	PassedOver string `json:"passed_over,omitempty"` // why the scheduler skips it
	Reachable  bool   `json:"reachable"`
	Link       string `json:"link,omitempty"`   // device of the route to it; none: there is no route
	Source     string `json:"source,omitempty"` // outer source address
	MTU        int    `json:"mtu"`              // of the path to it
	InnerMTU   int    `json:"inner_mtu"`        // largest packet that fits the tunnel
}

// parseEndpoint reads a query's address and port: "192.0.2.7:4711", "[2001:db8::7]:4711".
func parseEndpoint(what, s string) (netip.AddrPort, error) {
	ap, err := netip.ParseAddrPort(s)
	if err != nil || ap.Addr().Zone() != "" || ap.Addr().Is4In6() {
		return netip.AddrPort{}, fmt.Errorf("%s %q is no address with a port: want one such as 198.51.100.80:80 or "+
			"[2001:db8::80]:80", what, s)
	}
	return ap, nil
}

// parseClient reads a client's address with or without a port. Without a port, the port is 0.
func parseClient(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")); err == nil && a.Zone() == "" &&
		!a.Is4In6() {
		return netip.AddrPortFrom(a, 0), nil
	}
	return parseEndpoint("client", s)
}

// ParseFlow reads the query of GET /explain. If protocol is empty, the director finds it. Without a client port, the
// query is about a new connection from any port.
func ParseFlow(q url.Values) (client, vip netip.AddrPort, protocol string, err error) {
	if client, err = parseClient(q.Get("client")); err != nil {
		return client, vip, "", err
	}
	if vip, err = parseEndpoint("VIP", q.Get("vip")); err != nil {
		return client, vip, "", err
	}
	if client.Addr().Is4() != vip.Addr().Is4() {
		return client, vip, "", fmt.Errorf("client %v and VIP %v are of two families: want both IPv4, or both IPv6",
			client, vip)
	}
	protocol = q.Get("protocol")
	if known := []string{"", "tcp", "udp", "sctp"}; !slices.Contains(known, protocol) {
		return client, vip, "", fmt.Errorf("--protocol %q is no protocol: %s", protocol,
			words.Instead(protocol, known[1:]))
	}
	return client, vip, protocol, nil
}
