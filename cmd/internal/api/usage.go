package api

// RealserverUsage is the connections that a realserver of a service still has. GET /load on a director's control socket
// returns a list of them.
type RealserverUsage struct {
	Service    string `json:"service"`
	Realserver string `json:"realserver"` // its Name
	Forward    string `json:"forward"`    // "tun", "dr" or "nat"; a realserver that has left may have several
	Weight     int    `json:"weight"`
	Left       bool   `json:"left"` // not configured any more
	Active     int    `json:"active"`
	Inactive   int    `json:"inactive"`
	Held       int    `json:"held"` // persistent clients that come back whatever the weight is

	// a worker may still decide by a former weight, and open another connection
	Settling bool `json:"settling,omitempty"`
}
