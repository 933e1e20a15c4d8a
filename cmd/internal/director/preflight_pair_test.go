package director

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"vstun/cmd/internal/config"
	"vstun/routing/kernel/kerneltest"
	"vstun/testdata/testkit"
)

// pairFile is a file for this host, whose lines 1 to 6 are a service with the VIP 10.9.0.80.
const pairFile = `[[service]]
name = "web"
vip = ["198.51.100.80",
  "10.9.0.80"]
protocol = "tcp"
port = 80
realserver = [{ address = "10.0.11.2" }]
`

// instance is an instance of VRRP, from line 8 on.
func instance(device, addresses, more string) string {
	return fmt.Sprintf("[[vrrp]]\nname = \"VI_1\"\ninterface = %q\nrouter_id = 51\naddresses = %s\n%s\n", device,
		addresses, more)
}

// TestCheckOfPair: the command check says with file and line which devices are not there, and what of [[vrrp]]
// and [sync] does not fit this host.
func TestCheckOfPair(t *testing.T) {
	testkit.NewNamespace(t)
	kerneltest.Must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: kerneltest.Named("eth0"), PeerName: "eth1"}))
	for name, a := range map[string]string{"eth0": "10.9.0.2/24", "eth1": "10.9.1.2/24"} {
		kerneltest.AddAddr(t, name, a)
		kerneltest.LinkUp(t, name)
	}
	dir := t.TempDir()
	key := filepath.Join(dir, "key")
	if err := os.WriteFile(key, make([]byte, 32), 0o644); err != nil {
		t.Fatal(err)
	}
	exchange := func(keys string) string { return fmt.Sprintf("[sync]\nkey = %q\n%s\n", key, keys) }
	const vip = `["10.9.0.80"]`
	const tracks = `track = [{ interface = "eth1" },
{ interface = "eth9" },
{ interface = "eth8", weight = -20 },
{ interface = "eth7", weight = 5 }]`
	for _, c := range []struct {
		name, text   string
		errs, warned []string
	}{
		{"a good pair", instance("eth0", vip, `source = "10.9.0.2"`) + exchange(`peers = ["10.9.0.2", "10.9.0.3"]`),
			nil, nil},
		{"no device", instance("eth9", vip, "") + exchange(`interface = "eth8"`), nil, []string{
			`:10: vrrp "VI_1": interface: there is no device eth9, and without it the instance has a fault: want ` +
				`eth0 or eth1`,
			`:16: sync: interface: there is no device eth8, and without it the director does not start: want eth0 or ` +
				`eth1`}},
		{"no device of a track", instance("eth0", vip, tracks), nil, []string{
			`:14: vrrp "VI_1": track[2]: interface: there is no device eth9, and without it the instance has a ` +
				`fault: want eth0 or eth1`,
			`:15: vrrp "VI_1": track[3]: interface: there is no device eth8, and without it the priority is ` +
				`lower by 20: want eth0 or eth1`,
			`:16: vrrp "VI_1": track[4]: interface: there is no device eth7, and without it the priority is not ` +
				`raised by 5: want eth0 or eth1`}},
		{"no device of two keys",
			"[director]\nannounce_devices = [\"eth1\",\n\"eht0\"]\nfast_path_devices = [\"eth9\"]\n", nil, []string{
				`:10: director: announce_devices: there is no device eht0, and nothing is announced on it: want eth0 ` +
					`or eth1`,
				`:11: director: fast_path_devices: there is no device eth9, and packets that come by it do not take ` +
					`the fast path: want eth0 or eth1`}},
		{"another source", instance("eth0", vip, `source = "10.9.0.9"`), nil, []string{
			`:13: vrrp "VI_1": source: 10.9.0.9 is no address of eth0, and without it the instance has a fault: want ` +
				`10.9.0.2`}},
		{"the source of another device", instance("eth0", vip, `source = "10.9.1.2"`), nil, []string{
			`:13: vrrp "VI_1": source: 10.9.1.2 is no address of eth0, and without it the instance has a fault: want ` +
				`10.9.0.2`}},
		{"its own address", instance("eth0", "[\"10.9.0.80\",\n\"10.9.0.2\"]", ""), []string{
			`:13: vrrp "VI_1": addresses: 10.9.0.2 is the own address of this host on eth0, which has no other one ` +
				`to send from: want one that may move, and leave the host's own address out`}, nil},
		{"its own address in excluded", instance("eth0", vip, `excluded = ["10.9.0.2/24"]`), []string{
			`:13: vrrp "VI_1": excluded: 10.9.0.2 is the own address of this host on eth0, which has no other one to ` +
				`send from: want one that may move, and leave the host's own address out`}, nil},
		{"an address of a master", instance("eth0", `["10.9.0.80", "10.9.1.2/24 dev eth1"]`, ""), nil, nil},
		{"no other peers", instance("eth0", vip, `peers = ["10.9.0.2"]`) + exchange(`peers = ["10.9.0.2", "10.9.1.2"]`),
			[]string{
				`:13: vrrp "VI_1": peers: all are addresses of this host: add those of the other directors`,
				`:16: sync: peers: all are addresses of this host: add those of the other directors`}, nil},
		{"a VIP of no instance", instance("eth0", `["198.51.100.80"]`, ""), []string{
			`:4: service "web": vip: VIP 10.9.0.80 is in a subnet of eth0, and no [[vrrp]] has it, so that every ` +
				`director would answer for it: add it to the addresses of one`}, nil},
	} {
		// No subtest: it would leave the namespace.
		file := filepath.Join(dir, "x.toml")
		if err := os.WriteFile(file, []byte(pairFile+c.text), 0o644); err != nil {
			t.Fatal(err)
		}
		got, err := check(file)
		var errs []string
		if err != nil {
			errs = strings.Split(err.Error(), "\n")
		}
		for i, list := range [][2][]string{{c.errs, errs}, {c.warned, got.Warnings}} {
			for j := range list[1] {
				list[1][j] = strings.TrimPrefix(list[1][j], file)
			}
			if diff := cmp.Diff(list[0], list[1]); diff != "" {
				t.Errorf("%s: %s (-want +got):\n%s", c.name, []string{"errors", "warnings"}[i], diff)
			}
		}
		cfg, err := load(file)
		if err != nil {
			t.Fatal(err)
		}
		starts := len(c.errs) == 0 && !strings.Contains(strings.Join(c.warned, " "), "does not start")
		if err := preflight(cfg, false); (err == nil) != starts {
			t.Errorf("%s: a start: %v", c.name, err)
		}
	}
}

