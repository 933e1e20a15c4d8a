package api

// BGP is the announcement of VIPs to routers.
type BGP struct {
	AS       uint32 `json:"as"`
	RouterID string `json:"router_id"`
	// "announcing"; "held": it waits for the connections of its peers; "graceful_shutdown": its routes have this
	// community, and will be withdrawn; "standby": its routes are withdrawn
	State     string    `json:"state"`
	Announced []string  `json:"announced"`           // VIPs
	Withdrawn []string  `json:"withdrawn"`           // VIPs that are not announced: without quorum, or see Elsewhere
	Elsewhere []string  `json:"elsewhere,omitempty"` // those of Withdrawn that another director has by VRRP
	Peers     []BGPPeer `json:"peers"`
}

// BGPPeer is a router.
type BGPPeer struct {
	Address  string  `json:"address"`
	AS       uint32  `json:"as"`
	State    string  `json:"state"` // "established" or "down"
	Since    float64 `json:"since_seconds"`
	Fault    string  `json:"fault,omitempty"`  // why the session is down, in a word
	Reason   string  `json:"reason,omitempty"` // why it is down
	Fix      string  `json:"fix,omitempty"`
	Local    string  `json:"local_address,omitempty"`
	RouterID string  `json:"router_id,omitempty"` // of the peer
	HoldTime float64 `json:"hold_time_seconds,omitempty"`
	// the number of VIPs that the peer has
	Announced int      `json:"announced"`
	Missing   []string `json:"missing_families,omitempty"` // that the peer does not have, or that have no next hop
	// that the peer has sent: they take memory, and none is used
	Routes   int    `json:"received_routes"`
	BFD      string `json:"bfd,omitempty"` // "up", "init" or "down"
	Ups      uint64 `json:"ups"`           // times that the session has come up
	Downs    uint64 `json:"downs"`         // times that it has ended
	Sent     uint64 `json:"sent"`          // messages
	Received uint64 `json:"received"`
}
