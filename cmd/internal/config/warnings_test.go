package config_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"vstun/cmd/internal/config"
)

// served is a service without warnings, and its lines: the last one is 7.
const served = `[[service]]
name = "web"
vip = "198.51.100.80"
protocol = "tcp"
port = 443
realserver = [{ address = "10.0.11.2" }]
`

// TestWarnings: a legal key without its apparent effect is named with its line. Each case is appended to served.
func TestWarnings(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	udp := strings.NewReplacer(`"tcp"`, `"udp"`).Replace(served)
	without := strings.Replace(served, `realserver = [{ address = "10.0.11.2" }]`, "", 1)
	const wantNumber = `want the absolute path of a file that has a number, such as "/run/web.weight"`
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"nothing", served, nil},
		{"announced nowhere", served + "[director]\nannounce = \"none\"\nannounce_devices = [\"eth0\"]", []string{
			`x.toml:9: director: announce_devices: announce is "none", so no VIP is announced: leave it out, or set ` +
				`announce = "auto"`}},
		{"hash of none", served + "[director]\nunknown_flows = \"hash\"", []string{`x.toml:8: director: ` +
			`unknown_flows: no service over tcp has a scheduler that hashes: leave it out, or use dh, sh or mh there`}},
		{"hash of sh", served + "scheduler = \"sh\"\n[director]\nunknown_flows = \"hash\"", nil},
		{"mail about roles without [[vrrp]]", served + "[notify.mail]\nto = \"a@b\"\nfrom = \"a@b\"\nserver = " +
			"\"c:25\"\nkinds = [\"service\", \"vrrp\"]", []string{`x.toml:11: notify: mail: kinds: there is no ` +
			`[[vrrp]], so that no role changes: leave "vrrp" out, or add [[vrrp]]`}},
		{"mail about roles", served + "[[vrrp]]\nname = \"V\"\ninterface = \"eth0\"\nrouter_id = 1\naddresses = " +
			"[\"198.51.100.80\"]\n[notify.mail]\nto = \"a@b\"\nfrom = \"a@b\"\nserver = \"c:25\"\nkinds = " +
			"[\"vrrp\"]", nil},
		{"STARTTLS at a port of TLS", served + "[notify.mail]\nto = \"a@b\"\nfrom = \"a@b\"\nserver = \"c:465\"\n" +
			"tls = \"starttls\"", []string{`x.toml:11: notify: mail: tls: a server at port 465 begins with TLS (RFC ` +
			`8314) and offers no STARTTLS: want tls = "tls"`}},
		{"flags of none", served + `scheduler_flags = ["sh-port"]`, []string{`x.toml:7: service "web": ` +
			`scheduler_flags: scheduler wlc has no flags and ignores them: leave them out, or use sh or mh`}},
		{"order of none", served + `order = "address"`, []string{`x.toml:7: service "web": order: scheduler wlc does ` +
			`not hash and takes the realservers as the file has them: leave it out, or use dh, sh or mh`}},
		{"order of mh", served + `scheduler = "mh"` + "\n" + `order = "address"`, nil},
		{"order of the file", served + `order = "file"`, nil},
		{"flags of sh", served + `scheduler = "sh"` + "\n" + `scheduler_flags = ["sh-port", "sh-fallback"]`, nil},
		{"no flags", served + `scheduler_flags = []`, nil},
		{"port of ipip", served + "\nencap_port = 6081", []string{`x.toml:8: service "web": encap_port: only gue ` +
			`and fou have a port, and no tunnel of this service is one of them: leave it out`}},
		{"port of gue", served + "encap = \"gue\"\nencap_port = 6081", nil},
		{"port of one of them", without + "encap_port = 6081\nrealserver = [{ address = \"10.0.11.2\" }, { address " +
			"= \"10.0.12.2\", encap = \"fou\" }]", nil},
		{"no realserver", without, []string{`x.toml:1: service "web": realserver: missing: the service refuses all ` +
			`clients: want [[service.realserver]] tables`}},
		{"weight 0", without + "[[service.realserver]]\naddress = \"10.0.11.2\"\nweight = " +
			"0\n[[service.realserver]]\naddress = \"10.0.12.2\"\nweight = 0",
			[]string{`x.toml:7: service "web": realserver: all have weight 0: the service refuses new clients: give ` +
				`one a weight, or name a sorry_server`}},
		{"weight 0 of one", without + "realserver = [{ address = \"10.0.11.2\" }, { address = \"10.0.12.2\", weight " +
			"= 0 }]", nil},
		{"weight 0 that a file may raise", without + `check = { type = "file", path = "/run/web.weight" }` +
			"\nrealserver = [{ address = \"10.0.11.2\", weight = 0 }]", nil},
		{"a sorry server alone", without + `sorry_server = "10.0.99.2"`, nil},
		{"program that is not there", served + `check = { type = "exec", command = ["/nowhere/check", "x"] }`, []string{
			`x.toml:7: service "web": check: command: "/nowhere/check" is not there: install it, or name another ` +
				`program`}},
		{"program over several lines", served + "[service.check]\ntype = \"exec\"\ncommand = [\n  " +
			"\"/nowhere/check\",\n  \"x\",\n]", []string{
			`x.toml:10: service "web": check: command: "/nowhere/check" is not there: install it, or name another ` +
				`program`}},
		{"program that is a directory", served + `check = { type = "exec", command = ["` + dir + `"] }`, []string{
			`x.toml:7: service "web": check: command: "` + dir +
				`" is no program: install it, or name another program`}},
		{"program without rights", served + `check = { type = "exec", command = ["` + plain + `"] }`, []string{
			`x.toml:7: service "web": check: command: "` + plain + `" is not executable: install it, or name ` +
				`another program`}},
		{"number in a directory", served + `check = { type = "file", path = "` + dir + `" }`, []string{
			`x.toml:7: service "web": check: path: "` + dir + `" is not a regular file: ` + wantNumber}},
		{"number in a FIFO", served + `check = { type = "file", path = "` + fifo + `" }`, []string{
			`x.toml:7: service "web": check: path: "` + fifo + `" is not a regular file: ` + wantNumber}},
		{"number in a file", served + `check = { type = "file", path = "` + plain + `" }`, nil},
		{"number in no file yet", served + `check = { type = "file", path = "` + dir + `/none" }`, nil},
		{"program of notify", served + "[notify]\ncommand = [\"/nowhere/tell\"]", []string{
			`x.toml:8: notify: command: "/nowhere/tell" is not there: install it, or name another program`}},
		{"program that is there", served + `check = { type = "exec", command = ["/bin/sh", "/nowhere"] }`, nil},
		{"http of UDP", udp + `check = { type = "http" }`, []string{
			`x.toml:7: service "web": check: type: http checks go over tcp, and the service is udp: want another ` +
				`type, or the port to check as port`}},
		{"udp of TCP", served + `check = { type = "udp" }`, []string{
			`x.toml:7: service "web": check: type: udp checks go over udp, and the service is tcp: want another ` +
				`type, or the port to check as port`}},
		{"of a realserver", strings.Replace(udp, `"10.0.11.2"`, `"10.0.11.2", check = { type = "smtp" }`, 1), []string{
			`x.toml:6: service "web": realserver "10.0.11.2": check: type: smtp checks go over tcp, and the service ` +
				`is udp: want another type, or the port to check as port`}},
		{"https of HTTP/3", udp + `check = { type = "https", port = 443 }`, nil},
		{"dns of TCP", served + `check = { type = "dns", query = "x" }`, nil},
		{"one packet by nat", udp + "forward = \"nat\"\none_packet = true", []string{`x.toml:8: service "web": ` +
			`one_packet: a realserver of nat keeps each client's datagrams: leave it out, or use another forward`}},
		{"one packet by tun", udp + "one_packet = true", nil},
		{"ping of UDP", udp + `check = { type = "ping" }`, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := config.ParseDirector("x.toml", []byte(c.text))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, d.Warnings); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	r, err := config.ParseRealserver("x.toml", []byte(goodRealserver+"encap_port = 6081\n"))
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"x.toml:5: realserver: encap_port: only gue and fou have a port, and encap has neither: " +
		"leave it out"}; cmp.Diff(want, r.Warnings) != "" {
		t.Errorf("of a realserver: %q", r.Warnings)
	}
}

