package config

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"vstun/encap"
	"vstun/encap/wireguard"
)

// tunnelFile returns the text of a realserver.toml with tunnels, each its lines.
func tunnelFile(head string, tunnels ...string) []byte {
	text := head + "\n"
	for _, t := range tunnels {
		text += "[[tunnel]]\n" + t + "\n"
	}
	return []byte(text)
}

// TestTunnels: every key of a tunnel, and the defaults.
func TestTunnels(t *testing.T) {
	all := `name = "lan-b"
device = "tap"
encap = "gue"
local = "2001:db8::1"
remote = "2001:db8::2"
encap_port = 6081
bridge = "br0"
mtu = 1500
mss = "off"`
	few := `name = "site-b"
encap = "gre"
local = "10.0.2.2"
remote = "203.0.113.7"
addresses = ["10.8.0.1/30", "fd08::1/64"]
routes = "10.20.0.0/16"
key = 7
probe = { address = "10.8.0.2" }`
	r, err := ParseRealserver("realserver.toml", tunnelFile("[realserver]\nencap = []", few, all))
	if err != nil {
		t.Fatal(err)
	}
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	want := []PointToPoint{
		{Name: "site-b", Encap: encap.KindGRE, Local: addr("10.0.2.2"), Remote: addr("203.0.113.7"), Key: 7,
			Addresses: []netip.Prefix{prefix("10.8.0.1/30"), prefix("fd08::1/64")},
			Routes:    []netip.Prefix{prefix("10.20.0.0/16")},
			Probe:     Probe{Address: addr("10.8.0.2"), Interval: 5 * time.Second}},
		{Name: "lan-b", TAP: true, Encap: encap.KindGUE, Local: addr("2001:db8::1"), Remote: addr("2001:db8::2"),
			EncapPort: 6081, Bridge: "br0", MTU: 1500, NoMSS: true},
	}
	if !reflect.DeepEqual(r.Tunnels, want) || len(r.VIPs) > 0 || len(r.Warnings) > 0 {
		t.Errorf("%+v\nwant %+v; VIPs %v, warnings %v", r.Tunnels, want, r.VIPs, r.Warnings)
	}
	if _, err := ParseRealserver("realserver.toml", tunnelFile("[realserver]\nencap = []")); err == nil {
		t.Error("neither VIPs nor tunnels are refused")
	}
}

