package config

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// edited is the keys of a realserver; nil removes it.
type edited map[string]any

func edit(text, service, id string, keys edited) (string, error) {
	at, err := netip.ParseAddrPort(id)
	if err != nil {
		at = netip.AddrPortFrom(netip.MustParseAddr(id), 0)
	}
	var got []byte
	if keys == nil {
		got, err = RemoveRealserver([]byte(text), service, at)
	} else {
		got, err = SetRealserver([]byte(text), service, at, keys)
	}
	return string(got), err
}

const headers = `# top
[director] # of all
  log = "info"

[[service]]
  name = "web" # the web
  vip = "198.51.100.80"

  # the big one
  [[service.realserver]]
  address = "10.0.11.2" # rack 1
  weight  = 2 # twice

  [[service.realserver]]
  address = "10.0.12.2"
    [service.realserver.check]
    # slow
    type = "tcp" # its own

# another service
[[service]]
name = "dns"
# no realserver yet
[connections]
max = 2000
`

// TestEditHeaders: realservers that are tables with headers.
func TestEditHeaders(t *testing.T) {
	cut := func(old, with string) string {
		if !strings.Contains(headers, old) {
			t.Fatalf("%q is not there", old)
		}
		return strings.Replace(headers, old, with, 1)
	}
	const second = "\n  [[service.realserver]]\n  address = \"10.0.12.2\"\n    [service.realserver.check]\n" +
		"    # slow\n    type = \"tcp\" # its own\n"
	for name, c := range map[string]struct {
		service, id string
		keys        edited
		want        string
	}{
		"nothing": {"web", "10.0.11.2", edited{"weight": int64(2)}, headers},
		"a value": {"web", "10.0.11.2", edited{"weight": int64(7)}, cut("weight  = 2 #", "weight  = 7 #")},
		"less":    {"web", "10.0.11.2", edited{}, cut("  weight  = 2 # twice\n", "")},
		"more": {"web", "10.0.11.2", edited{"weight": int64(2), "upper": int64(9)},
			cut("# twice\n", "# twice\n  upper = 9\n")},
		"other":    {"web", "10.0.11.2", edited{"upper": int64(9)}, cut("  weight  = 2 # twice\n", "  upper = 9\n")},
		"the same": {"web", "10.0.12.2", edited{"check": map[string]any{"type": "tcp"}}, headers},
		"no table": {"web", "10.0.12.2", edited{},
			cut("    [service.realserver.check]\n    # slow\n    type = \"tcp\" # its own\n", "    # slow\n")},
		"a table": {"web", "10.0.12.2", edited{"check": map[string]any{"type": "ping", "via": "direct"}},
			cut("    [service.realserver.check]\n    # slow\n    type = \"tcp\" # its own\n",
				"  check = { type = \"ping\", via = \"direct\" }\n    # slow\n")},
		"beside a table": {"web", "10.0.12.2", edited{"check": map[string]any{"type": "tcp"}, "weight": int64(0)},
			cut("  address = \"10.0.12.2\"\n", "  address = \"10.0.12.2\"\n  weight = 0\n")},
		"added": {"web", "10.0.13.2:8080", edited{"forward": "nat", "on_failure": "a\"b\n"},
			cut("# its own\n", "# its own\n\n  [[service.realserver]]\n  address = \"10.0.13.2\"\n"+
				"  forward = \"nat\"\n  port = 8080\n  on_failure = \"a\\\"b\\n\"\n")},
		"added IPv6": {"web", "2001:db8::2", edited{}, cut("# its own\n",
			"# its own\n\n  [[service.realserver]]\n  address = \"2001:db8::2\"\n")},
		"the first": {"dns", "10.0.13.2", edited{"weight": int64(3)}, cut("name = \"dns\"\n",
			"name = \"dns\"\n\n  [[service.realserver]]\n  address = \"10.0.13.2\"\n  weight = 3\n")},
		"removed": {"web", "10.0.12.2", nil, cut(second, "")},
		"removed with its comments": {"web", "10.0.11.2", nil,
			cut("  [[service.realserver]]\n  address = \"10.0.11.2\" # rack 1\n  weight  = 2 # twice\n", "")},
	} {
		for _, crlf := range []bool{false, true} {
			text, want := headers, c.want
			if crlf {
				text = "\xef\xbb\xbf" + strings.ReplaceAll(text, "\n", "\r\n")
				want = "\xef\xbb\xbf" + strings.ReplaceAll(want, "\n", "\r\n")
				want = strings.ReplaceAll(want, "a\\\"b\\r\\n", "a\\\"b\\n")
			}
			got, err := edit(text, c.service, c.id, c.keys)
			if err != nil || got != want {
				t.Errorf("%s: %v (-want +got):\n%s", name, err, cmp.Diff(want, got))
			}
		}
	}
}

