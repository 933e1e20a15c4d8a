package config_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"vstun/cmd/internal/config"
)

// keyFile writes a key of n bytes, and returns the file's path.
func keyFile(t *testing.T, n int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sync.key")
	if err := os.WriteFile(path, []byte(strings.Repeat("k", n)), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSync(t *testing.T) {
	key := keyFile(t, 32)
	group := netip.MustParseAddr("224.0.0.81")
	for name, c := range map[string]struct {
		text string
		want config.Sync
	}{
		"none": {"", config.Sync{}},
		"multicast": {"[sync]\ninterface = \"eth0\"\nkey = \"" + key + "\"\n", config.Sync{On: true, Interface: "eth0",
			Group: group, Port: 8848, KeyFile: key, Key: strings.Repeat("k", 32)}},
		"unicast": {"[sync]\nmode = \"vstun\"\npeers = [\"10.0.2.3\", \"10.0.2.4\"]\nport = 9000\nkey = \"" + key +
			"\"\n", config.Sync{On: true, Group: group, Port: 9000, Peers: []netip.Addr{netip.MustParseAddr("10.0.2.3"),
			netip.MustParseAddr("10.0.2.4")}, KeyFile: key, Key: strings.Repeat("k", 32)}},
		"ipvs": {"[sync]\nmode = \"ipvs\"\ninterface = \"eth0\"\ngroup = \"ff02::81\"\nid = 7\n", config.Sync{On: true,
			IPVS: true, Interface: "eth0", Group: netip.MustParseAddr("ff02::81"), Port: 8848, ID: 7}},
	} {
		got, err := config.ParseDirector("x.toml", []byte(c.text+goodService))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(c.want, got.Sync, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestSyncFaults(t *testing.T) {
	key, short := keyFile(t, 32), keyFile(t, 31)
	const wantKey = "want the absolute path of a file of 32 bytes or more, the same on all directors, which the " +
		"program's user may read"
	many := func(n int) string {
		var list []string
		for i := range n {
			list = append(list, fmt.Sprintf("\"10.0.2.%d\"", i+1))
		}
		return "peers = [" + strings.Join(list, ", ") + "]\nkey = \"" + key + "\"\n"
	}
	if _, err := config.ParseDirector("x.toml", []byte("[sync]\n"+many(16)+goodService)); err != nil {
		t.Errorf("16 directors: %v", err)
	}
	for name, c := range map[string]struct {
		text string
		want []string
	}{
		"too many": {many(17), []string{
			"sync: peers: has 17 addresses: want at most 16, this director's own included"}},
		"nothing": {"", []string{
			"sync: key: missing: mode \"vstun\" needs it: " + wantKey + " (head -c 32 /dev/urandom)",
			"sync: interface: missing: want the name of the device for multicast, or peers"}},
		"short key": {"interface = \"eth0\"\nkey = \"" + short + "\"", []string{
			"sync: key: \"" + short + "\" has 31 bytes: " + wantKey}},
		"no key there": {"interface = \"eth0\"\nkey = \"/nowhere/key\"", []string{
			"sync: key: open /nowhere/key: no such file or directory: " + wantKey}},
		"relative key": {"interface = \"eth0\"\nkey = \"key\"", []string{
			"sync: key: \"key\" is not an absolute path: " + wantKey}},
		"ipvs": {"mode = \"ipvs\"\nkey = \"" + key + "\"\npeers = [\"10.0.2.3\"]", []string{
			"sync: key: mode \"ipvs\" has no authentication: leave it out, or set mode = \"vstun\"",
			"sync: interface: missing: mode \"ipvs\" has no authentication, so its datagrams must come by one device " +
				"only: want its name"}},
		"values": {
			"mode = \"kernel\"\ninterface = \"a/b\"\ngroup = \"10.0.0.1\"\nport = 0\nid = 256\nkey = \"" +
				key + "\"", []string{
				"sync: mode: \"kernel\" is unknown: want vstun or ipvs",
				"sync: interface: \"a/b\" is not a device's name: want the name of a device such as \"eth0\"",
				"sync: group: \"10.0.0.1\" is not a multicast address: want a multicast address such as " +
					"\"224.0.0.81\" or \"ff02::81\"",
				"sync: port: 0 is out of range: want 1 to 65535",
				"sync: id: 256 is out of range: want 0 (takes the datagrams of all) to 255"}},
		"peers": {"peers = [\"10.0.2.3\", \"2001:db8::3\"]\ngroup = \"224.0.0.82\"\nkey = \"" + key + "\"", []string{
			"sync: peers: 10.0.2.3 and 2001:db8::3 are of different families: want addresses of one family",
			"sync: group: peers get their datagrams by unicast: want either group or peers"}},
		"unknown": {"interface = \"eth0\"\nkey = \"" + key + "\"\nsyncid = 1", []string{
			"sync: syncid: unknown key: want mode, interface, peers, group, port, id or key"}},
	} {
		_, err := config.ParseDirector("x.toml", []byte("[sync]\n"+c.text+"\n"+goodService))
		if err == nil {
			t.Errorf("%s: no fault", name)
			continue
		}
		var got []string
		for _, l := range strings.Split(err.Error(), "\n") {
			_, l, _ = strings.Cut(strings.TrimPrefix(l, "x.toml:"), ": ")
			got = append(got, l)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// TestSyncNeedsRestart: a reload changes no key of [sync].
func TestSyncNeedsRestart(t *testing.T) {
	parse := func(text string) *config.Director {
		t.Helper()
		d, err := config.ParseDirector("x.toml", []byte(text+goodService))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	is := parse("[sync]\ninterface = \"eth0\"\nport = 9000\nid = 3\nkey = \"" + keyFile(t, 40) + "\"\n")
	if keys := parse("").NeedsRestart(is); strings.Join(keys, " ") !=
		"sync.interface sync.group sync.port sync.id sync.key sync.mode" {
		t.Errorf("%v need a restart", keys)
	}
}
