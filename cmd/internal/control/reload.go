package control

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// Reload is what POST /reload on a control socket returns.
type Reload struct {
	Changes []string `json:"changes"` // a line each; empty: nothing has changed
}

// reloadTakes is the longest that a reload may take: thousands of realservers, and a route for each of their VIPs.
const reloadTakes = time.Minute

// ReloadCommand lets the running program read its configuration again, and prints what has changed or why nothing has.
func ReloadCommand(socket *Socket) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{Use: "reload", Args: cobra.NoArgs,
		Short: "Let the running program read its configuration again, as SIGHUP does, and print what changes",
		RunE: func(c *cobra.Command, _ []string) error {
			path, err := socket.Path()
			if err != nil {
				return err
			}
			var r Reload
			if err := ask(c.Context(), http.MethodPost, path, "/reload", reloadTakes, &r); err != nil {
				return plain(err) // the faults of the file, a line each
			}
			if asJSON {
				return PrintJSON(c.OutOrStdout(), r)
			}
			if len(r.Changes) == 0 {
				r.Changes = []string{"nothing changed"}
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), strings.Join(r.Changes, "\n"))
			return err
		}}
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return socket.Flag(c)
}
