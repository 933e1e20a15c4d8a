// Package top is `director top`: a live view of a running director in the terminal.
package top

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/cli"
	"vstun/cmd/internal/words"
)

// Command returns the command top, which shows services, realservers and rates of the running director until the key q.
func Command(socket *cli.Socket) *cobra.Command {
	var once, asJSON bool
	var every time.Duration
	order := orders[0]
	c := &cobra.Command{Use: "top", Short: "Watch services, realservers, health and rates in the terminal; q ends " +
		"it, s sorts", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if every < 100*time.Millisecond {
				return cli.UsageError{Err: fmt.Errorf("--every %v: want 100ms or more", every)}
			}
			known, ok := orderOf(order)
			if !ok {
				return cli.UsageError{Err: fmt.Errorf("--sort %q is unknown: %s", order,
					words.Instead(order, orders))}
			}
			path, err := socket.Path()
			if err != nil {
				return err
			}
			out, isFile := c.OutOrStdout().(*os.File)
			if !once && !asJSON && isFile && term.IsTerminal(int(out.Fd())) && term.IsTerminal(int(os.Stdin.Fd())) {
				return watch(c.Context(), path, every, known)
			}
			v := view{order: known}
			if err := v.look(c.Context(), path); err != nil {
				return err
			}
			select {
			case <-c.Context().Done():
				return nil
			case <-time.After(every):
			}
			if err := v.look(c.Context(), path); err != nil {
				return err
			}
			if asJSON {
				return cli.PrintJSON(c.OutOrStdout(), v.rates())
			}
			for _, l := range v.lines(cli.Width(c.OutOrStdout())) {
				if _, err := fmt.Fprintln(c.OutOrStdout(), l.text); err != nil {
					return err
				}
			}
			return nil
		}}
	c.Flags().BoolVar(&once, "once", false, "print one screen and end, as without a terminal")
	c.Flags().BoolVar(&asJSON, "json", false, "print the rates once, as JSON")
	c.Flags().DurationVar(&every, "every", time.Second, "how often the director is asked")
	c.Flags().StringVar(&order, "sort", order, "what comes first, `COLUMN`: "+words.OneOf(orders))
	// the flag exists
	_ = c.RegisterFlagCompletionFunc("sort", cobra.FixedCompletions(orders, cobra.ShellCompDirectiveNoFileComp))
	return socket.Flag(c)
}

// look requests the director's status and adds it to v.
func (v *view) look(ctx context.Context, socket string) error {
	var st api.DirectorStatus
	if err := api.Get(ctx, socket, "/status", &st); err != nil {
		return err
	}
	v.take(time.Now(), &st)
	return nil
}
