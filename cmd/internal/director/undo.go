package director

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"vstun/balancer/keep"
	"vstun/cmd/internal/cli"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/daemon"
	"vstun/cmd/internal/unit"
	"vstun/routing"
)

// undoCommand returns the command undo. file is the path of the configuration file.
func undoCommand(file *string, socket *cli.Socket) *cobra.Command {
	c := &cobra.Command{Use: "undo", Args: cobra.NoArgs,
		Short: "Put back what a director that has ended has left for its next start",
		Long: "undo puts the host's network back as it was before a director that has ended: routes, rules, " +
			"sysctls and the settings of\ndevices. It removes the connection table that the director has left. In " +
			"ExecStopPost= of a unit it does nothing if systemd\nstarts the unit again.",
		RunE: func(c *cobra.Command, _ []string) error {
			control, err := socket.Path()
			if err != nil && unit.InStopPost() { // a file with faults may be why the unit has failed
				control = config.DefaultControl("director")
				fmt.Fprintf(c.ErrOrStderr(), "%v: taking control = %q\n", err, control)
			} else if err != nil {
				return err
			}
			if unit.InStopPost() && startsAgain(c.Context(), c.OutOrStdout(), c.ErrOrStderr()) {
				return nil
			}
			return undo(c.OutOrStdout(), control, leftTable(*file, control))
		}}
	return socket.Flag(c)
}

// leftTable returns the path of the connection table of the director with this control socket, "" for none. If the
// configuration file does not have it, it is the default one.
func leftTable(file, control string) string {
	kept, err := config.KeptTable(file, control)
	if err != nil {
		kept = config.Connections{KeepBeside: true}
	}
	return keptTable(&kept, control)
}

// systemdAnswers bounds the time in which systemd answers.
const systemdAnswers = 5 * time.Second

// leastLife is the least time from one start of a unit to the next. systemd starts the unit again at once. A process
// that has lived shorter has failed at its start, and would do so many times a second.
const leastLife = time.Second

// startsAgain reports whether systemd starts this unit again, and prints that. Without an answer it does not: then the
// next start finds the host as it was before. It delays the next start after a process that has failed at its start,
// unless a user asks for that start.
func startsAgain(ctx context.Context, out, warnings io.Writer) bool {
	state, err := askUnit(ctx)
	if err == nil && state.StartsAgain() && !state.Queued() && state.Lived < leastLife {
		select {
		case <-ctx.Done():
		case <-time.After(leastLife - state.Lived):
		}
		state, err = askUnit(ctx) // the unit may have been stopped meanwhile
	}
	if err != nil {
		fmt.Fprintf(warnings, "undoing the changes, also if the unit starts again: %v\n", err)
		return false
	}
	if state.StartsAgain() {
		fmt.Fprintf(out, "nothing is undone: %s starts again\n", state.Name)
		return true
	}
	return false
}

func askUnit(ctx context.Context) (unit.State, error) {
	ctx, cancel := context.WithTimeout(ctx, systemdAnswers)
	defer cancel()
	return unit.Ask(ctx)
}

// undo undoes the changes of the director with this control socket, which must have ended, and removes its connection
// table, if table is not "".
func undo(out io.Writer, control, table string) error {
	path := journalPath(control)
	err := becomeOwner(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		_, err := fmt.Fprintf(out, "nothing to undo: there is no %s\n", filepath.Dir(path))
		return errors.Join(err, removeTable(out, table))
	}
	if err != nil {
		return err
	}
	if filepath.Dir(table) == filepath.Dir(path) {
		table = filepath.Base(table)
	}
	if _, err := os.Lstat(filepath.Base(path)); errors.Is(err, fs.ErrNotExist) {
		_, err := fmt.Fprintf(out, "nothing to undo: there is no %s\n", path)
		return errors.Join(err, removeTable(out, table))
	}
	log, flush := daemon.Logger(slog.LevelInfo)
	defer flush()
	m, err := routing.Open(filepath.Base(path), log)
	if used, ok := errors.AsType[*routing.InUseError](err); ok {
		return fmt.Errorf("a director runs (process %s, control socket %s): stop it", used.PID, control)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", filepath.Dir(path), err)
	}
	return errors.Join(m.Close(), removeTable(out, table))
}

// removeTable removes the connection table at path, if there is one.
func removeTable(out io.Writer, path string) error {
	if path == "" {
		return nil
	}
	_, missing := os.Lstat(path)
	if err := keep.Remove(path); errors.Is(err, keep.ErrInUse) {
		return fmt.Errorf("a director runs: stop it: %w", err)
	} else if err != nil || missing != nil {
		return err
	}
	_, err := fmt.Fprintln(out, "removed the connection table")
	return err
}

// becomeOwner enters a directory. If this process is root's, it becomes the directory's owner's: in a directory of
// another user it must write no file, since the user may have put a link to any file there, and leave no file that the
// director can't open. The owner need not be able to enter the directory by its path, which may be below /run/private.
func becomeOwner(dir string) error {
	if err := os.Chdir(dir); err != nil {
		return err
	}
	var owner unix.Stat_t
	if err := unix.Stat(".", &owner); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	if os.Geteuid() != 0 || owner.Uid == 0 {
		return nil
	}
	return daemon.Become(owner.Uid, owner.Gid, unix.CAP_NET_ADMIN)
}