// TestPrivilegedPort: the director refuses an address for metrics that it could not bind later.
func TestPrivilegedPort(t *testing.T) {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if err != nil {
		t.Skipf("SKIPPED: %v", err)
	}
	least, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	for port, refused := range map[int]bool{1: least > 1, 80: least > 80, max(1, least): false, 9464: false} {
		text := "[director]\nmetrics = \"127.0.0.1:" + strconv.Itoa(port) + "\"\n" + served
		_, err := config.ParseDirector("x.toml", []byte(text))
		if !refused {
			if err != nil {
				t.Error(err)
			}
			continue
		}
		p := strconv.Itoa(port)
		wantFaults(t, err, `director: metrics: "127.0.0.1:`+p+`" has port `+p+`, to which the director has no `+
			`right: want `+strconv.Itoa(least)+` to 65535`)
	}
}

// TestFaultsNameTheirLines: faults of a key, of an element, and of a table without a required key, in both spellings of
// tables.
func TestFaultsNameTheirLines(t *testing.T) {
	_, errDirector := config.ParseDirector("x.toml", []byte(`# a comment
colour = 1
[director]
queues = -1

[[service]]
name = "web"
vip = [
  "198.51.100.80",
  "nonsense",
]
protocol = "tcp"
port = 80
check = { type = "http",
  interval = 5 }

  [[service.realserver]]
  address = "10.0.11.2"
  weight = -1

  [[service.realserver]]
  weight = 1

[[service]]
name = "web"
vip = "198.51.100.80"
protocol = "tcp"
port = 80
realserver = [
  { address = "10.0.11.2" },
  { address = "198.51.100.80" },
]
`))
	_, errRealserver := config.ParseRealserver("x.toml", []byte(`[realserver]
vips = ["198.51.100.80"]
directors = [
  "10.0.2.2",
  "0.0.0.0/0",
]
mss = 1
`))
	for _, c := range []struct {
		err  error
		want string
	}{
		{errDirector, "4 10 15 19 21 25 28 31 2"},
		{errRealserver, "5 7"},
	} {
		var got []string
		for _, m := range regexp.MustCompile(`(?m)^x\.toml:([0-9]+): `).FindAllStringSubmatch(c.err.Error(), -1) {
			got = append(got, m[1])
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("lines %v, want %s of\n%v", got, c.want, c.err)
		}
	}
}
