package api

// Sync is the exchange of connections with other directors.
type Sync struct {
	Mode string `json:"mode"` // "vstun" or "ipvs"
	// false: the director waits for the connections of its peers, for 30 s at most, and takes no role from another one
	Ready bool `json:"ready"`
	// a transfer of the whole table to the peers is going on
	Sending  bool        `json:"sending_table"`
	Sent     SyncTraffic `json:"sent"`
	Received SyncTraffic `json:"received"`
	Lost     uint64      `json:"lost"`   // datagrams of peers that did not come
	Resent   uint64      `json:"resent"` // datagrams that peers had lost
	// changes of connections that came faster than they could be sent
	ChangesLost uint64 `json:"changes_lost"`
	// records that the mode ipvs has no form for
	Inexpressible uint64            `json:"inexpressible"`
	SendErrors    uint64            `json:"send_errors"`
	Error         string            `json:"error,omitempty"` // the last one of the sockets
	ErrorAge      float64           `json:"error_seconds_ago,omitempty"`
	Refused       map[string]uint64 `json:"refused,omitempty"` // datagrams and records, by reason
	Peers         []SyncPeer        `json:"peers,omitempty"`
	// addresses of configured peers of which nothing has come since the start, or for ten minutes; with multicast, the
	// group, if nothing has come of any director
	Unheard []string     `json:"unheard_peers,omitempty"`
	Senders []SyncSender `json:"refused_senders,omitempty"` // of refused datagrams
}

// SyncSender is a sender whose datagrams are refused.
type SyncSender struct {
	Address string  `json:"address"`
	Reason  string  `json:"reason"` // of the last one
	Count   uint64  `json:"datagrams"`
	Last    float64 `json:"last_seconds_ago"`
	Fix     string  `json:"fix"`
}

// SyncTraffic counts datagrams, the records in them, and their bytes without IP and UDP headers.
type SyncTraffic struct {
	Datagrams uint64 `json:"datagrams"`
	Records   uint64 `json:"records"`
	Bytes     uint64 `json:"bytes"`
}

// SyncPeer is another director.
type SyncPeer struct {
	Address   string      `json:"address"`
	State     string      `json:"state"` // "alive" or "silent"
	Heard     float64     `json:"heard_seconds_ago"`
	Received  SyncTraffic `json:"received"`
	Lost      uint64      `json:"lost"`      // its datagrams that did not come
	Recovered uint64      `json:"recovered"` // gaps that datagrams sent again have closed
	// since its whole table came; none: it has not, or datagrams are missing since
	Bulk *float64 `json:"table_received_seconds_ago,omitempty"`
	// since it got this director's whole table
	Given *float64 `json:"table_sent_seconds_ago,omitempty"`
}
