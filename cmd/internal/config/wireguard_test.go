package config_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vstun/cmd/internal/config"
	"vstun/encap/wireguard"
)

// keyFiles makes a file with a key of each mode, named by the mode, and one that has none.
func keyFiles(t *testing.T) (dir string, key wireguard.Key) {
	t.Helper()
	dir, key = t.TempDir(), wireguard.NewPrivateKey()
	for name, mode := range map[string]os.FileMode{"600": 0o600, "640": 0o640, "644": 0o644, "none": 0o600,
		"zeros": 0o600} {
		text := key.String() + "\n"
		if name == "none" {
			text = "no key"
		}
		if name == "zeros" {
			text = wireguard.Key{}.String()
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil { // whatever the umask is
			t.Fatal(err)
		}
	}
	return dir, key
}

// ends of keys in tests
var publicA, publicB = wireguard.NewPrivateKey().Public().String(), wireguard.NewPrivateKey().Public().String()

// sealed returns a director.toml with a realserver of WireGuard. replace are pairs of a text and its replacement. DIR
// is the directory of keys, A and B are public keys.
func sealed(dir string, replace ...string) string {
	text := `[wireguard]
private_key = "DIR/600"
address = "10.99.0.1"
[[service]]
name = "web"
vip = "198.51.100.80"
protocol = "tcp"
port = 80
encap = "wireguard"
[[service.realserver]]
address = "10.99.0.2"
wireguard = { public_key = "A", endpoint = "203.0.113.9:51820", keepalive = "25s" }
`
	return strings.NewReplacer("DIR", dir, `"A"`, `"`+publicA+`"`, `"B"`, `"`+publicB+`"`).Replace(
		strings.NewReplacer(replace...).Replace(text))
}

func TestWireGuard(t *testing.T) {
	dir, key := keyFiles(t)
	for _, mode := range []string{"600", "640"} {
		d, err := config.ParseDirector("x.toml", []byte(sealed(dir, "600", mode)))
		if err != nil {
			t.Fatal(err)
		}
		a, _ := wireguard.ParseKey(publicA)
		want := config.WireGuard{On: true, KeyFile: filepath.Join(dir, mode), PrivateKey: key, Listen: 51820,
			Addresses: config.Sources{V4: netip.MustParseAddr("10.99.0.1")}, Peers: []wireguard.Peer{{
				PublicKeys: []wireguard.Key{a}, Endpoint: netip.MustParseAddrPort("203.0.113.9:51820"),
				Keepalive: 25 * time.Second, Address: netip.MustParseAddr("10.99.0.2")}}}
		if diff := cmp.Diff(want, d.WireGuard, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
			cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Error(diff)
		}
		if own := d.Services[0].Realservers[0].Own; own != want.Addresses.V4 {
			t.Errorf("own address %v", own)
		}
		if len(d.Warnings) > 0 {
			t.Error(d.Warnings)
		}
	}
}

// TestWireGuardPeers: services share a peer. Its keys are in one of them, or the same in both.
func TestWireGuardPeers(t *testing.T) {
	dir, _ := keyFiles(t)
	second := strings.NewReplacer("web", "more", "port = 80", "port = 81").Replace(strings.SplitAfter(sealed(dir),
		"\n[[service]]")[1])
	without := regexp.MustCompile(`(?m)^wireguard.*$`).ReplaceAllString(second, "")
	for _, text := range []string{second, without} {
		d, err := config.ParseDirector("x.toml", []byte(sealed(dir)+"[[service]]"+text))
		if err != nil {
			t.Fatal(err)
		}
		if len(d.WireGuard.Peers) != 1 {
			t.Errorf("peers %v", d.WireGuard.Peers)
		}
	}
	other := strings.Replace(second, publicA, publicB, 1)
	_, err := config.ParseDirector("x.toml", []byte(sealed(dir)+"[[service]]"+other))
	if err == nil || !strings.Contains(err.Error(), `10.99.0.2 has other values than here in service "web"`) {
		t.Error(err)
	}
}

func TestWireGuardFaults(t *testing.T) {
	dir, key := keyFiles(t)
	for _, c := range []struct {
		name    string
		replace []string
		want    string
	}{
		{"no table", []string{"[wireguard]\nprivate_key = \"DIR/600\"\naddress = \"10.99.0.1\"\n", ""},
			`realserver "10.99.0.2": address: encap is wireguard, and there is no [wireguard] table`},
		{"no key", []string{`private_key = "DIR/600"`, ""}, "wireguard: private_key: missing: want the absolute path"},
		{"empty key", []string{"DIR/600", ""}, "wireguard: private_key: is empty: want the absolute path"},
		{"key in the file", []string{"DIR/600", key.String()}, "private_key: is a key, which every reader of"},
		{"relative", []string{"DIR/600", "a.key"}, `private_key: "a.key" is not an absolute path`},
		{"no file", []string{"DIR/600", "DIR/absent"}, "absent: no such file or directory: want"},
		{"for every user", []string{"DIR/600", "DIR/644"}, "(mode 0644): chmod o="},
		{"no key in it", []string{"DIR/600", "DIR/none"}, "none: its content is not a key"},
		{"zeros", []string{"DIR/600", "DIR/zeros"}, "zeros: its content is a key of zeros: want"},
		{"endpoint VIP", []string{"203.0.113.9", "198.51.100.80"}, `endpoint "198.51.100.80:51820" of peer 10.99.0.2 ` +
			`is a VIP of service "web"`},
		{"no address", []string{`address = "10.99.0.1"`, ""}, "wireguard: address: missing"},
		{"VIP", []string{"10.99.0.1", "198.51.100.80"}, `address: "198.51.100.80" is also a VIP of service "web"`},
		{"realserver", []string{"10.99.0.1", "10.99.0.2"}, `address: "10.99.0.2" is also a realserver's`},
		{"family", []string{"10.99.0.1", "fd99::1"}, `"10.99.0.2" is an IPv4 address, and [wireguard] has none`},
		{"port", []string{"address =", "listen = 0\naddress ="}, "listen: 0 is out of range"},
		{"no rights", []string{"address =", "listen = 53\naddress ="}, "listen: 53 is a port to which the program"},
		{"no peer", []string{`wireguard = { public_key = "A", endpoint = "203.0.113.9:51820", keepalive = "25s" }`, ""},
			`address: "10.99.0.2" has no wireguard = { public_key = "…" } in any service: add it`},
		{"no public key", []string{`public_key = "A", `, ""}, "wireguard: public_key: missing"},
		{"wrong key", []string{`"A"`, `"x"`}, `public_key: "x" is not a key`},
		{"twice", []string{`"A"`, `["A", "A"]`}, "is there twice: want each once"},
		{"own", []string{`"A"`, `"` + key.Public().String() + `"`}, "belongs to the private key of this host"},
		{"preshared", []string{"endpoint", `preshared_key = "DIR/644", endpoint`}, "preshared_key: every user of this"},
		{"endpoint", []string{"203.0.113.9:51820", "example.com:51820"}, "is not an address and a port: want an"},
		{"port 0", []string{"203.0.113.9:51820", "203.0.113.9:0"}, "endpoint: \"203.0.113.9:0\" has port 0"},
		{"group", []string{"203.0.113.9", "224.0.0.1"}, "endpoint: \"224.0.0.1:51820\" is a multicast address"},
		{"keepalive", []string{"25s", "1500ms"}, "keepalive: 1.5s is no number of whole seconds"},
		{"long keepalive", []string{"25s", "20h"}, "keepalive: \"20h\" is out of range"},
		{"unknown", []string{"keepalive", "keepaliv"}, "wireguard: keepaliv: unknown key: did you mean keepalive?"},
		{"two", []string{"[[service.realserver]]\n", "[[service.realserver]]\naddress = \"10.99.0.3\"\nwireguard = { " +
			"public_key = \"A\" }\n[[service.realserver]]\n"}, `also a key of service "web": realserver "10.99.0.3"`},
	} {
		_, err := config.ParseDirector("x.toml", []byte(sealed(dir, c.replace...)))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", c.name, err, c.want)
		}
	}
}

