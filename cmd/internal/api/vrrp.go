package api

// Peers is what GET /peers on a director's control socket returns, and what `director peers --json` prints.
type Peers struct {
	VRRP []VRRP `json:"vrrp"`
	Sync *Sync  `json:"sync,omitempty"` // none without [sync]
	BGP  *BGP   `json:"bgp,omitempty"`  // none without [bgp]
}

// VRRP is an instance of the election between directors.
type VRRP struct {
	Name       string   `json:"name"`
	Interface  string   `json:"interface"`
	RouterID   uint8    `json:"router_id"`
	Version    uint8    `json:"version"`
	Group      string   `json:"group,omitempty"`
	Role       string   `json:"role"` // "initialize", "fault", "backup" or "master"
	Since      float64  `json:"since_seconds"`
	Reason     string   `json:"reason"`          // why it has this role
	Fault      string   `json:"fault,omitempty"` // why it cannot take part
	Standby    bool     `json:"standby"`
	Held       bool     `json:"held"`     // it waits for the connections of its peers
	Priority   uint8    `json:"priority"` // in force
	Configured uint8    `json:"configured_priority"`
	Interval   float64  `json:"interval_seconds"` // of the master
	Addresses  []string `json:"addresses"`
	Tracks     []Track  `json:"tracks,omitempty"`
	Peers      []Peer   `json:"peers,omitempty"`
	// another director that is master, too
	OtherMaster *OtherMaster      `json:"other_master,omitempty"`
	Sent        uint64            `json:"sent"`
	Received    uint64            `json:"received"`
	Refused     map[string]uint64 `json:"refused"`   // received packets, by reason; only reasons that occurred
	Elected     uint64            `json:"elected"`   // times that it became master
	Conflicts   uint64            `json:"conflicts"` // times that two masters were found
	// times that the program was paused for so long that another master might be there
	Paused    uint64 `json:"paused"`
	Failed    uint64 `json:"failed"` // packets that the kernel refused to send
	SendError string `json:"send_error,omitempty"`
	// since the last packet that the kernel refused to send
	SendErrorAge float64 `json:"send_error_seconds_ago,omitempty"`
}

// Track is something that an instance depends on.
type Track struct {
	Name   string `json:"name"` // "interface eth1", "service web", "gateway 10.0.2.1"
	Up     bool   `json:"up"`
	Weight int    `json:"weight"` // 0: the instance has a fault while it is down
}

// Peer is another director of an instance.
type Peer struct {
	Address  string  `json:"address"`
	Priority uint8   `json:"priority"` // of its last packet; 0: it has given the role up
	Last     float64 `json:"last_seconds_ago"`
	Refused  string  `json:"refused,omitempty"` // why its last packet was refused
	Differs  bool    `json:"differs,omitempty"` // it has other addresses
	Fix      string  `json:"fix,omitempty"`     // what to do about the refusal
}

// OtherMaster is a second master of an instance.
type OtherMaster struct {
	Address string `json:"address"`
	Refused string `json:"refused,omitempty"` // why its packets are refused
	Fix     string `json:"fix"`
}
