package daemon

import (
	"fmt"

	"github.com/spf13/cobra"

	"vstun/cmd/internal/words"
)

// CheckCommand is the command that validates a configuration file: that of its argument, or else that of the flag
// --config, which is in file. The function check returns what the file has, in a few words, and what it warns of.
func CheckCommand(file *string, check func(file string) (summary string, warnings []string, err error)) *cobra.Command {
	return &cobra.Command{Use: "check [FILE]", Short: "Validate the configuration, print every error, touch nothing", Args: cobra.MaximumNArgs(1),
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
			summary, warnings, err := check(*file)
			if err != nil {
				return err
			}
			for _, w := range warnings {
				fmt.Fprintf(c.ErrOrStderr(), "%s: warning: %s\n", c.Root().Name(), w)
			}
			if len(warnings) > 0 {
				summary += ", " + words.Count(len(warnings), "warning")
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s: fine: %s\n", *file, summary)
			return err
		}}
}
