package main

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"vstun/cmd/internal/config"
	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

func testShow(out *bytes.Buffer, ipv6, lan bool) *show {
	host := func(addr, addr6 string) *lab.Host {
		return &lab.Host{Addr: netip.MustParseAddr(addr), Addr6: netip.MustParseAddr(addr6)}
	}
	return &show{out: out, ipv6: ipv6, lan: lan, lab: &lab.Lab{
		Insider:  host("10.0.2.9", "fd00:0:2::9"),
		VIP:      netip.MustParseAddr("198.51.100.80"),
		VIP6:     netip.MustParseAddr("2001:db8:100::80"),
		Client:   host("10.0.1.2", "fd00:0:1::2"),
		Director: host("10.0.2.2", "fd00:0:2::2"),
		Webs:     []*lab.Host{host("10.0.11.2", "fd00:0:11::2"), host("10.0.12.2", "fd00:0:12::2")},
	}}
}

func TestConfigurationsAreValid(t *testing.T) { testkit.Families(t, testConfigurations) }

func testConfigurations(t *testing.T, ipv6 bool) {
	testConfigurationsOf(t, testShow(nil, ipv6, false))
	testConfigurationsOf(t, testShow(nil, ipv6, true))
}

func testConfigurationsOf(t *testing.T, s *show) {
	t.Helper()
	d, err := config.ParseDirector("director.toml", []byte(s.directorTOML("/tmp/d.sock")))
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

func TestDrawingFits(t *testing.T) { testkit.Families(t, testDrawing) }

func testDrawing(t *testing.T, ipv6 bool) {
	testDrawingOf(t, ipv6, false)
	testDrawingOf(t, ipv6, true)
}

func testDrawingOf(t *testing.T, ipv6, lan bool) {
	t.Helper()
	var out bytes.Buffer
	s := testShow(&out, ipv6, lan)
	s.draw()
	s.describeStay("bin/director", dir+"/director.toml")
	want := []string{"198.51.100.80", "10.0.1.2", "10.0.2.2", "10.0.11.2", "10.0.12.2"}
	if ipv6 {
		want = []string{"2001:db8:100::80", "[2001:db8:100::80]", "fd00:0:1::2", "fd00:0:2::2", "fd00:0:11::2",
			"fd00:0:12::2"}
	}
	for _, addr := range want {
		if !strings.Contains(out.String(), addr) {
			t.Errorf("no %s in the text", addr)
		}
	}
	if other := map[bool]string{false: "::", true: "10.0."}[ipv6]; strings.Contains(out.String(), other) {
		t.Errorf("an address of the other family is in the text: %s", out.String())
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