func TestWireGuardWarnings(t *testing.T) {
	dir, _ := keyFiles(t)
	d, err := config.ParseDirector("x.toml", []byte(sealed(dir, `"wireguard"`, `"ipip"`)))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"no realserver has encap", "this tunnel is ipip: leave it out"} {
		if !slices.ContainsFunc(d.Warnings, func(w string) bool { return strings.Contains(w, want) }) {
			t.Errorf("%q are without %q", d.Warnings, want)
		}
	}
}

// sealedAgent returns a realserver.toml with a director of WireGuard, as sealed does.
func sealedAgent(dir string, replace ...string) string {
	text := `[realserver]
vips = "198.51.100.80"
directors = "10.99.0.1"
encap = "wireguard"
[wireguard]
private_key = "DIR/600"
[[wireguard.peer]]
public_key = ["A", "B"]
address = "10.99.0.1"
endpoint = "203.0.113.1:51820"
`
	return strings.NewReplacer("DIR", dir, `"A"`, `"`+publicA+`"`, `"B"`, `"`+publicB+`"`).Replace(
		strings.NewReplacer(replace...).Replace(text))
}

func TestWireGuardAgent(t *testing.T) {
	dir, _ := keyFiles(t)
	r, err := config.ParseRealserver("x.toml", []byte(sealedAgent(dir)))
	if err != nil {
		t.Fatal(err)
	}
	p := r.WireGuard.Peer(netip.MustParseAddr("10.99.0.1"))
	if p == nil || len(p.PublicKeys) != 2 || len(r.Warnings) > 0 {
		t.Errorf("peer %+v, warnings %q", p, r.Warnings)
	}
	for _, c := range []struct {
		name    string
		replace []string
		want    string
	}{
		{"no table", []string{"[wireguard]", "", "private_key = \"DIR/600\"", "", "[[wireguard.peer]]", "",
			"public_key = [\"A\", \"B\"]\naddress = \"10.99.0.1\"\nendpoint = \"203.0.113.1:51820\"\n", ""},
			"realserver: encap: it has wireguard, and there is no [wireguard] table"},
		{"no peer", []string{"[[wireguard.peer]]\npublic_key = [\"A\", \"B\"]\naddress = \"10.99.0.1\"\n" +
			"endpoint = \"203.0.113.1:51820\"\n", ""}, "wireguard: it has no [[wireguard.peer]]: add one"},
		{"no director", []string{`directors = "10.99.0.1"`, `directors = "10.99.0.9"`},
			`wireguard.peer[1]: address: "10.99.0.1" is not in directors`},
		{"no address", []string{"address = \"10.99.0.1\"\n", ""}, "wireguard.peer[1]: address: missing"},
		{"port of gue", []string{`encap = "wireguard"`, "encap = [\"wireguard\", \"gue\"]\nencap_port = 51820"},
			"realserver: encap_port: 51820 is listen of [wireguard]: want a port of its own"},
		{"VIP", []string{"[[wireguard", "address = \"198.51.100.80\"\n[[wireguard"},
			`wireguard: address: "198.51.100.80" is one of the vips`},
	} {
		_, err := config.ParseRealserver("x.toml", []byte(sealedAgent(dir, c.replace...)))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", c.name, err, c.want)
		}
	}
	if r, err = config.ParseRealserver("x.toml", []byte(sealedAgent(dir, `encap = "wireguard"`, ""))); err != nil ||
		len(r.Warnings) != 1 {
		t.Errorf("%v, warnings %q", err, r.Warnings)
	}
}

