package director

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"vstun/cmd/internal/cli"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/migrate"
	"vstun/cmd/internal/words"
)

// importCommand returns the command import, which makes a director.toml from another program's configuration.
func importCommand() *cobra.Command {
	var out string
	var force bool
	options := migrate.Options{Include: true}
	c := &cobra.Command{
		Use:   "import keepalived|ipvsadm FILE",
		Short: "Make a configuration of keepalived's, or of what ipvsadm-save -n prints",
		Long: "import reads a keepalived.conf, or the output of ipvsadm-save -n, and prints a director.toml. Each " +
			"setting without\ncounterpart gives a line on standard error, with what to do. The file has the same " +
			"line, behind \"# !\".\nFILE - is standard input.\n\n" +
			"Exit status: 0 there is a configuration, also if some settings could not be taken; 2 there is none.",
		Example: "  director import keepalived /etc/keepalived/keepalived.conf -o director.toml\n  ipvsadm-save -n " +
			"| director import ipvsadm - >director.toml",
		Args: cobra.ExactArgs(2),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return importFormats, cobra.ShellCompDirectiveNoFileComp
			}
			return nil, cobra.ShellCompDirectiveDefault // files
		},
		RunE: func(c *cobra.Command, args []string) error {
			if options.ConfigID == "" {
				name, _ := os.Hostname()
				options.ConfigID, _, _ = strings.Cut(name, ".")
			}
			return importFile(c, args[0], args[1], out, force, options)
		},
	}
	c.Flags().StringVarP(&out, "output", "o", "", "write `FILE` instead of standard output")
	c.Flags().BoolVar(&force, "force", false, "overwrite the file of -o")
	c.Flags().StringVar(&options.ConfigID, "config-id", "", "the `NAME` whose lines that begin with @ are read, "+
		"as keepalived's -i (default: the host's name)")
	return c
}

// importFormats are the programs whose configurations are read.
var importFormats = []string{"keepalived", "ipvsadm"}

// importFile imports one file.
func importFile(c *cobra.Command, format, file, out string, force bool, options migrate.Options) error {
	importers := map[string]func(string, []byte, migrate.Options) (*migrate.Import,
		error){"keepalived": migrate.Keepalived, "ipvsadm": migrate.IPVSAdm}
	read, known := importers[format]
	if !known {
		return cli.UsageError{Err: fmt.Errorf("import %q: unknown: %s", format,
			words.Instead(format, importFormats))}
	}
	if out != "" && !force {
		if _, err := os.Lstat(out); err == nil {
			return cli.UsageError{Err: errExists(out)}
		}
	}
	name, text, err := readImport(c.InOrStdin(), file)
	if err != nil {
		return cli.UsageError{Err: err}
	}
	result, err := read(name, text, options)
	if err != nil {
		return cli.UsageError{Err: err}
	}
	for _, n := range result.Notes {
		fmt.Fprintln(c.ErrOrStderr(), n)
	}
	if result.Services == 0 && result.Marks == 0 {
		return cli.UsageError{Err: fmt.Errorf("%s: no service could be taken: want the virtual_server blocks of "+
			"a keepalived.conf, or the output of ipvsadm-save -n", name)}
	}
	// A file with only services of firewall marks becomes comments. The notes explain how to fill them in.
	if _, err := config.ParseDirector("director.toml", result.TOML); err != nil && result.Services > 0 {
		return fmt.Errorf("%w\n%s: its import is no valid configuration, which is a fault of this program: fix "+
			"by hand what is named above", err, name)
	}
	if out == "" {
		_, err = c.OutOrStdout().Write(result.TOML)
		return err
	}
	return writeNew(out, result.TOML, force)
}

// readImport reads a file, or standard input for "-".
func readImport(stdin io.Reader, file string) (name string, text []byte, err error) {
	if file == "-" {
		file = "stdin"
		text, err = migrate.ReadAll(file, stdin)
	} else {
		text, err = migrate.ReadFile(file)
	}
	if _, large := errors.AsType[migrate.TooLargeError](err); large {
		err = fmt.Errorf("%w: name a configuration file", err)
	} else if err != nil {
		err = fmt.Errorf("%w: name a readable file, or - for standard input", err)
	}
	return file, text, err
}

func errExists(path string) error {
	return fmt.Errorf("%s: is there already: name another file by -o, or overwrite it by --force", path)
}

// writeNew writes a file that all users may read: a director that has given up root's rights reads it at a reload. With
// force, a file that exists keeps its mode.
func writeNew(path string, text []byte, force bool) error {
	flags := os.O_WRONLY | os.O_CREATE | os.O_EXCL
	if force {
		flags = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	}
	f, err := os.OpenFile(path, flags, 0o644)
	if errors.Is(err, os.ErrExist) {
		return cli.UsageError{Err: errExists(path)}
	}
	if err != nil {
		return fmt.Errorf("%w: name a file in a directory that is yours by -o", err)
	}
	_, err = f.Write(text)
	if !force {
		err = errors.Join(err, f.Chmod(0o644)) // whatever the umask is
	}
	return errors.Join(err, f.Close())
}
