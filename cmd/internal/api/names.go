package api

import (
	"fmt"
	"slices"
)

// Name is a name that a director resolves, with the realservers that its answer gives.
type Name struct {
	Name     string       `json:"name"` // as in the configuration
	Type     string       `json:"type"` // "address" or "srv"
	Family   string       `json:"family"`
	Server   string       `json:"server,omitempty"` // name server; "": those of resolv.conf
	Services []string     `json:"services"`
	Targets  []NameTarget `json:"targets"`              // the last answer
	Answered *float64     `json:"answered_seconds_ago"` // nil: there has been no answer
	Cut      int          `json:"left_out,omitempty"`   // addresses beyond the bound
	Failures uint64       `json:"failures"`             // attempts without a complete answer
	// why the last attempt failed; "": it did not
	Error string `json:"error,omitempty"`
	// time since the first of the failed attempts in a row
	Failing float64       `json:"failing_seconds,omitempty"`
	Refused []NameRefused `json:"refused,omitempty"`
}

// NameTarget is a host of an answer: the name itself, or the target of a SRV record.
type NameTarget struct {
	Host      string   `json:"host,omitempty"` // "": the name itself
	Port      uint16   `json:"port,omitempty"` // of the SRV record, like priority and weight
	Priority  uint16   `json:"priority,omitempty"`
	Weight    uint16   `json:"weight,omitempty"`
	Addresses []string `json:"addresses"`
}

// NameRefused is an address of an answer that is no realserver.
type NameRefused struct {
	Service string `json:"service"`
	Host    string `json:"host"`
	Address string `json:"address"`
	Reason  string `json:"reason"`
}

// Has reports whether the answer has an address, of a host or the name itself.
func (n *Name) Has(host, address string) bool {
	return slices.ContainsFunc(n.Targets, func(t NameTarget) bool {
		return (t.Host == host || t.Host == "" && n.Name == host) && slices.Contains(t.Addresses, address)
	})
}

// Addresses returns the number of addresses of the answer.
func (n *Name) Addresses() (all int) {
	for _, t := range n.Targets {
		all += len(t.Addresses)
	}
	return all
}

// Realservers returns what the services have of the name: "3 addresses", or that there is no answer.
func (n *Name) Realservers() string {
	switch {
	case n.Answered == nil:
		return "no answer yet"
	case n.Cut > 0:
		return fmt.Sprintf("%d addresses, %d left out", n.Addresses(), n.Cut)
	case n.Addresses() == 1:
		return "1 address"
	}
	return fmt.Sprintf("%d addresses", n.Addresses())
}
