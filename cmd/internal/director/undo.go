package director

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"vstun/balancer/keep"
	"vstun/cmd/internal/cli"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/daemon"
	"vstun/cmd/internal/tunnel"
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
			out, warnings := c.OutOrStdout(), c.ErrOrStderr()
			control, err := socket.Path()
			switch {
			case err != nil && unit.InStopPost(): // the next start fails for this reason
				dir := runtimeDirectory(config.DefaultControl("director"))
				fmt.Fprintf(warnings, "%v: undoing what any director has left in %s\n", err, dir)
				return undoAll(out, dir, "")
			case err != nil:
				return err
			case unit.InStopPost() && startsAgain(c.Context(), out, warnings):
				return undoFormer(out, control)
			}
			return undo(out, control, leftTable(*file, control), foreign(*file))
		}}
	return socket.Flag(c)
}

// runtimeDirectory returns the unit's RuntimeDirectory=, or the folder of the control socket if it has none.
func runtimeDirectory(control string) string {
	first, _, _ := strings.Cut(os.Getenv("RUNTIME_DIRECTORY"), ":")
	return cmp.Or(first, filepath.Dir(control))
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

// foreign reports whether the configuration file belongs to another user than root. That user may be a director which
// has been taken over: root must remove no file that it names.
func foreign(file string) bool {
	var st unix.Stat_t
	return unix.Stat(file, &st) == nil && st.Uid != 0
}

// systemdAnswers bounds the time in which systemd answers.
const systemdAnswers = 5 * time.Second

// leastLife is the least time from one start of a unit to the next. systemd starts the unit again at once. A process
// that has lived shorter has failed at its start, and would fail again and again.
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
	if !state.StartsAgain() {
		return false
	}
	fmt.Fprintf(out, "nothing is undone: %s starts again\n", state.Name)
	return true
}

func askUnit(ctx context.Context) (unit.State, error) {
	ctx, cancel := context.WithTimeout(ctx, systemdAnswers)
	defer cancel()
	return unit.Ask(ctx)
}

// undo undoes the changes of the director with this control socket, which must have ended, and removes its connection
// table, if table is not "". With foreign, root removes no table that is not beside the control socket.
func undo(out io.Writer, control, table string, foreign bool) error {
	path := journalPath(control)
	err := becomeOwner(filepath.Dir(path))
	if table != "" && filepath.Dir(table) != filepath.Dir(path) && foreign && os.Geteuid() == 0 {
		fmt.Fprintf(out, "%s stays: the configuration file is not root's: remove the table by hand\n", table)
		table = ""
	}
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
	_, missing := os.Lstat(filepath.Base(path))
	// A kill before the first change, or behind the last one, leaves files beside the journal: they go, too.
	if beside, _ := filepath.Glob(filepath.Base(path) + ".*"); missing == nil || len(beside) > 0 {
		err = undoJournal(filepath.Base(path))
	}
	if used, ok := errors.AsType[*routing.InUseError](err); ok {
		return fmt.Errorf("a director runs (process %s, control socket %s): stop it", used.PID, control)
	}
	tunnels := filepath.Base(tunnel.JournalPath(control))
	if left, _ := filepath.Glob(tunnels + "*"); err == nil && len(left) > 0 {
		err = undoJournal(tunnels)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", filepath.Dir(path), err)
	}
	if errors.Is(missing, fs.ErrNotExist) {
		_, err = fmt.Fprintf(out, "nothing to undo: there is no %s\n", path)
	}
	return errors.Join(err, removeTable(out, table))
}

// undoJournal undoes the changes that the journal at path lists. For systemd, whose unit may have got another network
// namespace, it removes the journal of another one.
func undoJournal(path string) error {
	log, flush := daemon.Logger(slog.LevelInfo)
	defer flush()
	if !unit.InStopPost() {
		return routing.Undo(path, log)
	}
	m, err := routing.Open(path, log)
	if err != nil {
		return err
	}
	return m.Close()
}

// undoFormer undoes the changes of directors that have ended, if there are none of the director with this control
// socket: the configuration file had another one before. Its next start does not find their journals.
func undoFormer(out io.Writer, control string) error {
	if _, err := os.Lstat(journalPath(control)); !errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return undoAll(out, runtimeDirectory(control), journalPath(control))
}

// undoAll undoes the changes of all directors in a folder that have ended, and removes their connection tables. It
// leaves the director with the journal except alone.
func undoAll(out io.Writer, dir, except string) error {
	if err := becomeOwner(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	agent := config.DefaultControl("realserver")
	leave := []string{journalPath(agent), tunnel.JournalPath(agent), except}
	var names []string
	for _, pattern := range []string{"*.journal", "*.journal.lock", "*.table"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, file := range files {
			file = strings.TrimSuffix(file, ".lock")
			name := strings.TrimSuffix(file, filepath.Ext(file))
			if !slices.Contains(leave, filepath.Join(dir, name+".journal")) {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	var errs []error
	for _, name := range slices.Compact(names) {
		var err error
		if left, _ := filepath.Glob(name + ".journal*"); len(left) > 0 {
			err = undoJournal(name + ".journal")
		}
		if _, runs := errors.AsType[*routing.InUseError](err); runs {
			continue
		}
		if err == nil {
			err = removeTable(out, name+".table")
		}
		if err != nil && !errors.Is(err, keep.ErrInUse) {
			errs = append(errs, fmt.Errorf("%s: %w", dir, err))
		}
	}
	return errors.Join(errs...)
}

// removeTable removes the connection table at path, if there is one.
func removeTable(out io.Writer, path string) error {
	if path == "" {
		return nil
	}
	info, missing := os.Lstat(path)
	if missing == nil && !info.Mode().IsRegular() {
		_, err := fmt.Fprintf(out, "%s stays: it is no regular file\n", path)
		return err
	}
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
