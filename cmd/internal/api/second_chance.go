package api

import (
	"time"

	"vstun/balancer/secondchance"
)

// Tables is what a director sends to agents for second chances.
type Tables struct {
	Version  uint64            `json:"version"` // counts changes of the tables in force
	Sent     uint64            `json:"sent"`    // datagrams
	Refused  map[string]uint64 `json:"refused,omitempty"`
	Error    string            `json:"error,omitempty"`     // the last one of the socket
	TooLarge []string          `json:"too_large,omitempty"` // services whose tables no datagram can carry
	Services []TablesService   `json:"services,omitempty"`
	Agents   []TablesAgent     `json:"agents,omitempty"`
}

// TablesAgent is an agent that gets tables.
type TablesAgent struct {
	Address string   `json:"address"`
	Current bool     `json:"current"` // it has the last table of each of its services
	Heard   *float64 `json:"heard_seconds_ago,omitempty"`
}

// TablesService is the tables of a service, the newest first.
type TablesService struct {
	Name   string  `json:"name"`
	Tables []Table `json:"tables"`
}

// Table is a table of a service.
type Table struct {
	Realservers int      `json:"realservers"`
	Since       *float64 `json:"since_seconds_ago,omitempty"`
	InForce     *float64 `json:"in_force_seconds_ago,omitempty"` // the last time
}

// SecondChance is the second chances of an agent.
type SecondChance struct {
	Port      int               `json:"port"`
	Peers     []string          `json:"peers"`
	Forwarded Traffic           `json:"forwarded"` // sent on to other realservers, with the tunnel's header
	Received  uint64            `json:"received"`  // packets that peers have sent on
	Queries   uint64            `json:"queries"`   // sockets that the kernel was asked for
	Unasked   uint64            `json:"unasked"`   // packets of unknown connections beyond the bound of queries
	Tables    uint64            `json:"tables"`    // datagrams with tables taken
	Refused   map[string]uint64 `json:"refused,omitempty"`
	Error     string            `json:"error,omitempty"` // the kernel's for the last packet that it refused to send
	Directors []TablesDirector  `json:"directors,omitempty"`
	Services  []TablesService   `json:"services,omitempty"`
}

// TablesDirector is a director that sends tables.
type TablesDirector struct {
	Address string  `json:"address"`
	Heard   float64 `json:"heard_seconds_ago"`
}

// Since returns the seconds since a time, nil for the zero time.
func Since(at, now time.Time) *float64 {
	if at.IsZero() {
		return nil
	}
	s := now.Sub(at).Seconds()
	return &s
}

// TablesOf returns the tables of services.
func TablesOf(services []secondchance.ServiceStatus, now time.Time) (all []TablesService) {
	for _, s := range services {
		one := TablesService{Name: s.Name}
		for _, t := range s.Tables {
			one.Tables = append(one.Tables, Table{Realservers: t.Members, Since: Since(t.Since, now),
				InForce: Since(t.Last, now)})
		}
		all = append(all, one)
	}
	return all
}
