package doctor

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"vstun/cmd/internal/cli"
)

// patience bounds the time of an examination, which usually takes a few seconds.
const patience = time.Minute

// Command returns a program's command doctor. examine makes the report.
func Command(short string, examine func(ctx context.Context) (*Report, error)) *cobra.Command {
	var asJSON, verbose bool
	c := &cobra.Command{Use: "doctor", Short: short, Args: cobra.NoArgs,
		Long: short + ".\n\nIt changes nothing, and works whether the program runs or not. It needs the program's " +
			"privileges.\nExit status: 0 nothing found, 1 findings, 2 wrong usage or configuration.",
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(c.Context(), patience)
			defer cancel()
			r, err := examine(ctx)
			if err != nil {
				return err
			}
			if asJSON {
				err = cli.PrintJSON(c.OutOrStdout(), r)
			} else {
				err = r.print(c.OutOrStdout(), cli.Width(c.OutOrStdout()), verbose)
			}
			if err == nil && len(r.Findings) > 0 {
				err = fmt.Errorf("doctor: %s", r.summary())
			}
			return err
		}}
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	c.Flags().BoolVarP(&verbose, "verbose", "v", false,
		"also list checks that found no fault, and all places of a finding")
	return c
}