// TestUnreadableKeys: the command check names the keys that the unit's user has no right to.
func TestUnreadableKeys(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root")
	}
	const uid, gid = 12345, 12346
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, make([]byte, 32), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := &config.Director{Sync: config.Sync{On: true, Key: "k", KeyFile: path},
		VRRP:   []config.VRRP{{KeyFile: path}, {VIPs: []netip.Addr{{}}}},
		Places: config.Places{{Table: "sync", Key: "key"}: "x.toml:7: sync: key: "}}
	cfg.VRRP[0].Name = "VI_1"
	const mend = "chgrp vstun %s; chmod 640 %s"
	for _, c := range []struct {
		name     string
		uid, gid int
		mode     os.FileMode
		user     reader
		reads    bool
	}{
		{"root's own", 0, 0, 0o600, reader{uid, []uint32{gid}}, false},
		{"root's own, with no user", 0, 0, 0o600, reader{}, false},
		{"for all", 0, 0, 0o644, reader{}, true},
		{"for its group", 0, gid, 0o640, reader{uid, []uint32{gid}}, true},
		{"not for its group", 0, gid, 0o604, reader{uid, []uint32{gid}}, false},
		{"of another group", 0, gid + 1, 0o640, reader{uid, []uint32{gid}}, false},
		{"its own", uid, 0, 0o400, reader{uid, []uint32{gid}}, true},
	} {
		if err := os.Chown(path, c.uid, c.gid); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, c.mode); err != nil {
			t.Fatal(err)
		}
		var want []string
		if known := c.user.uid != 0; !c.reads {
			add := map[bool]string{false: "useradd --system vstun; "}[known]
			for _, place := range []string{`vrrp "VI_1": key: `, "x.toml:7: sync: key: "} {
				want = append(want, fmt.Sprintf("%sthe unit's user vstun cannot read %s, at the start and at a "+
					"reload: %s"+mend, place, path, add, path, path))
			}
		}
		if diff := cmp.Diff(want, unreadable(cfg, c.user, c.user.uid != 0)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

// TestCheckOfLocalRealserver: the command check refuses a realserver by tun that is this host, as run does.
func TestCheckOfLocalRealserver(t *testing.T) {
	testkit.NewNamespace(t)
	kerneltest.Must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: kerneltest.Named("eth0"), PeerName: "eth1"}))
	kerneltest.AddAddr(t, "eth0", "10.9.0.2/24")
	kerneltest.LinkUp(t, "eth0")
	path := filepath.Join(t.TempDir(), "director.toml")
	for forward, want := range map[string]string{"tun": "10.9.0.2", "nat": ""} {
		text := "[[service]]\nname = \"web\"\nvip = \"198.51.100.80\"\nprotocol = \"tcp\"\nport = 80\n" +
			"realserver = [{ address = \"10.9.0.2\", forward = \"" + forward + "\" }]\n"
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := check(path)
		if want == "" {
			if err != nil {
				t.Error(err)
			}
			continue
		}
		want = `service "web": realserver ` + want + " is this host itself, on eth0, which only nat reaches"
		if got := fmt.Sprint(err); !strings.HasPrefix(got, want) || strings.Contains(got, "\n") {
			t.Errorf("%s: %v, want %s", forward, err, want)
		}
	}
}