// TestEditInline: realservers that are elements of an array, in one line or more.
func TestEditInline(t *testing.T) {
	const line = "[[service]]\nname = \"a\"\nrealserver = [ { address = \"10.0.0.1\", weight = 2 }, " +
		"{address=\"10.0.0.2\"} ] # two\n"
	const lines = "[[service]]\nname = \"a\"\nrealserver = [ # all\n  { address = \"10.0.0.1\", weight = 2 }, # one\n" +
		"  # between\n  {address=\"10.0.0.2\"} # two\n]\nport = 80\n"
	const comma = "[[service]]\nname = \"a\"\nrealserver = [\n\t{ address = \"10.0.0.1\" },\n" +
		"\t{ address = \"10.0.0.2\" },\n]"
	const empty = "service = [ { name = \"a\", realserver = [] }, {name = \"b\"}]"
	three := edited{"weight": int64(3)}
	for _, c := range []struct {
		text, service, id string
		keys              edited
		old, with         string
	}{
		{line, "a", "10.0.0.1", three, "weight = 2", "weight = 3"},
		{line, "a", "10.0.0.1", edited{}, ", weight = 2 }", " }"},
		{line, "a", "10.0.0.1", edited{"weight": int64(5), "upper": int64(7)}, "weight = 2 }",
			"weight = 5, upper = 7 }"},
		{line, "a", "10.0.0.2", three, "{address=\"10.0.0.2\"}", "{address=\"10.0.0.2\", weight = 3}"},
		{line, "a", "10.0.0.3", three, "} ] #", "}, { address = \"10.0.0.3\", weight = 3 } ] #"},
		{line, "a", "10.0.0.1", nil, "{ address = \"10.0.0.1\", weight = 2 }, ", ""},
		{line, "a", "10.0.0.2", nil, ", {address=\"10.0.0.2\"} ]", " ]"},
		{lines, "a", "10.0.0.3", three, "} # two\n", "}, # two\n  { address = \"10.0.0.3\", weight = 3 }\n"},
		{lines, "a", "10.0.0.1", nil, "  { address = \"10.0.0.1\", weight = 2 }, # one\n", ""},
		{lines, "a", "10.0.0.2", nil, "  # between\n  {address=\"10.0.0.2\"} # two\n", "  # between\n"},
		{comma, "a", "10.0.0.3", three, "2\" },\n", "2\" },\n\t{ address = \"10.0.0.3\", weight = 3 },\n"},
		{comma, "a", "10.0.0.2", nil, "\t{ address = \"10.0.0.2\" },\n", ""},
		{empty, "a", "10.0.0.1", three, "[]", "[ { address = \"10.0.0.1\", weight = 3 } ]"},
		{empty, "b", "10.0.0.1", edited{}, "{name = \"b\"}",
			"{name = \"b\", realserver = [{ address = \"10.0.0.1\" }]}"},
	} {
		want := strings.Replace(c.text, c.old, c.with, 1)
		if got, err := edit(c.text, c.service, c.id, c.keys); err != nil || got != want {
			t.Errorf("%s %v: %v (-want +got):\n%s", c.id, c.keys, err, cmp.Diff(want, got))
		}
	}
}

// TestEditMissing: the error names what there is.
func TestEditMissing(t *testing.T) {
	for _, c := range []struct {
		service, id string
		keys        edited
		says        string
	}{
		{"wbe", "10.0.11.2", edited{}, `there is no service "wbe": did you mean web?`},
		{"web", "10.0.13.2", nil, `service "web" has no realserver 10.0.13.2: it has 10.0.11.2, 10.0.12.2`},
		{"web", "10.0.11.2:80", nil, `service "web" has no realserver 10.0.11.2:80`},
		{"dns", "10.0.11.2", nil, "it has none"},
	} {
		_, err := edit(headers, c.service, c.id, c.keys)
		if missing := (*MissingError)(nil); !errors.As(err, &missing) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s %s: %v", c.service, c.id, err)
		}
	}
	keys, err := RealserverKeys([]byte(headers), "web", netip.MustParseAddrPort("10.0.12.2:0"))
	want := map[string]any{"address": "10.0.12.2", "check": map[string]any{"type": "tcp"}}
	if diff := cmp.Diff(want, keys); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
}

// TestEditLayout: an edit that cannot be made in place is refused.
func TestEditLayout(t *testing.T) {
	const text = "[[service]]\nname = \"a\"\n[[service.realserver]]\naddress = \"10.0.0.1\"\n[director]\n" +
		"log = \"info\"\n[service.realserver.check]\ntype = \"tcp\"\n"
	if got, err := edit(text, "a", "10.0.0.1", nil); !errors.Is(err, errLayout) {
		t.Errorf("%v\n%s", err, got)
	}
	if got, err := edit(text, "a", "10.0.0.1", edited{"weight": 2i}); err == nil {
		t.Errorf("a value that TOML does not have: %s", got)
	}
}

// FuzzEdit: an edit of a valid text makes the wanted values, or is refused as a whole; and adding and removing a
// realserver leaves the text as it was.
func FuzzEdit(f *testing.F) {
	files, err := filepath.Glob("testdata/*.toml")
	if err != nil {
		f.Fatal(err)
	}
	files = append(files, "../../director/director.toml")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	for _, text := range []string{headers, "service = [ { name = \"a\", realserver = [] }, {name = \"b\"}]",
		"[[service]]\nname='a'\nrealserver=[\n{address='10.0.0.1'}\n,{}]",
		"[[service]]\nname = 'a'\nrealserver = [# x\n]", "service=[\"\"]"} {
		f.Add([]byte(text))
	}
	id := netip.MustParseAddrPort("192.0.2.77:0")
	f.Fuzz(func(t *testing.T, text []byte) {
		d, err := readDocument(text)
		if err != nil {
			return
		}
		for _, values := range rowsOf(d.values["service"]) {
			name, _ := values["name"].(string)
			for _, rs := range rowsOf(values["realserver"]) {
				if at, ok := writtenRealserver(rs); ok {
					_, _ = SetRealserver(text, name, at, map[string]any{"weight": int64(77), "check": rs["weight"]})
					_, _ = RemoveRealserver(text, name, at)
				}
			}
			more, err := SetRealserver(text, name, id, map[string]any{"weight": int64(77)})
			if err != nil {
				continue
			}
			keys, err := RealserverKeys(more, name, id)
			if err != nil || !slices.Contains(keyOrder(keys), "weight") {
				t.Errorf("%v %v in\n%s", keys, err, more)
			}
			if _, err := RemoveRealserver(more, name, id); err != nil && !errors.Is(err, errLayout) {
				t.Errorf("%v in\n%s", err, more)
			}
		}
	})
}
