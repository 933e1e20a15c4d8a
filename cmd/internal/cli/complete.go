package cli

import (
	"context"
	"net"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"vstun/cmd/internal/api"
)

// The shell completes names that the running director knows. It offers none if the director does not answer within a
// second.

// completion completes a command's argument or flag.
type completion = func(c *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective)

// complete offers the names that list returns for the director's services and the arguments so far.
func complete(socket *Socket, list func(services []api.Service, args []string) []string) completion {
	return func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		path, err := socket.Path()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(c.Context(), time.Second)
		defer cancel()
		var st api.DirectorStatus
		if api.Get(ctx, path, "/status", &st) != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		names := list(st.Services, args)
		slices.Sort(names)
		return slices.Compact(names), cobra.ShellCompDirectiveNoFileComp
	}
}

// completeFlags completes c's flags --service, --realserver and --vip, if c has them.
func completeFlags(c *cobra.Command, socket *Socket) {
	for flag, list := range map[string]func([]api.Service, []string) []string{"service": serviceNames,
		"realserver": realserverNames, "vip": vipNames} {
		if c.Flags().Lookup(flag) != nil {
			_ = c.RegisterFlagCompletionFunc(flag, complete(socket, list)) // the flag exists
		}
	}
}

func serviceNames(services []api.Service, _ []string) (names []string) {
	for _, s := range services {
		names = append(names, s.Name)
	}
	return names
}

// realserverNames returns the realservers of the service that is the first argument, or all without one. An address
// alone names all its ports.
func realserverNames(services []api.Service, args []string) (names []string) {
	for _, s := range services {
		for _, r := range s.Realservers {
			if len(args) == 0 || args[0] == s.Name {
				names = append(names, r.Name(), r.Address)
			}
		}
	}
	return names
}

// serviceRealserverNames completes the arguments SERVICE REALSERVER.
func serviceRealserverNames(services []api.Service, args []string) []string {
	switch len(args) {
	case 0:
		return serviceNames(services, nil)
	case 1:
		return realserverNames(services, args)
	}
	return nil
}

func vipNames(services []api.Service, _ []string) (names []string) {
	for _, s := range services {
		names = append(names, s.VIPs...)
	}
	return names
}

// virtualPortNames returns all VIP:PORT of single ports, for the second argument.
func virtualPortNames(services []api.Service, args []string) (names []string) {
	if len(args) != 1 {
		return nil
	}
	for _, s := range services {
		for _, vip := range s.VIPs {
			for _, port := range s.Ports {
				names = append(names, net.JoinHostPort(vip, port))
			}
		}
	}
	return names
}
