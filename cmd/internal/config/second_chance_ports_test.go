package config_test

import (
	"strings"
	"testing"

	"vstun/cmd/internal/config"
)

// TestSecondChancePort: a port that the agent has already is refused: the second socket could not be opened.
func TestSecondChancePort(t *testing.T) {
	key := keyFile(t, 32)
	chance := "[second_chance]\nenabled = true\npeers = [\"10.0.11.2\"]\nkey = \"" + key + "\"\nport = "
	const head = "[realserver]\nvips = \"198.51.100.80\"\ndirectors = \"10.0.2.2\"\nencap = [\"ipip\", \"gue\"]\n"
	for _, c := range []struct{ text, want string }{
		{head + chance + "6080\n", "second_chance: port: 6080 is encap_port: want a port of its own"},
		{head + "encap_port = 7000\n" + chance + "6080\n", ""},
		{head + chance + "6081\n" + "[[tunnel]]\nname = \"t1\"\nremote = \"10.0.3.2\"\nencap = \"gue\"\n" +
			"encap_port = 6081\naddresses = [\"10.9.0.1/30\"]\n", "6081 is encap_port of tunnel \"t1\""},
	} {
		switch _, err := config.ParseRealserver("x.toml", []byte(c.text)); {
		case c.want == "" && err != nil:
			t.Error(err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s\n%v, want %q", c.text, err, c.want)
		}
	}
}

// TestSecondChanceWarnings: a director whose agents get no tables, or no packets that need them, warns.
func TestSecondChanceWarnings(t *testing.T) {
	const hash = "\n[director]\nunknown_flows = \"hash\""
	const service = "[[service]]\nname = \"web\"\nvip = \"198.51.100.80\"\nport = 80\nprotocol = \"tcp\"\n" +
		"realserver = [{ address = \"10.0.11.2\" }]\n"
	const mh = "scheduler = \"mh\"\n"
	chance := "\n[second_chance]\nkey = \"" + keyFile(t, 32) + "\""
	for _, c := range []struct{ text, want string }{
		{service + mh + hash + chance, ""},
		{service + mh + "[connections]\nsloppy_tcp = true" + chance, ""},
		{service + mh + chance, `unknown_flows is not "hash"`},
		{service + mh + "persistence = { timeout = \"5m\" }" + hash + chance, "agents get no tables"},
		{service + "scheduler = \"sh\"" + hash + chance, "agents get no tables"},
	} {
		d, err := config.ParseDirector("x.toml", []byte(c.text))
		if err != nil {
			t.Errorf("%s\n%v", c.text, err)
			continue
		}
		var warnings []string
		for _, w := range d.Warnings {
			if strings.Contains(w, "second_chance") {
				warnings = append(warnings, w)
			}
		}
		if got := strings.Join(warnings, "\n"); (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s\n%q, want %q", c.text, got, c.want)
		}
	}
}