// TestWireGuardEndpoints: two peers at one address and port are a warning, since one key only can answer there, and so
// is a peer at its address in the tunnel.
func TestWireGuardEndpoints(t *testing.T) {
	dir, _ := keyFiles(t)
	for endpoint, want := range map[string]string{
		"203.0.113.9:51820": `x.toml:15: service "web": realserver "10.99.0.3": wireguard: endpoint: ` +
			`"203.0.113.9:51820" is also the endpoint of service "web": realserver "10.99.0.2", and one of them only ` +
			"can be there: want the address and port of each",
		"203.0.113.9:51821": "", "": "",
		"10.99.0.3:51820": `x.toml:15: service "web": realserver "10.99.0.3": wireguard: endpoint: ` +
			`"10.99.0.3:51820" has the peer's address in the tunnel, by which no message reaches it from outside, ` +
			"unless its host has the address there, too: want the outer one",
	} {
		d, err := config.ParseDirector("x.toml", []byte(sealed(dir)+strings.NewReplacer("B", publicB, "E",
			endpoint).Replace("[[service.realserver]]\naddress = \"10.99.0.3\"\n"+
			"wireguard = { public_key = \"B\", endpoint = \"E\" }\n")))
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(d.Warnings, "\n"); got != want {
			t.Errorf("%q: warnings %q, want %q", endpoint, got, want)
		}
	}
}
