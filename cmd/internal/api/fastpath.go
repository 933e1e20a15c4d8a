package api

// FastPath is the state of the fast path in the kernel.
type FastPath struct {
	On      bool     `json:"on"`
	Reason  string   `json:"reason,omitempty"`  // why it is off
	Devices []string `json:"devices,omitempty"` // that have its program
	// Of a director:
	Connections int    `json:"connections"` // that the kernel forwards now
	Promoted    uint64 `json:"promoted"`    // that the kernel has got
	// what the kernel has forwarded, requests and replies; GSO packets count once
	Forwarded Traffic `json:"forwarded"`
}
