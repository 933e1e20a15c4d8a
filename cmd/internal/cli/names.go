package cli

import (
	"fmt"
	"io"
	"strings"

	"vstun/cmd/internal/api"
)

// printNames writes the names whose answers give realservers.
func printNames(w io.Writer, all []api.Name) {
	title := "\n"
	for i := range all {
		n := &all[i]
		fmt.Fprintf(w, "%sname %s\t%s\t%s\t%s\n", title, n.Name, n.Type, strings.Join(n.Services, ", "), nameState(n))
		title = ""
		for _, r := range n.Refused {
			fmt.Fprintf(w, "  refused: %s\t%s\t%s\n", r.Address, r.Service, r.Reason)
		}
	}
}

// nameState says how a name is resolved: "3 addresses, answered 12s ago".
func nameState(n *api.Name) string {
	state := n.Realservers()
	if n.Answered != nil {
		state += fmt.Sprintf(", answered %v ago", uptime(*n.Answered))
	}
	if n.Error != "" {
		state += fmt.Sprintf(", FAILS for %v: %s", uptime(n.Failing), n.Error)
	}
	return state
}
