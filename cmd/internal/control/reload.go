package control

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

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

// print writes the changes, or why there are none, as text or as JSON. It returns the error.
func (r Reload) print(out io.Writer, err error, asJSON bool) error {
	err = plain(err)
	if asJSON {
		r.Changes = append([]Change{}, r.Changes...) // never null
		if err != nil {
			r.Errors = strings.Split(err.Error(), "\n")
		}
		return errors.Join(err, PrintJSON(out, r))
	}
	if err != nil {
		return err
	}
	lines := []string{"nothing changed"}
	for i, c := range r.Changes {
		lines = append(lines[:i], c.Text)
	}
	_, err = fmt.Fprintln(out, strings.Join(lines, "\n"))
	return err
}

// reloadTakes is the longest that a reload may take: thousands of realservers, and a route for each of their VIPs.
const reloadTakes = time.Minute

// ReloadCommand lets the running program read its configuration again, and prints the changes, or why there are none.
func ReloadCommand(socket *Socket) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{Use: "reload", Args: cobra.NoArgs,
		Short: "Let the running program read its configuration again, as SIGHUP does, and print what changes",
		RunE: func(c *cobra.Command, _ []string) error {
			var r Reload
			path, err := socket.Path()
			if err == nil {
				err = ask(c.Context(), http.MethodPost, path, "/reload", reloadTakes, &r)
			}
			return r.print(c.OutOrStdout(), err, asJSON) // an error is the faults of the file, a line each
		}}
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return socket.Flag(c)
}
