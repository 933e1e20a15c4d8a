package cli

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"vstun/cmd/internal/api"
)

// StatusCommand returns the command status, which prints the running program's status, by print or as JSON. The program
// must have the name program.
func StatusCommand[T interface{ Name() string }](short, program string, socket *Socket,
	print func(io.Writer, *T) error) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{Use: "status", Short: short, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			path, err := socket.Path()
			if err != nil {
				return err
			}
			var st T
			if err := api.Get(c.Context(), path, "/status", &st); err != nil {
				return err
			}
			if st.Name() != program {
				return fmt.Errorf("%s is the control socket of another program, %q", path, st.Name())
			}
			if asJSON {
				return PrintJSON(c.OutOrStdout(), st)
			}
			return print(c.OutOrStdout(), &st)
		}}
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return socket.Flag(c)
}
