// Package agent is the realserver's program: configuration → sockets, device, addresses and routes → workers. It also
// has the command line.
package agent

import (
	"context"
	"errors"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"vstun/cmd/internal/cli"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/daemon"
	"vstun/cmd/internal/doctor"
	"vstun/cmd/internal/words"
	"vstun/routing"
	"vstun/routing/query"
)

// Command is the realserver agent's command line.
func Command() *cobra.Command {
	root := &cobra.Command{
		Use:   "realserver",
		Short: "Agent on a realserver of LVS in user space",
		Long: "realserver is the agent of a realserver of VS/TUN or VS/DR. It gives the host the virtual addresses\n" +
			"(VIPs), and sets it up so that its servers answer the clients directly. It takes the packets that\n" +
			"directors tunnel to this host, lets in those for its VIPs, and drops the rest.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	var file string
	withFile := func(c *cobra.Command) *cobra.Command {
		c.Flags().StringVarP(&file, "config", "c", "/etc/vstun/realserver.toml", "configuration `FILE`")
		_ = c.MarkFlagFilename("config", "toml") // the flag is there
		return c
	}
	socket := &cli.Socket{Config: func() (string, error) { return controlSocket(file) }}
	root.AddCommand(
		withFile(&cobra.Command{Use: "run", Args: cobra.NoArgs,
			Short: "Run in the foreground until SIGTERM or SIGINT; SIGHUP reloads the configuration",
			RunE:  func(c *cobra.Command, _ []string) error { return run(c.Context(), file) }}),
		withFile(cli.CheckCommand(&file, func(file string) (cli.Checked, error) {
			cfg, err := load(file)
			if err != nil {
				return cli.Checked{}, err
			}
			var vips []string
			for _, v := range cfg.VIPs {
				vips = append(vips, v.String())
			}
			if n := len(cfg.Tunnels); n > 0 {
				vips = append(vips, words.Count(n, "tunnel"))
			}
			return cli.Checked{Summary: strings.Join(vips, ", "), Warnings: cfg.Warnings,
				Sysctls: func() ([]routing.Sysctl, error) { return sysctls(cfg), nil }}, nil
		})),
		withFile(cli.StatusCommand("Show packets received, let in and refused", "realserver", socket,
			cli.PrintRealserver)),
		withFile(cli.ReloadCommand(&cli.Socket{Config: func() (string, error) {
			path, err := controlSocket(file)
			if faults := (*config.Errors)(nil); errors.As(err, &faults) {
				return "", faults // as the running agent would, with the exit status of a failed reload
			}
			return path, err
		}})),
		withFile(doctor.Command("Find what keeps the agent from doing its job on this host",
			func(ctx context.Context) (*doctor.Report, error) {
				cfg, err := load(file)
				if err != nil {
					return nil, err
				}
				return (&doctor.Realserver{File: file, Config: cfg, Sockets: sockets(cfg),
					Obstacles: func(running bool) error { return obstacles(cfg, running) }}).Examine(ctx)
			})),
		withFile(cli.KeysCommand(&file, "director", keys)),
		withFile(cli.ProfileCommand(socket)),
		cli.VersionCommand(),
	)
	return root
}

// load reads and validates the configuration file.
func load(file string) (*config.Realserver, error) {
	cfg, err := config.LoadRealserver(file)
	if err != nil {
		return nil, cli.UsageError{Err: err}
	}
	if cfg.AnyTUN && besideDirector(cfg.TUN) {
		cfg.TUN = secondTUN
	}
	return cfg, nil
}

// secondTUN is the default name of the device on a host where a director has the usual one.
const secondTUN = "vs1"

// besideDirector reports whether a director of this host has a TUN device of this name. A director has a second one.
func besideDirector(name string) bool {
	for _, device := range []string{name, (&config.Director{TUN: name}).LocalTUN()} {
		if there, err := query.LinkExists(device); err != nil || !there {
			return false
		}
	}
	return true
}

// controlSocket finds the control socket of the agent that runs with a configuration file.
func controlSocket(file string) (string, error) {
	path, err := config.ControlSocket(file, "realserver")
	if err != nil {
		return "", cli.UsageError{Err: err}
	}
	return path, nil
}

func run(ctx context.Context, file string) error {
	ctx, stop := daemon.Signals(ctx)
	defer stop()
	hangup := daemon.OnHangup()
	cfg, err := load(file)
	if err != nil {
		return err
	}
	// CAP_NET_BIND_SERVICE is for an encap_port below 1024. CAP_BPF is for the fast path. With CAP_PERFMON the kernel
	// loads it without barriers against speculation, which more than double its cost. An error is ignored: open reports
	// a refused operation.
	_ = daemon.KeepOnly(unix.CAP_NET_ADMIN, unix.CAP_NET_RAW, unix.CAP_NET_BIND_SERVICE, unix.CAP_BPF,
		unix.CAP_PERFMON)
	a, err := open(file, cfg)
	if err != nil {
		return err
	}
	return a.run(ctx, hangup)
}
