package main

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"vstun/cmd/internal/config"
	"vstun/cmd/internal/lab"
)

func testShow(out *bytes.Buffer) *show {
	host := func(addr string) *lab.Host { return &lab.Host{Addr: netip.MustParseAddr(addr)} }
	return &show{out: out, lab: &lab.Lab{
		VIP:      netip.MustParseAddr("198.51.100.80"),
		Client:   host("10.0.1.2"),
		Director: host("10.0.2.2"),
		Webs:     []*lab.Host{host("10.0.11.2"), host("10.0.12.2")},
	}}
}

func TestConfigurationsAreValid(t *testing.T) {
	s := testShow(nil)
	d, err := config.ParseDirector("director.toml", []byte(s.directorTOML("/tmp/d.sock")),
		config.Features{Schedulers: []string{"rr", "wrr"}})
	if err != nil {
		t.Fatal(err)
	}
	if d.Control != "/tmp/d.sock" || len(d.Services) != 2 {
		t.Errorf("director: %+v", d)
	}
	r, err := config.ParseRealserver("web1.toml", []byte(s.agentTOML("/tmp/r.sock")))
	if err != nil {
		t.Fatal(err)
	}
	if r.Control != "/tmp/r.sock" {
		t.Errorf("realserver: %+v", r)
	}
}

func TestDrawingFits(t *testing.T) {
	var out bytes.Buffer
	s := testShow(&out)
	s.draw()
	s.printf(stayText, prefix, s.lab.VIP, "bin/director", dir+"/director.toml", dir)
	for _, addr := range []string{"198.51.100.80", "10.0.1.2", "10.0.2.2", "10.0.11.2", "10.0.12.2"} {
		if !strings.Contains(out.String(), addr) {
			t.Errorf("no %s in the text", addr)
		}
	}
	for line := range strings.Lines(out.String()) {
		if len(line) > 101 || strings.Contains(line, "%!") {
			t.Errorf("%d columns, want at most 100 and no fault of format: %s", len(line)-1, line)
		}
	}
}

func TestAnswerParse(t *testing.T) {
	var a answer
	if err := a.parse([]byte("web1 10.0.1.2:4000\n")); err != nil || a.server != "web1" || a.client != "10.0.1.2:4000" {
		t.Errorf("%+v, %v", a, err)
	}
	for _, body := range []string{"", "web1", "<html>\n"} {
		if err := a.parse([]byte(body)); err == nil {
			t.Errorf("%q: no error", body)
		}
	}
}
