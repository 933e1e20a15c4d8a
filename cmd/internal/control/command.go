package control

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

// Socket is how a command finds the control socket of the running program: by --socket, else by the configuration file.
type Socket struct {
	named  string
	Config func() (path string, err error) // the one in the configuration file
}

// Flag gives c the flag --socket.
func (s *Socket) Flag(c *cobra.Command) *cobra.Command {
	c.Flags().StringVar(&s.named, "socket", "", "control socket (default: the one in the configuration file)")
	return c
}

// Path is the control socket's path.
func (s *Socket) Path() (string, error) {
	if s.named != "" {
		return s.named, nil
	}
	return s.Config()
}

// StatusCommand shows the status of the running program, which has type T and calls itself program, by print or as
// JSON.
func StatusCommand[T interface{ program() string }](short, program string, socket *Socket,
	print func(io.Writer, *T) error) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{Use: "status", Short: short, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			path, err := socket.Path()
			if err != nil {
				return err
			}
			var st T
			if err := Get(c.Context(), path, "/status", &st); err != nil {
				return err
			}
			if st.program() != program {
				return fmt.Errorf("%s is the control socket of another program, %q", path, st.program())
			}
			if asJSON {
				return PrintJSON(c.OutOrStdout(), st)
			}
			return print(c.OutOrStdout(), &st)
		}}
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return socket.Flag(c)
}

func (s DirectorStatus) program() string   { return s.Program }
func (s RealserverStatus) program() string { return s.Program }
