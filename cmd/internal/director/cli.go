// Package director puts the director together: the data plane, which forwards packets; the controller, which puts the
// plan for configuration, weights, health and paths in force; and the command line.
package director

import (
	"context"
	"errors"
	"slices"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/cli"
	"vstun/cmd/internal/cli/top"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/daemon"
	"vstun/cmd/internal/doctor"
	"vstun/cmd/internal/words"
	"vstun/routing"
	"vstun/routing/query"
)

// Command is the director's command line.
func Command() *cobra.Command {
	root := &cobra.Command{
		Use:   "director",
		Short: "Load balancer of LVS in user space",
		Long: "director reads the packets for virtual addresses (VIPs) from a TUN or TAP device. It picks a\n" +
			"realserver for each connection, and sends it the packets: through a tunnel (VS/TUN), to its MAC\n" +
			"address (VS/DR), or with its address as destination (VS/NAT). With VS/TUN and VS/DR the\n" +
			"realservers answer the clients directly.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	var file string
	withFile := func(c *cobra.Command) *cobra.Command {
		c.Flags().StringVarP(&file, "config", "c", "/etc/vstun/director.toml", "configuration `FILE`")
		_ = c.MarkFlagFilename("config", "toml") // the flag is there
		return c
	}
	socket := &cli.Socket{Config: func() (string, error) { return controlSocket(file) }}
	changing := &cli.Socket{Config: func() (string, error) { return reloadSocket(file) }}
	root.AddCommand(
		withFile(&cobra.Command{Use: "run", Short: "Run in the foreground until SIGTERM or SIGINT; SIGHUP reloads " +
			"the configuration", Args: cobra.NoArgs,
			RunE: func(c *cobra.Command, _ []string) error { return run(c.Context(), file) }}),
		withFile(cli.CheckCommand(&file, check)),
		withFile(cli.StatusCommand("Show services, realservers, connections, packets and drops", "director", socket,
			cli.PrintDirector)),
		withFile(top.Command(socket)),
		withFile(cli.ConnectionsCommand(states(), socket)),
		withFile(cli.PeersCommand(socket)),
		withFile(cli.ReloadCommand(changing)),
		withFile(cli.ApplyCommand(changing)),
		withFile(doctor.Command("Find what keeps the director from doing its job, here and on the path to the "+
			"realservers", func(ctx context.Context) (*doctor.Report, error) {
			cfg, err := load(file)
			if err != nil {
				return nil, err
			}
			return (&doctor.Director{File: file, Config: cfg,
				Obstacles: func(running bool) error { return obstacles(cfg, running) },
				Checks:    func() (api.Checks, error) { return checksOf(cfg) }}).Examine(ctx)
		})),
		withFile(cli.SetCommand(socket)),
		withFile(cli.DrainCommand(socket)),
		withFile(cli.UndrainCommand(socket)),
		withFile(cli.StandbyCommand(socket)),
		withFile(cli.ActiveCommand(socket)),
		withFile(cli.ExplainCommand(socket)),
		withFile(cli.CaptureCommand(socket)),
		withFile(cli.ProfileCommand(socket)),
		withFile(cli.KeysCommand(&file, "realserver", keys)),
		withFile(undoCommand(&file, socket)),
		importCommand(),
		cli.VersionCommand(),
	)
	return root
}

// check examines a configuration file, for the command of this name.
func check(file string) (cli.Checked, error) {
	cfg, err := load(file)
	if err != nil {
		return cli.Checked{}, err
	}
	devices, err := query.Devices()
	if err != nil {
		return cli.Checked{}, err
	}
	if err := errors.Join(checkLocal(cfg), checkListed(cfg), checkPeers(cfg), checkOwn(cfg, devices),
		checkSubnets(file, cfg)); err != nil {
		return cli.Checked{}, err
	}
	warnings := slices.Concat(cfg.Warnings, deviceWarnings(cfg, devices), keyWarnings(cfg))
	if warn, err := warning(file, cfg); err != nil {
		return cli.Checked{}, err
	} else if warn != "" {
		warnings = append(warnings, warn)
	}
	return cli.Checked{Summary: words.Count(len(cfg.Services), "service"), Warnings: warnings,
		Sysctls: func() ([]routing.Sysctl, error) { return sysctls(cfg) }}, nil
}

// load reads and validates the configuration file.
func load(file string) (*config.Director, error) {
	cfg, err := config.LoadDirector(file)
	if err != nil {
		return nil, cli.UsageError{Err: err}
	}
	return cfg, nil
}

// controlSocket finds the control socket of the director that runs with a configuration file.
func controlSocket(file string) (string, error) {
	path, err := config.ControlSocket(file, "director")
	if err != nil {
		return "", cli.UsageError{Err: err}
	}
	return path, nil
}

// reloadSocket is controlSocket for a file that may have faults. They are reported as the running director would, with
// the exit status of a failed reload.
func reloadSocket(file string) (string, error) {
	path, err := controlSocket(file)
	if faults := (*config.Errors)(nil); errors.As(err, &faults) {
		return "", faults
	}
	return path, err
}

func run(ctx context.Context, file string) error {
	ctx, stop := daemon.Signals(ctx)
	defer stop()
	hangup := daemon.OnHangup()
	cfg, err := load(file)
	if err != nil {
		return err
	}
	// open reports a refused operation. With CAP_PERFMON the fast path's program is faster. Port 179 of [bgp] is
	// privileged.
	_ = daemon.KeepOnly(unix.CAP_NET_ADMIN, unix.CAP_NET_RAW, unix.CAP_BPF, unix.CAP_PERFMON,
		unix.CAP_NET_BIND_SERVICE)
	d, err := open(file, cfg)
	if err != nil {
		return err
	}
	return d.run(ctx, hangup)
}