// TestTunnelFaults: each fault names the key, and what to do.
func TestTunnelFaults(t *testing.T) {
	const base = "name = \"a\"\nencap = \"gre\"\nlocal = \"10.0.2.2\"\nremote = \"10.0.3.2\"\n"
	with := func(lines ...string) string { // each line replaces the one with its key
		text := base
		for _, l := range lines {
			key, _, _ := strings.Cut(l, " =")
			kept := ""
			for old := range strings.Lines(text) {
				if k, _, _ := strings.Cut(old, " ="); k != key {
					kept += old
				}
			}
			text = kept + l + "\n"
		}
		return text
	}
	for want, tunnels := range map[string][]string{
		`tunnel[1]: name: missing: want a name for the device`: {
			"encap = \"gre\"\nlocal = \"10.0.2.2\"\nremote = \"10.0.3.2\"",
		},
		`tunnel "a": encap: missing: want ipip, gre, gue, fou or wireguard`: {
			strings.Replace(base, "encap = \"gre\"\n", "", 1),
		},
		`tunnel "a": local: missing: want this end's address`: {
			strings.Replace(base, "local = \"10.0.2.2\"\n", "", 1),
		},
		`tunnel "a": remote: "10.0.2.2" is local, too: want the peer's address`: {
			with(`remote = "10.0.2.2"`),
		},
		`tunnel "a": remote: "2001:db8::2" is an IPv6 address, and local is none`: {
			with(`remote = "2001:db8::2"`),
		},
		`tunnel[2]: name: "a" is also the name of tunnel "a": want a name of its own`: {
			base, with(`remote = "10.0.4.2"`),
		},
		`tunnel[1]: name: "vs0" is also the name of [realserver]`: {
			with(`name = "vs0"`),
		},
		`tunnel "lo": name: "lo" is the loopback device: want another name`: {
			with(`name = "lo"`),
		},
		`tunnel "a": encap: ipip carries IP packets, and a TAP device has Ethernet frames`: {
			with(`encap = "ipip"`, `device = "tap"`),
		},
		`tunnel "a": key: only gre has a key, and this tunnel is gue: leave it out`: {
			with(`encap = "gue"`, "key = 7"),
		},
		`tunnel "a": key: 4294967296 is out of range`: {
			with("key = 4294967296"),
		},
		`tunnel "a": bridge: only a TAP device becomes a port of a bridge`: {
			with(`bridge = "br0"`),
		},
		`tunnel "a": addresses: a port of a bridge has none: give them to br0`: {
			with(`device = "tap"`, `bridge = "br0"`, `addresses = ["10.8.0.1/30"]`),
		},
		`tunnel "a": routes: a route into an Ethernet network needs a gateway`: {
			with(`device = "tap"`, `routes = ["10.20.0.0/16"]`),
		},
		`tunnel "a": routes: "10.20.0.1/16" has bits beyond its length: want "10.20.0.0/1`: {
			with(`routes = ["10.20.0.1/16"]`),
		},
		`tunnel "a": addresses: "10.8.0.1" has no prefix length`: {
			with(`addresses = ["10.8.0.1"]`),
		},
		`tunnel "a": addresses: "224.0.0.1/24" is a multicast address`: {
			with(`addresses = ["224.0.0.1/24"]`),
		},
		`tunnel "a": addresses: "10.8.0.1/30" is there twice: want each once`: {
			with(`addresses = ["10.8.0.1/30", "10.8.0.1/30"]`),
		},
		`tunnel "a": routes: "10.0.3.2/32" is the address to which the tunnel's packets go`: {
			with(`routes = ["10.0.3.2/32"]`),
		},
		`tunnel "a": addresses: "10.0.3.2/24" is the address to which the tunnel's packets go`: {
			with(`addresses = ["10.0.3.2/24"]`),
		},
		`tunnel "a": mtu: 500 is out of range: want 0 (what fits), or 576 to 65535 bytes`: {
			with("mtu = 500"),
		},
		`tunnel "a": mtu: 65522 is too large for a TAP device: want 65521 at most`: {
			with("mtu = 65522", `device = "tap"`),
		},
		`tunnel "b": routes: "10.20.0.0/16" is also a route of tunnel "a": want it in one tunnel`: {
			with(`routes = ["10.20.0.0/16"]`), with(`name = "b"`, "key = 7", `routes = ["10.20.0.0/16"]`),
		},
		`tunnel "a": mtu: 1279 is too small for IPv6, which addresses or routes have`: {
			with("mtu = 1279", `addresses = ["fd08::1/64"]`),
		},
		`tunnel "a": probe: address: missing`: {
			with(`probe = { interval = "5s" }`),
		},
		`tunnel "a": probe: interval: "5ms" is out of range: want "1s" to "1h"`: {
			with(`probe = { address = "10.8.0.2", interval = "5ms" }`),
		},
		`tunnel "a": encap: it is wireguard, and there is no [wireguard] table`: {
			with(`encap = "wireguard"`),
		},
		`tunnel "b": remote: "10.0.3.2" is also the peer of tunnel "a"`: {
			base, with(`name = "b"`),
		},
		`want another remote or key`: {
			base, with(`name = "b"`),
		},
		`want another remote or encap_port`: {
			with(`encap = "gue"`), with(`name = "b"`, `encap = "gue"`),
		},
		`tunnel "b": encap_port: 6080 receives another format for tunnel "a"`: {
			with(`encap = "gue"`), with(`name = "b"`, `encap = "fou"`),
		},
		`tunnel "b": colour: unknown key`: {
			with(`name = "b"`, "colour = 1"),
		},
	} {
		_, err := ParseRealserver("realserver.toml", tunnelFile("[realserver]\nencap = []", tunnels...))
		if !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%v\nwant %s", err, want)
		}
	}
	for want, tunnels := range map[string][]string{ // these can be told apart
		"keys":         {base, with(`name = "b"`, "key = 7")},
		"frames":       {base, with(`name = "b"`, `device = "tap"`)},
		"peers":        {base, with(`name = "b"`, `remote = "10.0.4.2"`)},
		"tap's MTU":    {with("mtu = 65521", `device = "tap"`)},
		"tun's MTU":    {with("mtu = 65535")},
		"formats":      {base, with(`name = "b"`, `encap = "ipip"`)},
		"gue's frames": {with(`encap = "gue"`), with(`name = "b"`, `encap = "gue"`, `device = "tap"`)},
	} {
		_, err := ParseRealserver("realserver.toml", tunnelFile("[realserver]\nencap = []", tunnels...))
		if err != nil {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// TestTunnelOverItself: a prefix that covers the address to which the tunnel's packets go is a warning.
func TestTunnelOverItself(t *testing.T) {
	const base = "name = \"a\"\nencap = \"gre\"\nlocal = \"10.0.2.2\"\nremote = \"10.0.3.2\"\n"
	for line, want := range map[string]string{
		`routes = ["10.0.0.0/8"]`:     `routes: "10.0.0.0/8" covers 10.0.3.2, to which the tunnel's packets go`,
		`addresses = ["10.0.3.1/24"]`: `(ip route add 10.0.3.2 via GATEWAY)`,
		`routes = ["::/0"]`:           "",
		`routes = ["10.0.4.0/24"]`:    "",
	} {
		r, err := ParseRealserver("realserver.toml", tunnelFile("[realserver]\nencap = []", base+line))
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(r.Warnings, "\n"); !strings.Contains(got, want) || (got != "") != (want != "") {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
}

// TestTunnelsBesideDirectors: an agent refuses a tunnel whose packets could be a director's.
func TestTunnelsBesideDirectors(t *testing.T) {
	const head = "[realserver]\nvips = \"198.51.100.80\"\ndirectors = \"10.0.2.0/24\"\nencap = [\"ipip\", \"gue\"]"
	tunnel := func(encap, local, remote, more string) string {
		return fmt.Sprintf("name = \"a\"\nencap = %q\nlocal = %q\nremote = %q\n%s", encap, local, remote, more)
	}
	for text, want := range map[string]string{
		tunnel("ipip", "10.0.3.2", "10.0.2.2", ""):      `"10.0.2.2" is in directors, too, and ipip is in encap`,
		tunnel("gue", "10.0.3.2", "10.0.2.2", ""):       `"10.0.2.2" is in directors, too, and gue is in encap`,
		tunnel("fou", "10.0.3.2", "10.0.4.2", ""):       `encap_port: 6080 receives gue for the vips`,
		tunnel("gre", "198.51.100.80", "10.0.4.2", ""):  `local: "198.51.100.80" is one of the vips`,
		tunnel("gre", "10.0.3.2", "10.0.4.2", vipLine):  `addresses: "198.51.100.80/32" is one of the vips`,
		tunnel("gre", "10.0.3.2", "10.0.2.2", ""):       "",
		tunnel("ipip", "10.0.3.2", "10.0.4.2", ""):      "",
		tunnel("gue", "10.0.3.2", "10.0.4.2", ""):       "",
		tunnel("gue", "10.0.3.2", "10.0.2.2", portLine): "",
	} {
		_, err := ParseRealserver("realserver.toml", tunnelFile(head, text))
		if want == "" && err != nil || want != "" && !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

const (
	portLine = "encap_port = 6081"
	vipLine  = `addresses = ["10.8.0.1/30", "198.51.100.80/32"]`
)

// TestTunnelsOfWireGuard: the peers of tunnels are no directors, and no realservers.
func TestTunnelsOfWireGuard(t *testing.T) {
	key := filepath.Join(t.TempDir(), "wireguard.key")
	if err := os.WriteFile(key, []byte(wireguard.NewPrivateKey().String()), 0o600); err != nil {
		t.Fatal(err)
	}
	peer := wireguard.NewPrivateKey().Public()
	text := func(name, device string) string {
		return fmt.Sprintf("name = %q\ndevice = %q\nencap = \"wireguard\"\nlocal = \"10.99.0.1\"\nremote = "+
			"\"10.99.0.2\"\nwireguard = { public_key = \"%v\", endpoint = \"203.0.113.7:51820\" }", name, device, peer)
	}
	head := fmt.Sprintf("[realserver]\nencap = []\n[wireguard]\nprivate_key = %q", key)
	r, err := ParseRealserver("realserver.toml", tunnelFile(head, text("a", "tun"), text("b", "tap")))
	if err != nil {
		t.Fatal(err)
	}
	const port = "encap = \"gue\"\nencap_port = 51820\nname = \"c\"\nlocal = \"10.0.2.2\"\nremote = \"10.0.3.2\""
	if _, err := ParseRealserver("realserver.toml", tunnelFile(head, text("a", "tun"), port)); !strings.Contains(
		fmt.Sprint(err), `tunnel "c": encap_port: 51820 is listen of [wireguard]: want a port of its own`) {
		t.Error(err)
	}
	over := `routes = ["10.99.0.0/24", "203.0.113.0/24"]`
	other, err := ParseRealserver("realserver.toml", tunnelFile(head, text("a", "tun")+"\n"+over))
	if err != nil || len(other.Warnings) != 1 || !strings.Contains(other.Warnings[0], "covers 203.0.113.7,") {
		t.Errorf("routes over the endpoint: %+v, %v", other, err)
	}
	w := &r.WireGuard
	if len(w.Peers) != 0 || len(w.TunnelPeers) != 1 || len(w.Config().Peers) != 1 || len(r.Warnings) > 0 ||
		w.TunnelPeers[0].Address != netip.MustParseAddr("10.99.0.2") {
		t.Errorf("%+v, warnings %v", w, r.Warnings)
	}
	director := fmt.Sprintf("[[service]]\nname = \"web\"\nvip = \"198.51.100.80\"\nprotocol = \"tcp\"\nport = 80\n"+
		"realserver = [{ address = \"10.0.11.2\" }]\n[wireguard]\nprivate_key = %q", key)
	d, err := ParseDirector("director.toml", tunnelFile(director, text("a", "tun")))
	if err != nil {
		t.Fatal(err)
	}
	if w := &d.WireGuard; len(w.Peers) != 0 || len(w.TunnelPeers) != 1 || len(d.Warnings) > 0 {
		t.Errorf("%+v, warnings %v", w, d.Warnings)
	}
	vip := strings.Replace(text("a", "tun"), "10.99.0.2", "198.51.100.80", 1)
	if _, err := ParseDirector("director.toml", tunnelFile(director, vip)); !strings.Contains(fmt.Sprint(err),
		`remote: "198.51.100.80" is a VIP of service "web"`) {
		t.Error(err)
	}
	for line, want := range map[string]string{
		vipLine:                           `addresses: "198.51.100.80/32" is a VIP of service "web"`,
		`routes = "198.51.100.80/32"`:     `routes: "198.51.100.80/32" is a VIP of service "web"`,
		`routes = "198.51.100.0/24"`:      "",
		`addresses = "198.51.100.1/24"`:   "",
		`routes = ["198.51.100.81/32"]`:   "",
		`addresses = ["198.51.100.81/8"]`: "",
	} {
		_, err := ParseDirector("director.toml", tunnelFile(director, text("a", "tun")+"\n"+line))
		if want == "" && err != nil || want != "" && !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%s: %v, want %q", line, err, want)
		}
	}
}
