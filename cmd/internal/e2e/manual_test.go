package e2e

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"vstun/balancer"
	"vstun/balancer/connsync"
	"vstun/cmd/internal/agent"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/director"
	"vstun/encap/packet/drop"
	"vstun/encap/wireguard"
	"vstun/testdata/testkit"
)

// keyRow is a row of a table of keys: | Key | Type | Default | Meaning |.
type keyRow struct{ key, kind, absent, meaning string }

// needsRestart reports whether the row marks its key as one that a reload can't change.
func (r keyRow) needsRestart() bool { return strings.Contains(r.meaning, "**R**") }

var (
	keyTableHeading = regexp.MustCompile("^#+ `\\[+([a-z_.]+)\\]+`$")
	keyTableRow     = regexp.MustCompile("^\\| `([a-z0-9_]+)` \\| ([^|]+) \\| ([^|]+) \\| (.+) \\|$")
)

const keyTableHeader = "| Key | Type | Default | Meaning |"

// manualKeys returns the rows about the keys of a program's configuration, by their TOML table: "service.check". A
// table of keys belongs to the TOML table in the heading above it, or else to the program's own.
func manualKeys(t *testing.T, program string) map[string][]keyRow {
	t.Helper()
	rows := map[string][]keyRow{}
	for _, p := range testkit.Manual(t) {
		if filepath.Dir(p.Name) != "cmd/"+program {
			continue
		}
		table, isKeys := program, false
		for line := range strings.Lines(p.Text) {
			line = strings.TrimSuffix(line, "\n")
			if m := keyTableHeading.FindStringSubmatch(line); m != nil {
				table = m[1]
			}
			isKeys = isKeys && strings.HasPrefix(line, "|") || line == keyTableHeader
			if m := keyTableRow.FindStringSubmatch(line); isKeys && m != nil {
				rows[table] = append(rows[table], keyRow{m[1], m[2], m[3], m[4]})
			}
		}
	}
	if len(rows[program]) < 5 {
		t.Fatalf("only %d keys of the %s", len(rows[program]), program)
	}
	return rows
}

// parseConfig parses a configuration of a program.
func parseConfig(program, text string) (any, error) {
	if program == "realserver" {
		c, err := config.ParseRealserver(program+".toml", []byte(text))
		if c != nil {
			c.Warnings = nil
		}
		return c, err
	}
	c, err := config.ParseDirector(program+".toml", []byte(text))
	if c != nil {
		c.Warnings, c.Places, c.Digest = nil, nil, ""
	}
	return c, err
}

// TestManualConfigurations parses every configuration in the manual.
func TestManualConfigurations(t *testing.T) {
	n := map[string]int{}
	for _, p := range testkit.Manual(t) {
		for i, part := range strings.Split("\n"+p.Text, "\n```toml\n") {
			if i == 0 {
				continue
			}
			block, _, _ := strings.Cut(part, "```")
			program := "director"
			if strings.Contains(block, "[realserver]") {
				program = "realserver"
			}
			n[program]++
			if _, err := parseConfig(program, block); err != nil {
				t.Errorf("%s: %v in\n%s", p.Name, err, block)
			}
		}
	}
	if n["director"] < 2 || n["realserver"] < 1 {
		t.Errorf("%d configurations of directors, %d of realservers", n["director"], n["realserver"])
	}
}

// everyTable has every TOML table of a program, each with an unknown key.
var everyTable = map[string]string{
	"director": `xxxxxxxxxx = 1
[director]
xxxxxxxxxx = 1
[connections]
xxxxxxxxxx = 1
[connections.timeouts]
xxxxxxxxxx = 1
[notify]
xxxxxxxxxx = 1
[notify.mail]
xxxxxxxxxx = 1
[sync]
xxxxxxxxxx = 1
[second_chance]
xxxxxxxxxx = 1
[bgp]
xxxxxxxxxx = 1
[[bgp.peer]]
xxxxxxxxxx = 1
[bgp.peer.bfd]
xxxxxxxxxx = 1
[[bgp.vip]]
xxxxxxxxxx = 1
[wireguard]
xxxxxxxxxx = 1
[[service]]
xxxxxxxxxx = 1
[service.persistence]
xxxxxxxxxx = 1
[service.resolve]
xxxxxxxxxx = 1
[service.check]
xxxxxxxxxx = 1
[[service.realserver]]
xxxxxxxxxx = 1
[service.realserver.wireguard]
xxxxxxxxxx = 1
[[vrrp]]
xxxxxxxxxx = 1
[[vrrp.track]]
xxxxxxxxxx = 1
[[tunnel]]
xxxxxxxxxx = 1
[tunnel.probe]
xxxxxxxxxx = 1
[tunnel.wireguard]
xxxxxxxxxx = 1
`,
	"realserver": `xxxxxxxxxx = 1
[realserver]
xxxxxxxxxx = 1
[second_chance]
xxxxxxxxxx = 1
[wireguard]
xxxxxxxxxx = 1
[[wireguard.peer]]
xxxxxxxxxx = 1
[[tunnel]]
xxxxxxxxxx = 1
[tunnel.probe]
xxxxxxxxxx = 1
[tunnel.wireguard]
xxxxxxxxxx = 1
`,
}

