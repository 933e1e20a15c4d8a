package cli

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
)

// TestApplyCommand: the text, the file's name and the flags reach the director. Changes, warnings and faults are
// printed.
func TestApplyCommand(t *testing.T) {
	var answer api.Applied
	var fault error
	var got *api.Upload
	at := listen(t, func(s *api.Server) {
		s.Handle("PUT /configuration", api.Uploads(100, func(u *api.Upload) (any, string, error) {
			got = u
			return answer, `"x"`, fault
		}))
	})
	file := filepath.Join(t.TempDir(), "new.toml")
	if err := os.WriteFile(file, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := ApplyCommand(at)
	c.SetIn(strings.NewReader("text"))
	if out, err := execute(c, "-", "--force"); err != nil || out != "nothing changed\n" || got.IfMatch != "*" ||
		got.Query.Get("name") != "stdin" || string(got.Body) != "text" {
		t.Errorf("%q, %v, %+v", out, err, got)
	}
	answer = api.Applied{Written: true, File: "d.toml", Warnings: []string{"careful"}}
	if out, err := execute(ApplyCommand(at), file); err != nil ||
		out != "apply: warning: careful\nnothing changed but the text of d.toml\n" || got.IfMatch != "" ||
		got.Query.Get("name") != file || got.Query.Has("dry_run") || string(got.Body) != "text" {
		t.Errorf("%q, %v, %+v", out, err, got)
	}
	answer.Changes = []api.Change{{Text: "one"}, {Text: "two"}}
	if out, err := execute(ApplyCommand(at), file, "--dry-run"); err != nil ||
		!strings.HasSuffix(out, "\none\ntwo\n") || !got.Query.Has("dry_run") {
		t.Errorf("%q, %v", out, err)
	}
	answer = api.Applied{File: "d.toml", Written: true}
	if out, err := execute(ApplyCommand(at), file, "--json"); err != nil ||
		out != "{\n  \"changes\": [],\n  \"written\": true,\n  \"file\": \"d.toml\"\n}\n" {
		t.Errorf("%q, %v", out, err)
	}
	for _, status := range []int{422, http.StatusPreconditionFailed, http.StatusForbidden} {
		fault = &api.StatusError{Status: status, Err: errors.New("one\ntwo")}
		if out, err := execute(ApplyCommand(at), file); err == nil || err.Error() != "one\ntwo" || out != "" {
			t.Errorf("%q, %v", out, err)
		}
	}
	if out, err := execute(ApplyCommand(at), file, "--json"); err == nil ||
		!strings.Contains(out, "\"errors\": [\n    \"one\",\n    \"two\"\n  ]") {
		t.Errorf("%q, %v", out, err)
	}
	if _, err := execute(ApplyCommand(at), file+"x"); !errors.As(err, &UsageError{}) {
		t.Errorf("no such file: %v", err)
	}
}

// TestApplyOverBrokenFile: a configuration file with faults in its syntax does not hide the socket.
func TestApplyOverBrokenFile(t *testing.T) {
	at := listen(t, func(s *api.Server) {
		s.Handle("PUT /configuration", api.Uploads(1000, func(*api.Upload) (any, string, error) {
			return api.Applied{}, `"x"`, nil
		}))
	})
	socket, err := at.Path()
	if err != nil {
		t.Fatal(err)
	}
	broken := &Socket{Config: func() (string, error) { return "", &config.Errors{"d.toml:1:1: broken"} }}
	for text, want := range map[string]string{
		"[director]\ncontrol = \"" + socket + "\"\n": "nothing changed\n", "[[director\n": ""} {
		root := &cobra.Command{Use: "director"}
		root.AddCommand(ApplyCommand(broken))
		root.SetIn(strings.NewReader(text))
		out, err := execute(root, "apply", "-", "--force")
		if out != want || (err == nil) != (want != "") || err != nil && !strings.Contains(err.Error(), "stdin:1:") {
			t.Errorf("%q: %q, %v", text, out, err)
		}
	}
}
