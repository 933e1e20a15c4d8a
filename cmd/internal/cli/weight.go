package cli

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"

	"github.com/spf13/cobra"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/words"
)

// target is the realserver that a command's arguments name: in one service, or, with all, in every service.
type target struct{ all bool }

// flag gives c the flag --all and the completion of its arguments.
func (s *target) flag(c *cobra.Command, socket *Socket) *cobra.Command {
	c.Flags().BoolVar(&s.all, "all", false, "the realserver in every service that has it: there is no SERVICE then")
	c.Args = func(_ *cobra.Command, args []string) error {
		if len(args) == 2 && !s.all || len(args) == 1 && s.all {
			return nil
		}
		return fmt.Errorf("%s, where SERVICE REALSERVER or --all REALSERVER is wanted",
			words.Count(len(args), "argument"))
	}
	c.ValidArgsFunction = complete(socket, func(services []api.Service, args []string) []string {
		switch {
		case !s.all:
			return serviceRealserverNames(services, args)
		case len(args) == 0:
			return realserverNames(services, nil)
		}
		return nil
	})
	return socket.Flag(c)
}

// query returns the query that the arguments name.
func (s *target) query(args []string) (url.Values, error) {
	q := url.Values{}
	named, err := api.ParseRealserver(args[len(args)-1])
	if err != nil {
		return nil, UsageError{Err: err}
	}
	q.Set("realserver", words.Realserver(named))
	if !s.all {
		q.Set("service", args[0])
	}
	return q, nil
}

// setWeight sets a weight in the running director and prints the changes. The weight "" is the configured one.
func setWeight(c *cobra.Command, socket string, q url.Values, weight string, out io.Writer, asJSON bool) error {
	if q = maps.Clone(q); weight != "" {
		q.Set("weight", weight)
	}
	var r api.Reload
	err := api.Post(c.Context(), socket, "/weight?"+q.Encode(), reloadTakes, &r)
	return printChanges(out, r, err, asJSON)
}

// ownErrors are the statuses with which a running program refuses a request that it understands.
var ownErrors = []int{http.StatusUnprocessableEntity, http.StatusPreconditionFailed, http.StatusForbidden}

// plain returns the running program's own error, without socket and path, if err is one.
func plain(err error) error {
	if refused := (*api.RefusedError)(nil); errors.As(err, &refused) && slices.Contains(ownErrors, refused.Status) {
		return errors.New(refused.Text)
	}
	return err
}

// SetCommand returns the command set, which gives a realserver of the running director another weight.
func SetCommand(socket *Socket) *cobra.Command {
	var who target
	var weight string
	var asJSON bool
	c := &cobra.Command{Use: "set SERVICE REALSERVER --weight N", Short: "Give a realserver another weight, until " +
		"its weight in the configuration changes",
		RunE: func(c *cobra.Command, args []string) error {
			if weight == "" {
				return UsageError{Err: fmt.Errorf("--weight is missing: want --weight N, 0 (drains it) to %d",
					api.MaxWeight)}
			}
			if _, err := api.ParseWeight(weight); err != nil {
				return UsageError{Err: err}
			}
			return who.setWeight(c, socket, args, weight, asJSON)
		}}
	c.Flags().StringVar(&weight, "weight", "", "the weight `N`, 0 to 65535; 0 drains it")
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return who.flag(c, socket)
}

// UndrainCommand returns the command undrain, which gives a realserver its configured weight back.
func UndrainCommand(socket *Socket) *cobra.Command {
	var who target
	var asJSON bool
	c := &cobra.Command{Use: "undrain SERVICE REALSERVER", Short: "Give a realserver its configured weight back, " +
		"after drain or set",
		RunE: func(c *cobra.Command, args []string) error { return who.setWeight(c, socket, args, "", asJSON) }}
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return who.flag(c, socket)
}

func (s *target) setWeight(c *cobra.Command, socket *Socket, args []string, weight string, asJSON bool) error {
	q, err := s.query(args)
	if err != nil {
		return err
	}
	path, err := socket.Path()
	if err != nil {
		return err
	}
	return setWeight(c, path, q, weight, c.OutOrStdout(), asJSON)
}