// knownKeys returns the keys that a program knows, by their TOML table, with "" for the file itself: it puts an unknown
// key into each table, and is told the known ones.
func knownKeys(t *testing.T, program string) map[string][]string {
	t.Helper()
	text := everyTable[program]
	lines := strings.Split(text, "\n")
	fault := regexp.MustCompile(`^[^:]*:(\d+): .*xxxxxxxxxx: unknown key: want (.*)$`)
	keys := map[string][]string{}
	_, err := parseConfig(program, text)
	for line := range strings.Lines(fmt.Sprint(err)) {
		m := fault.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if m == nil {
			continue
		}
		n, _ := strconv.Atoi(m[1])
		table := ""
		if n > 1 {
			table = strings.Trim(lines[n-2], "[]")
		}
		for _, key := range regexp.MustCompile(`[a-z0-9_]+`).FindAllString(m[2], -1) {
			if key != "or" {
				keys[table] = append(keys[table], key)
			}
		}
	}
	if want := strings.Count(text, "xxxxxxxxxx"); len(keys) != want {
		t.Fatalf("%s: known keys of %d tables, want %d: %v", program, len(keys), want, err)
	}
	return keys
}

// TestManualKeys wants the tables of keys to have the keys that each TOML table may have, and no other.
func TestManualKeys(t *testing.T) {
	for program := range everyTable {
		known, rows := knownKeys(t, program), manualKeys(t, program)
		text := testkit.ManualText(t)
		for table, keys := range known {
			var written []string
			for _, r := range rows[table] {
				if slices.Contains(written, r.key) {
					t.Errorf("%s.toml: [%s] has %s twice in the manual", program, table, r.key)
				}
				written = append(written, r.key)
				if !slices.Contains(keys, r.key) {
					t.Errorf("%s.toml: [%s] has no key %s, but it is in the manual", program, table, r.key)
				}
			}
			for _, key := range keys {
				child := "[" + strings.TrimPrefix(table+"."+key, ".") + "]"
				if !slices.Contains(written, key) && !strings.Contains(text, child) {
					t.Errorf("%s.toml: key %s of [%s] is not in the manual", program, key, table)
				}
			}
		}
		for table := range rows {
			if known[table] == nil {
				t.Errorf("%s.toml: there is no table [%s]", program, table)
			}
		}
	}
}

