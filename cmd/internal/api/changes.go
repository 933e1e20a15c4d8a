package api

import "strings"

// Reload is the answer to POST /reload, and to POST /weight on a director's control socket: the changes that it made.
// The commands print it as JSON.
type Reload struct {
	Changes []Change `json:"changes"`          // empty: nothing has changed
	Errors  []string `json:"errors,omitempty"` // why nothing has changed, a line each; only in what the commands print
}

// Complete makes r what the commands print: err, which may have several lines, is the reason why nothing has changed.
func (r *Reload) Complete(err error) {
	r.Changes = append([]Change{}, r.Changes...) // never null
	if err != nil {
		r.Errors = strings.Split(err.Error(), "\n")
	}
}

// Applied is the answer to a request that changes the configuration: PUT /configuration.
type Applied struct {
	Reload
	Written  bool     `json:"written"`            // the configuration file has another text now
	File     string   `json:"file,omitempty"`     // the configuration file
	Warnings []string `json:"warnings,omitempty"` // of the new configuration, a line each
}

// Change is one difference between the configuration before and the one now in force. Without Service it is about the
// whole program, without Realserver about the whole service. Without Key the service or realserver is added or removed.
type Change struct {
	Service    string `json:"service,omitempty"`
	Realserver string `json:"realserver,omitempty"` // its Name
	Key        string `json:"key,omitempty"`        // of the configuration: "weight", "check.interval"
	Old        any    `json:"old"`                  // a number, a boolean or a string; null: there was none
	New        any    `json:"new"`                  // null: there is none any more
	// the configured weight, if an operator has set another
	Configured *int   `json:"configured,omitempty"`
	Text       string `json:"text"` // the same in one line of text
}
