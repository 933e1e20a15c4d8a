package api

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
