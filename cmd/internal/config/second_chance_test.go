package config_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"vstun/cmd/internal/config"
)

func TestSecondChance(t *testing.T) {
	key := keyFile(t, 32)
	d, err := config.ParseDirector("x.toml", []byte("[second_chance]\nkey = \""+key+"\"\n"+goodService))
	if err != nil || !d.SecondChance.On || d.SecondChance.Port != 8849 || len(d.SecondChance.Key) != 32 {
		t.Errorf("%+v, %v", d, err)
	}
	const head = "[realserver]\nvips = \"198.51.100.80\"\ndirectors = \"10.0.2.2\"\n"
	r, err := config.ParseRealserver("x.toml", []byte(head+"[second_chance]\nenabled = true\n"+
		"peers = [\"10.0.11.0/24\", \"10.0.12.2\"]\nkey = \""+key+"\"\nport = 9000\n"))
	if err != nil || !r.SecondChance.On || r.SecondChance.Port != 9000 || !slices.Equal(r.SecondChance.Peers,
		[]netip.Prefix{netip.MustParsePrefix("10.0.11.0/24"), netip.MustParsePrefix("10.0.12.2/32")}) {
		t.Errorf("%+v, %v", r, err)
	}
	r, err = config.ParseRealserver("x.toml", []byte(head+"[second_chance]\npeers = [\"10.0.2.0/24\"]\n"+
		"key = \"/none\"\n"))
	if err != nil || r.SecondChance.On || len(r.Warnings) != 1 ||
		!strings.Contains(r.Warnings[0], "the director 10.0.2.2") {
		t.Errorf("off: %+v, %v", r, err)
	}
	for text, want := range map[string]string{
		"enabled = true\nkey = \"" + key + "\"":   "second_chance: peers: missing",
		"enabled = true\npeers = [\"10.0.11.2\"]": "second_chance: key: missing",
		"peers = [\"10.0.11.2\", \"10.0.11.2\"]":  "is there twice",
		"colour = 1":                              "want enabled, peers, port or key",
	} {
		if _, err := config.ParseRealserver("x.toml", []byte(head+"[second_chance]\n"+text+"\n")); err == nil ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("%s\n%v, want %q", text, err, want)
		}
	}
	_, err = config.ParseRealserver("x.toml", []byte(head+"encap = \"fou\"\n[second_chance]\nenabled = true\npeers = "+
		"[\"10.0.11.2\"]\nkey = \""+key+"\"\n"))
	if err == nil || !strings.Contains(err.Error(), "encap has neither ipip nor gre nor gue") {
		t.Errorf("fou alone: %v", err)
	}
}
