package api

// Reload is the answer to POST /reload on a control socket, and to POST /weight on a director's. Their commands print
// it as JSON.
type Reload struct {
	Changes []Change `json:"changes"`          // empty: nothing has changed
	Errors  []string `json:"errors,omitempty"` // why nothing has changed, a line each; printed by the commands only
}

// Change is one difference between the former configuration in force and the present one. Without Service it is about
// the whole director, without Realserver about the whole service. Without Key the service or realserver itself is added
// or removed.
type Change struct {
	Service    string `json:"service,omitempty"`
	Realserver string `json:"realserver,omitempty"`
	Key        string `json:"key,omitempty"` // of the configuration: "weight", "check.interval"
	Old        any    `json:"old"`           // a number, a truth value or a string; null: there was none
	New        any    `json:"new"`           // null: there is none any more
	// of a weight that an operator has set: the one of the configuration
	Configured *int   `json:"configured,omitempty"`
	Text       string `json:"text"` // the same in one line of text
}
