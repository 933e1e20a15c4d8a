package cli

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vstun/cmd/internal/api"
)

// printChanges writes the changes, or why there are none, as text or as JSON. It returns the error.
func printChanges(out io.Writer, r api.Reload, err error, asJSON bool) error {
	err = plain(err)
	if asJSON {
		r.Complete(err)
		return errors.Join(err, PrintJSON(out, r))
	}
	if err != nil {
		return err
	}
	return printTexts(out, r.Changes, "nothing changed")
}

// printTexts writes a line for each change, or the line none.
func printTexts(out io.Writer, changes []api.Change, none string) error {
	lines := []string{none}
	for i, c := range changes {
		lines = append(lines[:i], c.Text)
	}
	_, err := fmt.Fprintln(out, strings.Join(lines, "\n"))
	return err
}

// reloadTakes bounds a reload with thousands of realservers, and a route for each of their VIPs.
const reloadTakes = time.Minute

// ReloadCommand returns the command reload. The running program reads its configuration; the command prints the
// changes, or the reason why there are none.
func ReloadCommand(socket *Socket) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{Use: "reload", Args: cobra.NoArgs,
		Short: "Let the running program read its configuration again, as SIGHUP does, and print what changes",
		RunE: func(c *cobra.Command, _ []string) error {
			var r api.Reload
			path, err := socket.Path()
			if err == nil {
				err = api.Post(c.Context(), path, "/reload", reloadTakes, &r)
			}
			return printChanges(c.OutOrStdout(), r, err, asJSON) // err has a line for each fault of the file
		}}
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return socket.Flag(c)
}
