// Package cli is the command lines of the programs: commands that talk to a running program over its control socket,
// the tables that they print, shell completion, usage errors and exit statuses.
package cli

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"vstun/cmd/internal/daemon"
)

// Exit statuses. Scripts of users depend on them.
const (
	ExitFailure = 1 // while running
	ExitUsage   = 2 // wrong usage or configuration
)

// UsageError is an error that ends the program with ExitUsage.
type UsageError struct{ Err error }

func (e UsageError) Error() string { return e.Err.Error() }
func (e UsageError) Unwrap() error { return e.Err }

// Main runs a program's command line and returns its exit status. It prints errors, a line for each fault, behind the
// program's name.
func Main(root *cobra.Command) int {
	// A Go program that crashes ends with status 2, which here means a wrong configuration: systemd would not restart
	// it. With "crash" it ends by SIGABRT.
	debug.SetTraceback("crash")
	root.SilenceErrors, root.SilenceUsage = true, true
	Prepare(root)
	running := false
	for _, c := range root.Commands() {
		if run := c.RunE; run != nil {
			c.RunE = func(c *cobra.Command, args []string) error {
				running = true // errors before are wrong usage
				return run(c, args)
			}
		}
	}
	err := root.Execute()
	if err == nil {
		return 0
	}
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintf(os.Stderr, "%s: %s\n", root.Name(), strings.TrimRight(line, "\n"))
	}
	if usage := (UsageError{}); !running || errors.As(err, &usage) {
		return ExitUsage
	}
	return ExitFailure
}

// VersionCommand returns the command version.
func VersionCommand() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(c.OutOrStdout(), "%s %s\n", c.Root().Name(), daemon.Version())
			return err
		}}
}
