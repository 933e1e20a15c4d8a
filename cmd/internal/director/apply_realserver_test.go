package director

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"vstun/cmd/internal/api"
)

// ask calls a handler of a single realserver.
func (a *applying) ask(fn func(*api.Upload) (any, string, error), service, realserver, body string) (any, string,
	error) {
	return fn(&api.Upload{Body: []byte(body), Path: func(name string) string {
		return map[string]string{"service": service, "realserver": realserver}[name]
	}})
}

// TestPutRealserver: a realserver is added, changed and removed. The rest of the file stays.
func TestPutRealserver(t *testing.T) {
	a := newApplying(t)
	for _, c := range []struct {
		realserver, body string // "": it is removed
		text             string // of the change
		file             string
	}{
		{"198.51.100.91", `{"weight": 3}`, `service "web": realserver 198.51.100.91: added: weight 3`,
			applied + "  [[service.realserver]]\n  address = \"198.51.100.91\"\n  weight = 3\n"},
		{"198.51.100.91", `{"weight": 5, "address": "198.51.100.91", "encap": "gre", "encap_key": 7}`,
			`service "web": realserver 198.51.100.91: weight 3 -> 5`, applied + "  [[service.realserver]]\n" +
				"  address = \"198.51.100.91\"\n  weight = 5\n  encap = \"gre\"\n  encap_key = 7\n"},
		{"198.51.100.91", `{"weight": 5, "encap": "gre", "encap_key": 7}`, "", applied + "  [[service.realserver]]\n" +
			"  address = \"198.51.100.91\"\n  weight = 5\n  encap = \"gre\"\n  encap_key = 7\n"},
		{"198.51.100.91", "", `service "web": realserver 198.51.100.91: removed`, applied},
		{"198.51.100.90", `{"check": {"type": "tcp", "interval": "1s", "rise": 2}, "weight": 0}`,
			`service "web": realserver 198.51.100.90: weight 1 -> 0`, strings.Replace(applied, "# the first\n",
				"# the first\n  weight = 0\n  check = { interval = \"1s\", rise = 2, type = \"tcp\" }\n", 1)},
		{"198.51.100.90", `{}`, `service "web": realserver 198.51.100.90: weight 0 -> 1`, applied},
	} {
		ask := a.putRealserver
		if c.body == "" {
			ask = a.deleteRealserver
		}
		v, etag, err := a.ask(ask, "web", c.realserver, c.body)
		got, _ := v.(api.Applied)
		if err != nil || (len(got.Changes) > 0) != (c.text != "") || c.text != "" && got.Changes[0].Text != c.text {
			t.Errorf("%s %s: %+v, %v", c.realserver, c.body, got, err)
		}
		a.mustBe(c.file, "wrr")
		if _, now, err := a.configuration(); err != nil || now != etag {
			t.Errorf("ETag %s, want %s, %v", etag, now, err)
		}
	}
	v, _, err := a.ask(a.getRealserver, "web", "198.51.100.90", "")
	if keys, _ := v.(map[string]any); err != nil || len(keys) != 1 || keys["address"] != "198.51.100.90" {
		t.Errorf("%v, %v", v, err)
	}
}

// TestPutRealserverRefused: nothing changes.
func TestPutRealserverRefused(t *testing.T) {
	a := newApplying(t)
	for _, c := range []struct {
		service, realserver, body string
		status                    int
		lines                     []string
	}{
		{"wbe", "198.51.100.90", "{}", http.StatusNotFound, []string{"did you mean web?"}},
		{"web", "198.51.100.90", `{"weight": 70000, "colour": 1, "upper": 1.5}`, http.StatusUnprocessableEntity,
			[]string{"weight: 70000 is out of range", "upper: 1.5 is of the wrong type", "colour: unknown key"}},
		{"web", "198.51.100", "{}", http.StatusUnprocessableEntity, []string{"is not an address"}},
		{"web", "198.51.100.80", "{}", http.StatusUnprocessableEntity, []string{"is also a VIP"}},
		{"web", "198.51.100.90", `{"address": "198.51.100.91"}`, http.StatusUnprocessableEntity,
			[]string{"address: 198.51.100.91 is not the one in the path"}},
		{"web", "198.51.100.90", `{"port": 80}`, http.StatusUnprocessableEntity, []string{"want ADDRESS:PORT there"}},
		{"web", "198.51.100.90", `{"weight": null}`, http.StatusUnprocessableEntity, []string{"null is no value"}},
		{"web", "198.51.100.90", `[]`, http.StatusUnprocessableEntity, []string{"is no JSON object"}},
		{"web", "198.51.100.90", `{} {}`, http.StatusUnprocessableEntity, []string{"more than one"}},
		{"web", "198.51.100.90", `{`, http.StatusUnprocessableEntity, []string{"is no JSON"}},
	} {
		_, _, err := a.ask(a.putRealserver, c.service, c.realserver, c.body)
		mustFail(t, err, c.status, c.lines...)
		a.mustBe(applied, "wrr")
	}
	for _, ask := range []func(*api.Upload) (any, string, error){a.deleteRealserver, a.getRealserver} {
		_, _, err := a.ask(ask, "web", "198.51.100.91", "")
		mustFail(t, err, http.StatusNotFound, "it has 198.51.100.90")
	}
	a.write("# by an editor\n" + applied)
	_, _, err := a.ask(a.deleteRealserver, "web", "198.51.100.90", "")
	mustFail(t, err, http.StatusPreconditionFailed, "has changed since")
	// Nothing would be overwritten, but the client has not seen what a reload would put in force.
	_, _, err = a.ask(a.putRealserver, "web", "198.51.100.90", "{}")
	mustFail(t, err, http.StatusPreconditionFailed, "has changed since")
	a.write("[[service\n")
	_, _, err = a.ask(a.deleteRealserver, "web", "198.51.100.90", "")
	mustFail(t, err, http.StatusUnprocessableEntity, a.file)
}

// TestReadKeys: the body may name the realserver.
func TestReadKeys(t *testing.T) {
	keys, err := readKeys([]byte(`{"address": "2001:db8:0::2", "port": 80, "weight": 1}`),
		netip.MustParseAddrPort("[2001:db8::2]:80"))
	if err != nil || keys["weight"] != int64(1) {
		t.Errorf("%v, %v", keys, err)
	}
}
