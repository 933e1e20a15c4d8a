package cli

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"

	"github.com/spf13/cobra"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
)

// ApplyCommand returns the command apply, which sends a whole configuration to the running director.
func ApplyCommand(socket *Socket) *cobra.Command {
	var dryRun, force, asJSON bool
	c := &cobra.Command{Use: "apply FILE",
		Short: "Put a whole configuration in force, write it to the configuration file, and print what changes",
		Long: "apply sends FILE, or with - its standard input, to the running director. The director checks it, " +
			"puts it in force\nas a reload does, and makes it its configuration file. A configuration with a fault " +
			"changes nothing.",
		Example: "  director apply --dry-run new.toml\n  generate | director apply -",
		Args:    cobra.ExactArgs(1),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return []string{"toml"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: func(c *cobra.Command, args []string) error {
			name, text, err := readConfiguration(c.InOrStdin(), args[0])
			if err != nil {
				return UsageError{Err: err}
			}
			q := url.Values{"name": {name}}
			if dryRun {
				q.Set("dry_run", "true")
			}
			ifMatch := ""
			if force {
				ifMatch = "*"
			}
			var a api.Applied
			path, err := socket.Path()
			if broken := (*config.Errors)(nil); errors.As(err, &broken) { // --force mends it: it has the same socket
				path, err = config.ControlSocketIn(name, text, c.Root().Name())
			}
			if err == nil {
				err = api.Put(c.Context(), path, "/configuration?"+q.Encode(), text, ifMatch, reloadTakes, &a)
			}
			return printApplied(c, a, err, asJSON)
		}}
	c.Flags().BoolVar(&dryRun, "dry-run", false, "print the changes or the faults, and change nothing")
	c.Flags().BoolVar(&force, "force", false, "overwrite a configuration file that has changed since the director has "+
		"read it")
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return socket.Flag(c)
}

// readConfiguration reads a configuration file, or standard input for "-". It returns the name for messages.
func readConfiguration(stdin io.Reader, file string) (name string, text []byte, err error) {
	name, from := "stdin", stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", nil, fmt.Errorf("%w: name a readable file, or - for standard input", err)
		}
		defer f.Close()
		name, from = file, f
	}
	text, err = io.ReadAll(io.LimitReader(from, config.MaxFileSize+1))
	if err == nil && len(text) > config.MaxFileSize {
		err = fmt.Errorf("%s is larger than %d MiB", name, config.MaxFileSize>>20)
	}
	return name, text, err
}

// printApplied writes the changes, or why there are none, as text or as JSON. It returns the error.
func printApplied(c *cobra.Command, a api.Applied, err error, asJSON bool) error {
	err = plain(err)
	if asJSON {
		a.Complete(err)
		return errors.Join(err, PrintJSON(c.OutOrStdout(), a))
	}
	if err != nil {
		return err
	}
	for _, w := range a.Warnings {
		fmt.Fprintf(c.ErrOrStderr(), "%s: warning: %s\n", c.Root().Name(), w)
	}
	none := "nothing changed"
	if a.Written {
		none += " but the text of " + a.File
	}
	return printTexts(c.OutOrStdout(), a.Changes, none)
}
