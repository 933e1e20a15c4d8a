package config_test

import (
	"strings"
	"testing"

	"vstun/cmd/internal/config"
)

// TestDevice: a TAP device may have a bridge and no realserver of nat; a TUN device has no bridge. Both keys need a
// restart.
func TestDevice(t *testing.T) {
	const nat = "[[service.realserver]]\naddress = \"10.0.0.1\"\nforward = \"nat\"\n"
	for _, c := range []struct{ text, want string }{
		{"device = \"tap\"\nbridge = \"br0\"\n" + goodService, ""},
		{"device = \"tap\"\n" + goodService, ""},
		{"device = \"tun\"\n" + goodService + nat, ""},
		{"bridge = \"br0\"\n" + goodService, "only a TAP device becomes a port of a bridge"},
		{"device = \"tap\"\nbridge = \"vs0\"\n" + goodService, "is the director's own device"},
		{"device = \"tap\"\nbridge = \"a/b\"\n" + goodService, "bridge: \"a/b\" is not a device's name"},
		{"device = \"tep\"\n" + goodService, "want tun or tap"},
		{"device = \"tap\"\n" + goodService + nat, "forward: nat does not work with device = \"tap\""},
		{"device = \"tap\"\n" + goodService + "forward = \"nat\"\nsorry_server = \"10.0.0.1\"\n",
			"sorry_forward: nat does not work"},
	} {
		_, err := config.ParseDirector("x.toml", []byte("[director]\n"+c.text))
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.text, err, c.want)
		}
	}
	tun, err := config.ParseDirector("x.toml", []byte(goodService))
	if err != nil {
		t.Fatal(err)
	}
	tap, err := config.ParseDirector("x.toml", []byte("[director]\ndevice = \"tap\"\nbridge = \"br0\"\n"+goodService))
	if err != nil {
		t.Fatal(err)
	}
	if keys := tun.NeedsRestart(tap); strings.Join(keys, " ") != "device bridge" {
		t.Errorf("%v need a restart", keys)
	}
}
