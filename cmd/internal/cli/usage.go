package cli

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vstun/cmd/internal/daemon"
	"vstun/cmd/internal/words"
)

// Prepare rewords the command-line library's errors, help and shell completion of root and its commands, so that they
// read like the rest.
func Prepare(root *cobra.Command) {
	root.Version = daemon.Version()
	root.SetVersionTemplate("{{.DisplayName}} {{.Version}}\n")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return UsageError{withHelp(c, flagError(c, err))}
	})
	each(root, func(c *cobra.Command) {
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if name, usage := pflag.UnquoteUsage(f); usage != f.Usage {
				f.Usage, f.Value = usage, named{f.Value, name}
				if f.DefValue == "0s" { // the help would show it: named hides that the value is a duration
					f.DefValue = "0"
				}
			}
			if _, has := c.GetFlagCompletionFunc(f.Name); !has && !files[f.Name] && f.NoOptDefVal == "" {
				_ = c.RegisterFlagCompletionFunc(f.Name, cobra.NoFileCompletions) // the flag exists and has none
			}
		})
		check := c.Args
		if check == nil {
			return
		}
		if c.ValidArgsFunction == nil && len(c.ValidArgs) == 0 && check(c, []string{"x"}) != nil {
			c.ValidArgsFunction = cobra.NoFileCompletions
		}
		c.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return UsageError{withHelp(c, argsError(c, args, err))}
			}
			return nil
		}
	})
}

func each(c *cobra.Command, fn func(*cobra.Command)) {
	fn(c)
	for _, below := range c.Commands() {
		each(below, fn)
	}
}

// files has the flags whose values are files.
var files = map[string]bool{"config": true, "socket": true, "output": true, "write": true}

// named is a flag's value with a name for the help.
type named struct {
	pflag.Value
	name string
}

func (n named) Type() string { return n.name }

// withHelp adds to err the command that prints the help.
func withHelp(c *cobra.Command, err error) error {
	see := ": see"
	if strings.HasSuffix(err.Error(), "?") {
		see = " See"
	}
	return fmt.Errorf("%w%s %s --help", err, see, c.CommandPath())
}

// flagError rewords an error about flags.
func flagError(c *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	var missing *pflag.ValueRequiredError
	var invalid *pflag.InvalidValueError
	switch {
	case errors.As(err, &unknown):
		name := unknown.GetSpecifiedName()
		if unknown.GetSpecifiedShortnames() != "" {
			return fmt.Errorf("there is no flag -%s", name)
		}
		var known []string
		c.Flags().VisitAll(func(f *pflag.Flag) { known = append(known, "--"+f.Name) })
		if near, ok := words.Nearest("--"+name, known); ok {
			return fmt.Errorf("there is no flag --%s: did you mean %s?", name, near)
		}
		return fmt.Errorf("there is no flag --%s", name)
	case errors.As(err, &missing):
		return fmt.Errorf("--%s has no value: want one", missing.GetFlag().Name)
	case errors.As(err, &invalid):
		return fmt.Errorf("--%s %q %s", invalid.GetFlag().Name, invalid.GetValue(), wanted(invalid))
	}
	return err
}

// wanted returns the error text about a flag's value.
func wanted(e *pflag.InvalidValueError) string {
	value := e.GetFlag().Value
	if n, ok := value.(named); ok {
		value = n.Value
	}
	switch value.Type() {
	case "duration":
		such := "15m"
		if _, err := time.ParseDuration(e.GetValue() + "s"); err == nil {
			such = e.GetValue() + "s"
		}
		return fmt.Sprintf("is not a duration: want one such as %s", such)
	case "bool":
		return "is neither true nor false"
	case "int", "uint", "int64", "uint64":
		return "is not a number"
	}
	return e.Unwrap().Error()
}

// argsError rewords the library's error about arguments. It returns other errors as they are.
func argsError(c *cobra.Command, args []string, err error) error {
	text := err.Error()
	switch {
	case c.HasSubCommands() && len(args) > 0:
		var known []string
		for _, below := range c.Commands() {
			known = append(known, below.Name())
		}
		if near, ok := words.Nearest(args[0], known); ok {
			return fmt.Errorf("there is no command %q: did you mean %s?", args[0], near)
		}
		return fmt.Errorf("there is no command %q", args[0])
	case strings.HasPrefix(text, "unknown command "):
		return fmt.Errorf("%q is an argument, and %s takes none", args[0], c.CommandPath())
	case strings.HasPrefix(text, "invalid argument "):
		return fmt.Errorf("%q is unknown: %s", args[len(args)-1], words.Instead(args[len(args)-1], c.ValidArgs))
	case strings.HasPrefix(text, "accepts "), strings.HasPrefix(text, "requires "):
		_, want, _ := strings.Cut(c.Use, " ")
		return fmt.Errorf("%s, where %s is wanted", words.Count(len(args), "argument"), want)
	}
	return err
}
