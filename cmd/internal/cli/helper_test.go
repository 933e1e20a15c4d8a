package cli

import (
	"bytes"
	"context"
	"path/filepath"
	"testing"

	"github.com/spf13/cobra"

	"vstun/cmd/internal/api"
)

// listen runs a server with the handlers that prepare adds, until the test ends, and returns its socket.
func listen(t *testing.T, prepare func(*api.Server)) *Socket {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.sock")
	s, err := api.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	prepare(s)
	ctx, cancel := context.WithCancel(context.Background())
	end := make(chan error)
	go func() { end <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-end; err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return &Socket{Config: func() (string, error) { return path, nil }}
}

// execute runs a command and returns its output.
func execute(c *cobra.Command, args ...string) (string, error) {
	var out bytes.Buffer
	c.SetOut(&out)
	c.SetErr(&out)
	c.SilenceUsage, c.SilenceErrors = true, true
	c.SetArgs(append([]string{}, args...)) // for nil, cobra takes the process's arguments
	err := c.Execute()
	return out.String(), err
}
