package control

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Connection is one line of the answer to GET /connections on a director's control socket, and of `director connections
// --json`. A client's persistence is one too, with template true: then Client is the network that it holds for, masked,
// ClientPort is 0, and VIP and Port stand for the whole service: its first VIP, and its only port or 0. Of a service
// that is not configured any more they, and Protocol, are empty.
type Connection struct {
	Protocol   string  `json:"protocol"` // "tcp", "udp" or "sctp"
	State      string  `json:"state"`    // as ipvsadm names it, or "TEMPLATE"
	Expires    float64 `json:"expires_seconds"`
	Client     string  `json:"client"`
	ClientPort uint16  `json:"client_port"`
	VIP        string  `json:"vip"`
	Port       uint16  `json:"port"` // of the VIP and of the realserver: a tunnel doesn't change it
	Realserver string  `json:"realserver"`
	Service    string  `json:"service"`
	Packets    uint32  `json:"packets"` // from the client; wraps
	Template   bool    `json:"template"`
}

// StateTemplate is the state of a Connection that is a template.
const StateTemplate = "TEMPLATE"

// connectionsRow is as wide as IPv4 needs. Rows are printed as they come, and so nobody knows the widest before.
const connectionsRow = "%-4s %-6s %-11s %-21s %-21s %s\n"

// row is one of the table's. Where it is wider than the terminal, it goes on below; width 0: it never is.
func row(width int, protocol, expire, state, client, vip, realserver string) string {
	r := fmt.Sprintf(connectionsRow, protocol, expire, state, client, vip, realserver)
	if width > 0 && len(r)-1 > width {
		r = fmt.Sprintf("%-4s %-6s %-11s %s\n"+below+"-> %s -> %s\n", protocol, expire, state, client, vip, realserver)
	}
	return r
}

func printConnectionsHead(w io.Writer, width int) error {
	_, err := io.WriteString(w, row(width, "pro", "expire", "state", "source", "virtual", "destination"))
	return err
}

// printConnection prints a line of JSON as a row of the table.
func printConnection(w io.Writer, line []byte, width int) error {
	var c Connection
	if err := json.Unmarshal(line, &c); err != nil {
		return fmt.Errorf("/connections: answer is not as expected: %w", err)
	}
	if c.VIP == "" {
		c.Protocol, c.VIP = "-", "-"
	}
	_, err := io.WriteString(w, row(width, strings.ToUpper(c.Protocol), minutes(c.Expires), c.State,
		addressPort(c.Client, c.ClientPort), addressPort(c.VIP, c.Port),
		addressPort(c.Realserver, c.Port)))
	return err
}

// minutes is a time as "14:59", in whole seconds as ipvsadm cuts them.
func minutes(seconds float64) string {
	s := int(time.Duration(seconds*float64(time.Second)) / time.Second)
	return fmt.Sprintf("%02d:%02d", s/60, s%60)
}

// addressPort is "192.0.2.1:80" or "[2001:db8::1]:80".
func addressPort(address string, port uint16) string {
	if a, err := netip.ParseAddr(address); err == nil {
		return netip.AddrPortFrom(a, port).String()
	}
	return address + ":" + strconv.Itoa(int(port))
}
