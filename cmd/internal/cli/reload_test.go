package cli

import (
	"errors"
	"net/url"
	"strings"
	"testing"

	"vstun/cmd/internal/api"
)

func TestReloadCommand(t *testing.T) {
	var changes []api.Change
	var fault error
	at := listen(t, func(s *api.Server) {
		s.Handle("POST /reload", api.JSON(func(url.Values) (any, error) {
			return api.Reload{Changes: changes}, fault
		}))
	})
	if got, err := execute(ReloadCommand(at)); err != nil || got != "nothing changed\n" {
		t.Errorf("%q, %v", got, err)
	}
	changes = []api.Change{{Service: "web", New: "tcp", Text: `service "web": added`}, {Service: "dns", Old: 53,
		Text: `service "dns": removed`}}
	if got, err := execute(ReloadCommand(at)); err != nil ||
		got != "service \"web\": added\nservice \"dns\": removed\n" {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := execute(ReloadCommand(at), "--json"); err != nil || got != `{
  "changes": [
    {
      "service": "web",
      "old": null,
      "new": "tcp",
      "text": "service \"web\": added"
    },
    {
      "service": "dns",
      "old": 53,
      "new": null,
      "text": "service \"dns\": removed"
    }
  ]
}
` {
		t.Errorf("as JSON: %s, %v", got, err)
	}
	fault = errors.New("x.toml:1: > one\nx.toml:2: two")
	if got, err := execute(ReloadCommand(at), "--json"); err == nil || err.Error() != fault.Error() || got != `{
  "changes": [],
  "errors": [
    "x.toml:1: > one",
    "x.toml:2: two"
  ]
}
` {
		t.Errorf("refused, as JSON: %s, %v", got, err)
	}
	lines := strings.Repeat("x.toml: service \"web\": port: 70000 is out of range\n", 1000) + "x.toml: the last one"
	fault = errors.New(lines)
	if got, err := execute(ReloadCommand(at)); err == nil || got != "" || err.Error() != lines {
		t.Errorf("%q, %v", got, err)
	}
}

func TestReloadOfNoDirector(t *testing.T) {
	if _, err := execute(ReloadCommand(listen(t, func(*api.Server) {}))); err == nil || !strings.Contains(err.Error(),
		"/reload: 404") {
		t.Errorf("%v", err)
	}
}
