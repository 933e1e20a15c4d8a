package cli

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"vstun/cmd/internal/words"
	"vstun/routing"
)

// Checked is the outcome of checking a configuration file without faults.
type Checked struct {
	Summary  string   // its contents, in a few words
	Warnings []string // about its contents
	Sysctls  func() ([]routing.Sysctl, error)
}

// CheckCommand returns the command check, which validates a configuration file: its argument, or else file, the value
// of the flag --config. With --sysctls it prints the sysctls that the program sets.
func CheckCommand(file *string, check func(file string) (Checked, error)) *cobra.Command {
	var sysctls bool
	c := &cobra.Command{Use: "check [FILE]", Short: "Validate the configuration, print every error, change nothing",
		Args: cobra.MaximumNArgs(1),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return []string{"toml"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				if c.Flags().Changed("config") {
					return UsageError{fmt.Errorf("%s and --config %s are two files: want one of them", args[0], *file)}
				}
				*file = args[0]
			}
			checked, err := check(*file)
			if err != nil {
				return err
			}
			if sysctls {
				list, err := checked.Sysctls()
				if err != nil {
					return err
				}
				return printSysctls(c.OutOrStdout(), list)
			}
			summary := checked.Summary
			for _, w := range checked.Warnings {
				fmt.Fprintf(c.ErrOrStderr(), "%s: warning: %s\n", c.Root().Name(), w)
			}
			if n := len(checked.Warnings); n > 0 {
				summary += ", " + words.Count(n, "warning")
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s: fine: %s\n", *file, summary)
			return err
		}}
	c.Flags().BoolVar(&sysctls, "sysctls", false,
		"print the sysctls to set beforehand where /proc/sys is read-only, in the format of sysctl.d")
	return c
}

// printSysctls prints list in the format of sysctl.d(5). They are to be set in this order.
func printSysctls(w io.Writer, list []routing.Sysctl) error {
	for _, c := range list {
		if _, err := fmt.Fprintln(w, c); err != nil {
			return err
		}
	}
	return nil
}
