package cli

import (
	"github.com/spf13/cobra"
)

// Socket finds the control socket of the running program for a command: by --socket, else by the configuration file.
type Socket struct {
	named  string
	Config func() (path string, err error) // the path in the configuration file
}

// Flag gives c the flag --socket.
func (s *Socket) Flag(c *cobra.Command) *cobra.Command {
	c.Flags().StringVar(&s.named, "socket", "", "control socket (default: the one in the configuration file)")
	return c
}

// Path returns the control socket's path.
func (s *Socket) Path() (string, error) {
	if s.named != "" {
		return s.named, nil
	}
	return s.Config()
}
