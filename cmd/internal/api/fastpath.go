package api

// FastPath is what a program's fast path in the kernel does.
type FastPath struct {
	On      bool     `json:"on"`
	Devices []string `json:"devices,omitempty"` // by which packets come that it may take
	Reason  string   `json:"reason,omitempty"`  // why it is not on, or not on all devices
	Resumes bool     `json:"resumes,omitempty"` // it is on without a restart once Reason holds no more
	Taken   Traffic  `json:"taken"`             // by it since the start; GSO packets count once
	// Of a director:
	Connections int    `json:"connections,omitempty"` // that it forwards now
	Promoted    uint64 `json:"promoted,omitempty"`    // that it has got since the start
	// Refused is how often it could not get a connection, by reason; only reasons that occurred.
	Refused map[string]uint64 `json:"refused,omitempty"`
}
