// Command manual writes the manual pages of both programs into a directory. It makes them from the descriptions of the
// commands, from cmd/director/README.md and cmd/realserver/README.md, and from the sections beside it. It runs in the
// source directory.
package main

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cpuguy83/go-md2man/v2/md2man"
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"vstun/cmd/internal/agent"
	"vstun/cmd/internal/cli"
	"vstun/cmd/internal/daemon"
	"vstun/cmd/internal/director"
)

// extra has the sections that exist only in manual pages, one file for each program.
//
//go:embed director.md realserver.md
var extra embed.FS

// manual is the collection to which all pages belong.
const manual = "LVS load balancing in user space"

// program is a program with manual pages.
type program struct {
	command *cobra.Command
	config  []string // headings of the page's sections about the configuration file
}

func programs() []program {
	return []program{
		{director.Command(), []string{"Configuration", "Checks"}},
		{agent.Command(), []string{"Keys", "Reload"}},
	}
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "manual: want a directory")
		os.Exit(cli.ExitUsage)
	}
	if err := write(".", os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "manual:", err)
		os.Exit(cli.ExitFailure)
	}
}

// write writes all pages into dir. root is the source directory.
func write(root, dir string) error {
	date, err := buildDate()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	director, err := os.ReadFile(filepath.Join(root, "cmd/director/README.md"))
	if err != nil {
		return err
	}
	status, err := section(string(director), "Exit status") // the same for both programs
	if err != nil {
		return err
	}
	for _, p := range programs() {
		cli.Prepare(p.command)
		p.command.DisableAutoGenTag = true
		header := &doc.GenManHeader{Section: "8", Source: "vstun " + daemon.Version(), Manual: manual, Date: &date}
		if err := doc.GenManTree(p.command, header, dir); err != nil {
			return err
		}
		if err := p.write(root, dir, date, status); err != nil {
			return fmt.Errorf("%s: %w", p.command.Name(), err)
		}
	}
	return nil
}

// buildDate returns the day for the pages' footers: the environment's SOURCE_DATE_EPOCH, or today.
func buildDate() (time.Time, error) {
	epoch := os.Getenv("SOURCE_DATE_EPOCH")
	if epoch == "" {
		return time.Now(), nil
	}
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
	}
	return time.Unix(seconds, 0).UTC(), nil
}

// write writes the page of p and the page of its configuration file. The former replaces the page by GenManTree. status
// is the section about exit statuses.
func (p program) write(root, dir string, date time.Time, status string) error {
	name := p.command.Name()
	folder := filepath.Join(root, "cmd", name)
	readme, err := os.ReadFile(filepath.Join(folder, "README.md"))
	if err != nil {
		return err
	}
	example, err := os.ReadFile(filepath.Join(folder, name+".toml"))
	if err != nil {
		return err
	}
	own, err := extra.ReadFile(name + ".md")
	if err != nil {
		return err
	}
	var missing error
	get := func(heading string) string {
		text, err := section(string(readme), heading)
		missing = errors.Join(missing, err)
		return text
	}
	var about strings.Builder
	for i, heading := range p.config {
		title := heading
		if i == 0 {
			title = "Description"
		}
		fmt.Fprintf(&about, "# %s\n\n%s\n", strings.ToUpper(title), get(heading))
	}
	pages := map[string]string{
		name + ".8": fmt.Sprintf(programPage, name, p.command.Short, p.command.Long,
			strings.Replace(get("Commands"), "### Exit status\n"+status, "", 1), status, get("Drops"), own,
			seeAlso(p.command)),
		name + ".toml.5": fmt.Sprintf(configPage, name, about.String(), example),
	}
	if missing != nil {
		return missing
	}
	for file, text := range pages {
		title, chapter := file[:len(file)-2], file[len(file)-1:]
		text = fmt.Sprintf("%% %q %q %q %q %q\n%s", strings.ToUpper(title), chapter, date.Format("Jan 2006"),
			"vstun "+daemon.Version(), manual, plain(text, "cmd/"+name))
		if err := os.WriteFile(filepath.Join(dir, file), render(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// programPage is the page of a program. Its operands are name, short and long description, commands, exit statuses,
// drops, its own sections, and references.
const programPage = `# NAME
%[1]s - %[2]s

# SYNOPSIS
**%[1]s** *COMMAND* [*OPTION*...] [*ARGUMENT*...]

# DESCRIPTION
%[3]s

# COMMANDS

%[4]s

# EXIT STATUS

%[5]s

# DROPS

%[6]s

%[7]s

# SEE ALSO
**%[1]s.toml**(5), %[8]s

The manual is in */usr/local/share/doc/vstun-%[1]s*. Names of pages in parentheses are files there.
`

// configPage is the page of a configuration file. Its operands are the program's name, sections and an example.
const configPage = `# NAME
%[1]s.toml - configuration of %[1]s(8)

# SYNOPSIS
*/etc/vstun/%[1]s.toml*

%[2]s

# FILES

*/etc/vstun/%[1]s.toml*
: The file, unless **--config** names another one.

*/usr/local/share/doc/vstun-%[1]s/examples/%[1]s.toml*
: An example.

# EXAMPLES

` + "```\n%[3]s```" + `

# SEE ALSO
**%[1]s**(8), **%[1]s-check**(8), **%[1]s-reload**(8)
`

// render returns a page in roff. Words are not hyphenated, since many are names, and the right margin is ragged.
func render(text string) []byte {
	page := bytes.Replace(md2man.Render([]byte(text)), []byte("\n.SH "), []byte("\n.ad l\n.SH "), 1)
	return append([]byte(".nr HY 0\n"), page...)
}

// seeAlso returns references to the pages of c's commands.
func seeAlso(c *cobra.Command) string {
	var pages []string
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() && !sub.IsAdditionalHelpTopicCommand() {
			pages = append(pages, fmt.Sprintf("**%s-%s**(8)", c.Name(), sub.Name()))
		}
	}
	return strings.Join(pages, ", ")
}
