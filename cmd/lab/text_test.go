package main

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vstun/cmd/internal/config"
	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

func testShow(out *bytes.Buffer, ipv6, lan, ha bool) *show {
	host := func(addr, addr6 string) *lab.Host {
		return &lab.Host{Addr: netip.MustParseAddr(addr), Addr6: netip.MustParseAddr(addr6)}
	}
	return &show{out: out, ipv6: ipv6, lan: lan, ha: ha, lab: &lab.Lab{
		Insider:  host("10.0.2.9", "fd00:0:2::9"),
		VIP:      netip.MustParseAddr("198.51.100.80"),
		VIP6:     netip.MustParseAddr("2001:db8:100::80"),
		Client:   host("10.0.1.2", "fd00:0:1::2"),
		Director: host("10.0.2.2", "fd00:0:2::2"),
		Backup:   host("10.0.2.3", "fd00:0:2::3"),
		Webs:     []*lab.Host{host("10.0.11.2", "fd00:0:11::2"), host("10.0.12.2", "fd00:0:12::2")},
	}}
}

func TestConfigurationsAreValid(t *testing.T) { testkit.Families(t, testConfigurations) }

func testConfigurations(t *testing.T, ipv6 bool) {
	testConfigurationsOf(t, testShow(nil, ipv6, false, false))
	testConfigurationsOf(t, testShow(nil, ipv6, true, false))
	testConfigurationsOf(t, testShow(nil, ipv6, true, true))
}

func testConfigurationsOf(t *testing.T, s *show) {
	t.Helper()
	key := filepath.Join(t.TempDir(), "sync.key")
	if err := os.WriteFile(key, make([]byte, 32), 0o600); err != nil {
		t.Fatal(err)
	}
	for priority, text := range map[uint8]string{firstPriority: s.directorTOML("/tmp/d.sock"),
		secondPriority: s.backupTOML("/tmp/d.sock")} {
		d, err := config.ParseDirector("director.toml", []byte(strings.ReplaceAll(text, keyPath(), key)))
		if err != nil {
			t.Fatal(err)
		}
		if d.Control != "/tmp/d.sock" || len(d.Services) != 2 || s.ha && d.VRRP[0].Priority != priority {
			t.Errorf("director: %+v", d)
		}
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
	testDrawingOf(t, ipv6, false, false)
	testDrawingOf(t, ipv6, true, false)
	testDrawingOf(t, ipv6, true, true)
}

func testDrawingOf(t *testing.T, ipv6, lan, ha bool) {
	t.Helper()
	var out bytes.Buffer
	s := testShow(&out, ipv6, lan, ha)
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