// TestManualDefaults sets each key to its default in the manual, which must change nothing. A required key must be an
// error when it is missing.
func TestManualDefaults(t *testing.T) {
	literal, ofTypes := regexp.MustCompile("^`(.*)`$"), regexp.MustCompile(`^([a-z]+)[a-z, ]*: `)
	required := map[string]string{"dns": `query = "example.com"`, "exec": `command = ["/bin/true"]`,
		"file": `path = "/run/x"`}
	key := filepath.Join(t.TempDir(), "sync.key")
	if err := os.WriteFile(key, make([]byte, 32), 0o600); err != nil {
		t.Fatal(err)
	}
	private, public := wireguard.NewPrivateKey(), wireguard.NewPrivateKey().Public()
	wgKey := filepath.Join(t.TempDir(), "wireguard.key")
	if err := os.WriteFile(wgKey, []byte(private.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	base := file{
		"wireguard":                    {fmt.Sprintf("private_key = %q", wgKey), `address = "10.99.0.1"`},
		"service.realserver.wireguard": {fmt.Sprintf("public_key = %q", public)},
		"wireguard.peer":               {fmt.Sprintf("public_key = %q", public), `address = "10.0.2.2"`},

		"second_chance": {fmt.Sprintf("key = %q", key)},

		"sync":     {`interface = "eth0"`, fmt.Sprintf("key = %q", key)},
		"director": {`log = "info"`}, "connections": {"sloppy_tcp = false"}, "notify": {`command = ["/bin/true"]`},
		"notify.mail":        {`to = ["ops@example.com"]`, `from = "lb@example.com"`, `server = "192.0.2.25:587"`},
		"service":            {`name = "web"`, `vip = "198.51.100.80"`, `protocol = "tcp"`, "port = 80"},
		"service.realserver": {`address = "10.0.11.2"`},
		"vrrp": {`name = "VI_1"`, `interface = "eth0"`, "router_id = 51",
			`addresses = ["198.51.100.80"]`},
		"vrrp.track": {`interface = "eth1"`},
		"bgp":        {"as = 65010", `router_id = "10.0.2.2"`},
		"bgp.peer":   {`address = "10.0.2.1"`, "as = 65000"},
		"bgp.vip":    {`address = "198.51.100.80"`},
		"tunnel": {`name = "site-b"`, `encap = "wireguard"`, `local = "10.98.0.1"`,
			`remote = "10.98.0.2"`},
		"tunnel.probe":     {`address = "10.8.0.2"`},
		"tunnel.wireguard": {fmt.Sprintf("public_key = %q", wireguard.Key{9})},

		"realserver": {`vips = "198.51.100.80"`, `directors = "10.0.2.2"`},
	}
	order := map[string][]string{
		"realserver": {"realserver", "second_chance", "wireguard", "wireguard.peer", "tunnel", "tunnel.probe",
			"tunnel.wireguard"},
		"director": {"director", "connections", "connections.timeouts", "notify", "notify.mail", "service",
			"service.persistence", "service.check", "service.realserver", "service.realserver.wireguard", "vrrp",
			"vrrp.track", "sync", "second_chance", "bgp", "bgp.peer", "bgp.peer.bfd", "bgp.vip", "wireguard", "tunnel",
			"tunnel.probe", "tunnel.wireguard"},
	}
	defaults, must := 0, 0
	for program, tables := range order {
		for table, rows := range manualKeys(t, program) {
			for _, r := range rows {
				f := maps.Clone(base)
				f[table] = append(slices.Clone(f[table]), "") // the table is there
				if table == "service.check" {
					kind := "tcp"
					if m := ofTypes.FindStringSubmatch(r.meaning); m != nil {
						kind = m[1]
					}
					f[table] = []string{fmt.Sprintf("type = %q", kind), required[kind]}
				}
				switch m := literal.FindStringSubmatch(r.absent); {
				case m != nil:
					defaults++
					want, err := parseConfig(program, f.toml(tables...))
					got, errSet := parseConfig(program, f.with(table, r.key+" = "+m[1]).toml(tables...))
					if err != nil || errSet != nil || !reflect.DeepEqual(got, want) {
						t.Errorf("%s.toml: [%s] %s = %s is not the default: %v %v", program, table, r.key, m[1], err,
							errSet)
					}
				case r.absent == "required":
					must++
					f[table] = slices.DeleteFunc(f[table], func(l string) bool { return keyOf(l) == r.key })
					_, err := parseConfig(program, f.toml(tables...))
					if !strings.Contains(fmt.Sprint(err), r.key+": missing") {
						t.Errorf("%s.toml: [%s] %s is not required: %v", program, table, r.key, err)
					}
				}
			}
		}
	}
	if defaults < 40 || must < 8 {
		t.Errorf("%d defaults, %d required keys", defaults, must)
	}
}

// TestManualIsComplete wants every reason of a drop, every scheduler, every type of check and every command in the
// manual.
func TestManualIsComplete(t *testing.T) {
	text := testkit.ManualText(t)
	for d := drop.Accept + 1; d < drop.NumReasons; d++ {
		if !strings.Contains(text, "| `"+d.String()+"` |") {
			t.Errorf("drop reason %s is not in the manual", d)
		}
	}
	for _, s := range balancer.Schedulers() {
		if !strings.Contains(text, "`"+s+"`") {
			t.Errorf("scheduler %s is not in the manual", s)
		}
	}
	for _, reason := range connsync.FaultNames() {
		if !strings.Contains(text, "| `"+reason+"` |") {
			t.Errorf("reason %s of a refused record is not in the manual", reason)
		}
	}
	for _, c := range config.CheckTypes() {
		if !strings.Contains(text, "`"+c+"`") {
			t.Errorf("check type %s is not in the manual", c)
		}
	}
	for _, c := range director.Command().Commands() {
		if !strings.Contains(text, "`director "+c.Name()) {
			t.Errorf("command director %s is not in the manual", c.Name())
		}
	}
	for _, c := range agent.Command().Commands() {
		if !strings.Contains(text, "`realserver "+c.Name()) && !strings.Contains(text, "`"+c.Name()) {
			t.Errorf("command realserver %s is not in the manual", c.Name())
		}
	}
}

// TestManualLinks follows the links of the manual's pages within this module, to files and headings.
func TestManualLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	anchors := map[string][]string{}
	for _, p := range testkit.Manual(t) {
		anchors[p.Name] = anchorsOf(p.Text)
	}
	links := 0
	for _, p := range testkit.Manual(t) {
		for _, m := range link.FindAllStringSubmatch(p.Text, -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			links++
			to, anchor, hasAnchor := strings.Cut(m[1], "#")
			name := p.Name
			if to != "" {
				name = filepath.Join(filepath.Dir(p.Name), to)
			}
			headings, isPage := anchors[name]
			if _, err := os.Stat(filepath.Join(testkit.Root(t), name)); err != nil && !testkit.IsPage(name) {
				t.Errorf("%s: link to %s: %v", p.Name, m[1], err)
			}
			if isPage && hasAnchor && !slices.Contains(headings, anchor) {
				t.Errorf("%s: link to %s: %s has no such heading", p.Name, m[1], name)
			}
		}
	}
	if links < 50 {
		t.Errorf("only %d links", links)
	}
}

// anchorsOf returns the anchors of a page's headings, as GitHub makes them.
func anchorsOf(text string) (anchors []string) {
	unfit := regexp.MustCompile(`[^a-z0-9 _-]`)
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(text, -1) {
		anchors = append(anchors, strings.ReplaceAll(unfit.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-"))
	}
	return anchors
}
