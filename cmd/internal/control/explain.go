package control

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"vstun/cmd/internal/daemon"
	"vstun/cmd/internal/words"
)

// Explanation is the answer to GET /explain on a director's control socket: where the packets of a flow go, and why.
type Explanation struct {
	Protocol   string      `json:"protocol"`
	Client     string      `json:"client"`
	ClientPort uint16      `json:"client_port"` // 0: any
	VIP        string      `json:"vip"`
	Port       uint16      `json:"port"`
	Realserver string      `json:"realserver,omitempty"` // that it has, or would get; none: its packets are dropped
	Drop       string      `json:"drop,omitempty"`       // the reason for which they are
	Why        string      `json:"why"`                  // in one line
	Service    string      `json:"service,omitempty"`    // that has the VIP, protocol and port
	Scheduler  string      `json:"scheduler,omitempty"`
	Connection *Connection `json:"connection,omitempty"`
	Template   *Connection `json:"template,omitempty"`
	Candidates []Candidate `json:"realservers,omitempty"` // of the service
	// what there is, where no service has it: "tcp 198.51.100.80:80 (web)"
	Near []string `json:"near,omitempty"`
}

// Candidate is a realserver as it stands for a new connection.
type Candidate struct {
	Realserver
	PassedOver string `json:"passed_over,omitempty"` // why it can't have one
	Reachable  bool   `json:"reachable"`
	Link       string `json:"link,omitempty"`   // device by which the tunnel leaves; none: there is no route
	Source     string `json:"source,omitempty"` // outer source address
	MTU        int    `json:"mtu"`              // of the way to it
	InnerMTU   int    `json:"inner_mtu"`        // largest packet that fits the tunnel
}

// Endpoint is a query's address and port: "192.0.2.7:4711", "[2001:db8::7]:4711".
func Endpoint(what, s string) (netip.AddrPort, error) {
	ap, err := netip.ParseAddrPort(s)
	if err != nil || ap.Addr().Zone() != "" || ap.Addr().Is4In6() {
		return netip.AddrPort{}, fmt.Errorf("%s %q is no address with a port: want one such as 198.51.100.80:80 or "+
			"[2001:db8::80]:80", what, s)
	}
	return ap, nil
}

// Client is a query's address of a client, with a port or without: then that is 0.
func Client(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")); err == nil && a.Zone() == "" &&
		!a.Is4In6() {
		return netip.AddrPortFrom(a, 0), nil
	}
	return Endpoint("client", s)
}

// ParseFlow reads the query of GET /explain; protocol is "" if the director finds it. Without a client
// port the query is about a new connection from any port.
func ParseFlow(q url.Values) (client, vip netip.AddrPort, protocol string, err error) {
	if client, err = Client(q.Get("client")); err != nil {
		return client, vip, "", err
	}
	if vip, err = Endpoint("VIP", q.Get("vip")); err != nil {
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

// ExplainCommand says which realserver a flow has or would get, and why.
func ExplainCommand(socket *Socket) *cobra.Command {
	var asJSON bool
	var protocol string
	c := &cobra.Command{Use: "explain CLIENT[:PORT] VIP:PORT",
		Short: "Say which realserver a flow has, or would get, and why; changes nothing", Args: cobra.ExactArgs(2),
		Example: "  director explain 192.0.2.7:4711 198.51.100.80:80\n  director explain [2001:db8::7]:4711 " +
			"[2001:db8:100::80]:53 --protocol udp",
		RunE: func(c *cobra.Command, args []string) error {
			q := url.Values{"client": {args[0]}, "vip": {args[1]}}
			if protocol != "" {
				q.Set("protocol", protocol)
			}
			if _, _, _, err := ParseFlow(q); err != nil {
				return daemon.UsageError{Err: err}
			}
			path, err := socket.Path()
			if err != nil {
				return err
			}
			var e Explanation
			if err := Get(c.Context(), path, "/explain?"+q.Encode(), &e); err != nil {
				return plain(err)
			}
			if asJSON {
				return PrintJSON(c.OutOrStdout(), e)
			}
			return printExplanation(c.OutOrStdout(), &e)
		}}
	c.Flags().StringVar(&protocol, "protocol", "", "`tcp`, udp or sctp (default: that of which there is a "+
		"connection or a service)")
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	// the flag is there
	_ = c.RegisterFlagCompletionFunc("protocol", cobra.FixedCompletions([]string{"tcp", "udp", "sctp"},
		cobra.ShellCompDirectiveNoFileComp))
	c.ValidArgsFunction = complete(socket, doorNames)
	return socket.Flag(c)
}

// printExplanation writes e for people.
func printExplanation(out io.Writer, e *Explanation) error {
	var w bytes.Buffer
	width := Width(out)
	client := addressPort(e.Client, e.ClientPort)
	if e.ClientPort == 0 {
		client = e.Client
	}
	fmt.Fprintf(&w, "%s %s -> %s\n", e.Protocol, client, addressPort(e.VIP, e.Port))
	if c := e.Connection; c != nil {
		fmt.Fprintf(&w, "connection: to %s, %s, %s, expires in %s\n", c.Realserver, c.State,
			words.Count(int(c.Packets), "packet"), minutes(c.Expires))
	} else if e.ClientPort == 0 {
		fmt.Fprintln(&w, "connection: a new one, from any port")
	} else {
		fmt.Fprintln(&w, "connection: none")
	}
	if t := e.Template; t != nil {
		fmt.Fprintf(&w, "persistence: client %s stays at %s, expires in %s\n", t.Client, t.Realserver,
			minutes(t.Expires))
	}
	if e.Service != "" {
		fmt.Fprintf(&w, "service: %s, scheduler %s\n", e.Service, e.Scheduler)
	}
	goes := "goes to " + e.Realserver
	if e.Drop != "" {
		goes = "is dropped: " + e.Drop
	}
	fmt.Fprintf(&w, "%s\n%s\n", goes, Wrapped("  because "+e.Why, width, "    "))
	if len(e.Candidates) > 0 {
		rows := [][]string{{"RemoteAddress", "Forward", "Weight", "ActiveConn", "InActConn", "Device", "Packets", ""}}
		for _, c := range e.Candidates {
			rows = append(rows, c.cells())
		}
		g := layOut(width, rows...)
		for i, cells := range rows {
			mark := margin
			if i > 0 && e.Candidates[i-1].Address == e.Realserver {
				mark = chosen
			}
			g.print(&w, mark, cells)
		}
	}
	if len(e.Near) > 0 {
		fmt.Fprintln(&w, "there are:")
	}
	for _, door := range e.Near {
		fmt.Fprintln(&w, "  "+door)
	}
	_, err := w.WriteTo(out)
	return err
}

// cells is a candidate's row of the table.
func (c *Candidate) cells() []string {
	link, remark := c.Link, c.remark()
	if link == "" {
		link = "no route"
	}
	if c.PassedOver != "" {
		remark = "passed over: " + c.PassedOver
	}
	return []string{c.Address, c.Forward(), fmt.Sprint(c.Weight), fmt.Sprint(c.Active), fmt.Sprint(c.Inactive), link,
		fmt.Sprintf("<= %d", c.InnerMTU), remark}
}

// remark is what is out of the ordinary with a realserver.
func (r *Realserver) remark() string {
	var remarks []string
	if trouble := r.Trouble(); trouble != "" {
		remarks = append(remarks, trouble)
	}
	if r.Weight == 0 {
		remarks = append(remarks, "draining")
	}
	if r.Configured != nil {
		remarks = append(remarks, fmt.Sprintf("(configured: %d)", *r.Configured))
	}
	return strings.Join(remarks, " ")
}
