package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/words"
)

// sum returns the total of all realservers.
func sum(all []api.RealserverUsage) (total api.RealserverUsage) {
	for _, l := range all {
		total.Active += l.Active
		total.Inactive += l.Inactive
		total.Held += l.Held
		total.Settling = total.Settling || l.Settling
	}
	return total
}

// DrainCommand returns the command drain, which gives a realserver of the running director the weight 0 and may wait
// until its connections have ended.
func DrainCommand(socket *Socket) *cobra.Command {
	d := drain{look: time.Second, report: 10 * time.Second}
	var who target
	var wait bool
	c := &cobra.Command{Use: "drain SERVICE REALSERVER",
		Short: "Give a realserver the weight 0, so that it gets no new connections; --wait returns when the last " +
			"one has ended",
		RunE: func(c *cobra.Command, args []string) error {
			q, err := who.query(args)
			if err != nil {
				return err
			}
			wait = wait || d.active
			if d.timeout < 0 || d.timeout > 0 && !wait {
				return UsageError{Err: fmt.Errorf("--timeout %v: want a time above 0, and --wait or --active",
					d.timeout)}
			}
			if d.socket, err = socket.Path(); err != nil {
				return err
			}
			d.out, d.progress = c.OutOrStdout(), c.ErrOrStderr()
			return d.run(c, q, wait)
		}}
	c.Flags().BoolVar(&wait, "wait", false, "return when the last connection has ended; a realserver that is not "+
		"configured any more can be waited for, too")
	c.Flags().BoolVar(&d.active, "active", false,
		"return when no established connection is left: neither closing ones nor persistent clients are waited for")
	c.Flags().DurationVar(&d.timeout, "timeout", 0, "wait no longer than `D`, and fail then (default: no bound)")
	c.Flags().BoolVar(&d.asJSON, "json", false, "as JSON")
	return who.flag(c, socket)
}

// drain is one run of the command.
type drain struct {
	socket       string
	timeout      time.Duration // 0: none
	active       bool          // wait for active connections only
	asJSON       bool
	out          io.Writer
	progress     io.Writer
	look, report time.Duration // between two requests; between two lines of progress without a terminal
}

func (d *drain) run(c *cobra.Command, q url.Values, wait bool) error {
	if !wait {
		return setWeight(c, d.socket, q, "0", d.out, d.asJSON)
	}
	begin := time.Now()
	all, err := d.ask(c.Context(), q)
	if err != nil {
		return plain(err)
	}
	configured := false
	for _, l := range all {
		configured = configured || !l.Left
	}
	if configured {
		said := d.out
		if d.asJSON {
			said = io.Discard
		}
		if err := setWeight(c, d.socket, q, "0", said, false); err != nil {
			return err
		}
	}
	if err := d.wait(c.Context(), q, begin); err != nil {
		return err
	}
	took := time.Since(begin)
	if d.asJSON {
		return PrintJSON(d.out, map[string]float64{"drained_seconds": took.Seconds()})
	}
	_, err = fmt.Fprintf(d.out, "drained in %v\n", took.Round(time.Second))
	return err
}

func (d *drain) ask(ctx context.Context, q url.Values) (all []api.RealserverUsage, err error) {
	return all, api.Get(ctx, d.socket, "/load?"+q.Encode(), &all)
}

// wait returns when no connection remains.
func (d *drain) wait(ctx context.Context, q url.Values, begin time.Time) error {
	f, _ := d.progress.(*os.File)
	live := f != nil && term.IsTerminal(int(f.Fd()))
	if live {
		defer fmt.Fprint(d.progress, "\r\x1b[K") // the next line is the result
	}
	ticker := time.NewTicker(d.look)
	defer ticker.Stop()
	var deadline <-chan time.Time
	if d.timeout > 0 {
		t := time.NewTimer(d.timeout - time.Since(begin))
		defer t.Stop()
		deadline = t.C
	}
	var written time.Time
	for {
		all, err := d.ask(ctx, q)
		if refused := (*api.RefusedError)(nil); errors.As(err, &refused) {
			all, err = nil, nil // it was removed meanwhile, and has no connection left
		}
		if err != nil {
			return err
		}
		for _, l := range all {
			if l.Weight > 0 {
				return fmt.Errorf("service %q: realserver %s: its weight is %d again, so that it does not drain",
					l.Service, l.Realserver, l.Weight)
			}
		}
		left := sum(all)
		unused := left.Active == 0 && (d.active || left.Inactive+left.Held == 0)
		if unused && !left.Settling {
			return nil
		}
		waited := time.Since(begin).Round(time.Second)
		switch {
		case unused:
		case live:
			fmt.Fprintf(d.progress, "\r\x1b[Kdraining for %v: %s", waited, remaining(left))
		case time.Since(written) >= d.report:
			written = time.Now()
			fmt.Fprintf(d.progress, "draining for %v: %s\n", waited, remaining(left))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-deadline:
			if unused {
				return nil
			}
			return d.late(all)
		case <-ticker.C:
		}
	}
}

// late returns the error after the timeout.
func (d *drain) late(all []api.RealserverUsage) error {
	left := sum(all)
	what := remaining(left)
	if left.Held > 0 {
		what += ", since its persistent clients come back (with expire_quiescent_template = true they would go " +
			"elsewhere)"
	}
	return fmt.Errorf("after %v there remain %s: its weight stays 0: wait again, or give it its weight back (undrain)",
		d.timeout, what)
}

// remaining describes l: "1 active, 316 closing". Inactive TCP connections are closing, except a few half-open ones.
func remaining(l api.RealserverUsage) string {
	what := fmt.Sprintf("%d active, %d closing", l.Active, l.Inactive)
	if l.Held > 0 {
		what += ", " + words.Count(l.Held, "persistent client")
	}
	return what
}
