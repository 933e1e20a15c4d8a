package api

// Connection is one line of the answer to GET /connections on a director's control socket, and of `director connections
// --json`: a connection or a persistence template. A template has Template true. Its Client is the masked network of
// the client, its ClientPort 0. Its VIP and Port stand for the service: the first VIP, and the only port or 0. They,
// and Protocol, are empty if the service is not configured any more.
type Connection struct {
	Protocol   string  `json:"protocol"` // "tcp", "udp" or "sctp"
	State      string  `json:"state"`    // as ipvsadm names it, or "TEMPLATE"
	Expires    float64 `json:"expires_seconds"`
	Client     string  `json:"client"`
	ClientPort uint16  `json:"client_port"`
	VIP        string  `json:"vip"`
	Port       uint16  `json:"port"`       // of the VIP
	Realserver string  `json:"realserver"` // its address
	// the port of its packets there, which nat may replace; 0 for a template if the service has several
	RealserverPort uint16 `json:"realserver_port"`
	Service        string `json:"service"`
	Packets        uint32 `json:"packets"` // from the client; wraps
	Template       bool   `json:"template"`
}

// StateTemplate is the state of a Connection that is a template.
const StateTemplate = "TEMPLATE"
