package director

import (
	"errors"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/routing"
)

const applied = `# one service
[[service]]
name     = "web"
vip      = "198.51.100.80"
protocol = "tcp"
port     = 80
scheduler = "wrr"
  [[service.realserver]]
  address = "198.51.100.90" # the first
`

// applying is a director whose configuration file has the text applied.
type applying struct {
	*operated
	t    *testing.T
	file string
}

func newApplying(t *testing.T) *applying {
	t.Helper()
	file := filepath.Join(t.TempDir(), "x.toml")
	if err := os.WriteFile(file, []byte(applied), 0o640); err != nil {
		t.Fatal(err)
	}
	cfg, err := load(file)
	if err != nil {
		t.Fatal(err)
	}
	return &applying{operate(t, cfg, func(o *operated) { o.file = file }), t, file}
}

// put sends a configuration, with a header If-Match and a query.
func (a *applying) put(text, ifMatch, query string) (api.Applied, string, error) {
	a.t.Helper()
	q, err := url.ParseQuery(query)
	if err != nil {
		a.t.Fatal(err)
	}
	v, etag, err := a.putConfiguration(&api.Upload{Query: q, Body: []byte(text), IfMatch: ifMatch,
		Client: "uid 0, pid 1"})
	got, _ := v.(api.Applied)
	return got, etag, err
}

// write writes the file, as an editor does.
func (a *applying) write(text string) {
	a.t.Helper()
	if err := os.WriteFile(a.file, []byte(text), 0o640); err != nil {
		a.t.Fatal(err)
	}
}

// mustBe checks the text of the file and the scheduler in force. Nothing is left beside the file.
func (a *applying) mustBe(text, scheduler string) {
	a.t.Helper()
	if got, err := os.ReadFile(a.file); err != nil || string(got) != text {
		a.t.Errorf("the file has %v\n%s\nwant\n%s", err, got, text)
	}
	if info, err := os.Stat(a.file); err != nil || info.Mode().Perm() != 0o640 {
		a.t.Errorf("the file's mode is %v, %v", info.Mode(), err)
	}
	if got := a.controller.state().Config.Services[0].Scheduler; got != scheduler {
		a.t.Errorf("the scheduler is %s, want %s", got, scheduler)
	}
	if list, err := os.ReadDir(filepath.Dir(a.file)); err != nil || len(list) != 1 {
		a.t.Errorf("beside the file: %v, %v", list, err)
	}
}

// mustFail checks an error: its status and its lines.
func mustFail(t *testing.T, err error, status int, lines ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want status %d, %q", status, lines)
		return
	}
	is := http.StatusUnprocessableEntity
	if e := (*api.StatusError)(nil); errors.As(err, &e) {
		is = e.Status
	}
	got := strings.Split(err.Error(), "\n")
	if is != status || len(got) != len(lines) {
		t.Errorf("status %d, want %d; %d lines, want %d:\n%v", is, status, len(got), len(lines), err)
		return
	}
	for i, line := range got {
		if !strings.Contains(line, lines[i]) {
			t.Errorf("line %q, want %q", line, lines[i])
		}
	}
}

// with returns the text applied with another scheduler.
func with(scheduler string) string { return strings.Replace(applied, "wrr", scheduler, 1) }

// TestPutConfiguration: a configuration is in force and in the file. An equal one changes nothing.
func TestPutConfiguration(t *testing.T) {
	a := newApplying(t)
	text, etag, err := a.configuration()
	if err != nil || string(text) != applied {
		t.Fatalf("%q, %v", text, err)
	}
	got, next, err := a.put(with("wlc"), etag, "")
	if err != nil || !got.Written || got.File != a.file || len(got.Changes) != 1 ||
		got.Changes[0].Text != `service "web": scheduler wrr -> wlc` {
		t.Errorf("%+v, %v", got, err)
	}
	a.mustBe(with("wlc"), "wlc")
	if _, now, err := a.configuration(); now != next || now == etag || err != nil {
		t.Errorf("ETag %s, PUT returns %s, %v", now, next, err)
	}
	got, same, err := a.put(with("wlc"), "", "")
	if err != nil || got.Written || len(got.Changes) != 0 || same != next {
		t.Errorf("an equal one: %+v, %v", got, err)
	}
	comment := "# another comment\n" + with("wlc")
	got, _, err = a.put(comment, "", "")
	if err != nil || !got.Written || len(got.Changes) != 0 {
		t.Errorf("another comment: %+v, %v", got, err)
	}
	a.mustBe(comment, "wlc")
	if got, _, err = a.put(with("rr"), `"x", *`, "dry_run"); err != nil || got.Written || len(got.Changes) != 1 {
		t.Errorf("dry run: %+v, %v", got, err)
	}
	a.mustBe(comment, "wlc")
	_, err = a.reload()
	if err != nil {
		t.Errorf("a reload then: %v", err)
	}
	a.mustBe(comment, "wlc")
}

// TestPutFaultyConfiguration: every fault is returned, with the name that the client gives, and nothing changes.
func TestPutFaultyConfiguration(t *testing.T) {
	a := newApplying(t)
	for _, query := range []string{"name=new.toml", "name=new.toml&dry_run"} {
		for _, c := range []struct {
			text  string
			lines []string
		}{
			{"colour = 1\n" + with("lottery"), []string{`new.toml:8: service "web": scheduler: "lottery"`,
				"new.toml:1: colour: unknown key"}},
			{"[[service\n", []string{"new.toml:1:"}},
			{"", []string{"service: missing"}},
			{"director.queues = 77\nconnections.max = 2000\ndirector.source = \"198.51.100.99\"\n" + applied,
				[]string{"new.toml: queues, connections.max changed", "source 198.51.100.99 is no address of this"}},
			{with("rr") + "  forward = \"dr\"\n", []string{"new.toml: realserver 198.51.100.90: "}},
		} {
			_, _, err := a.put(c.text, "", query)
			mustFail(t, err, http.StatusUnprocessableEntity, c.lines...)
			a.mustBe(applied, "wrr")
		}
	}
	if c := a.reloader.Configuration(); c.Error != "" {
		t.Errorf("status has %+v", c)
	}
}

// TestPutUnseenConfiguration: a text that the client has not seen is not overwritten.
func TestPutUnseenConfiguration(t *testing.T) {
	a := newApplying(t)
	_, etag, err := a.configuration()
	if err != nil {
		t.Fatal(err)
	}
	edited := "# by an editor\n" + with("lc")
	a.write(edited)
	for _, ifMatch := range []string{"", etag, `"x"`, `W/"x", ` + etag} {
		_, _, err := a.put(with("rr"), ifMatch, "")
		mustFail(t, err, http.StatusPreconditionFailed, a.file+" has changed ")
		a.mustBe(edited, "wrr")
	}
	if _, _, err = a.put(edited, "", ""); err != nil { // it overwrites nothing
		t.Error(err)
	}
	a.mustBe(edited, "lc")
	a.write("[[service\n")
	if _, _, err = a.put(with("rr"), "*", ""); err != nil {
		t.Error(err)
	}
	a.mustBe(with("rr"), "rr")
	if err := os.Remove(a.file); err != nil {
		t.Fatal(err)
	}
	_, _, err = a.put(with("wlc"), "*", "")
	mustFail(t, err, http.StatusUnprocessableEntity, "no such file")
}

// TestPutAtOnce: of several clients that have seen the same text, one succeeds.
func TestPutAtOnce(t *testing.T) {
	a := newApplying(t)
	_, etag, err := a.configuration()
	if err != nil {
		t.Fatal(err)
	}
	schedulers := []string{"rr", "wlc", "lc", "sh"}
	errs := make([]error, len(schedulers))
	var all sync.WaitGroup
	for i, s := range schedulers {
		all.Go(func() { _, _, errs[i] = a.put(with(s), etag, "") })
		all.Go(func() { _, _ = a.reload() })
	}
	all.Wait()
	won := ""
	for i, err := range errs {
		if err != nil {
			mustFail(t, err, http.StatusPreconditionFailed, "changed meanwhile")
		} else {
			won += schedulers[i]
		}
	}
	a.mustBe(with(won), won)
}

// TestPutThatCannotBeInForce: the machine refuses a configuration, or an editor writes the file meanwhile.
func TestPutThatCannotBeInForce(t *testing.T) {
	a := newApplying(t)
	other := strings.Replace(with("rr"), "198.51.100.80", "198.51.100.81", 1)
	a.network.answerBy(func(routing.State) error { return errors.New("no route today") })
	_, _, err := a.put(other, "", "")
	mustFail(t, err, http.StatusUnprocessableEntity, "no route today", "no route today") // nor a way back
	a.mustBe(applied, "wrr")
	edited := "# by an editor\n" + applied
	a.network.answerBy(func(routing.State) error {
		if text, _ := os.ReadFile(a.file); string(text) == applied { // it has the former text until it is in force
			return os.WriteFile(a.file, []byte(edited), 0o640)
		}
		return nil
	})
	_, _, err = a.put(other, "", "")
	mustFail(t, err, http.StatusPreconditionFailed, "changed meanwhile")
	a.mustBe(edited, "wrr")
	a.network.answerBy(func(routing.State) error { return nil })
	a.write(applied)
	if _, _, err = a.put(other, "", ""); err != nil {
		t.Error(err)
	}
	a.mustBe(other, "rr")
}

// TestPutThatFailsKeepsWeights: an operator's weight holds behind a configuration that had to go again.
func TestPutThatFailsKeepsWeights(t *testing.T) {
	a := newApplying(t)
	if _, err := a.setWeight(url.Values{"realserver": {"198.51.100.90"}, "weight": {"0"}}); err != nil {
		t.Fatal(err)
	}
	set := a.controller.state().inputs.Weights
	edited := "# by an editor\n" + applied
	a.network.answerBy(func(routing.State) error { return os.WriteFile(a.file, []byte(edited), 0o640) })
	other := strings.Replace(applied, "100.80\"", "100.81\"", 1) + "  weight = 3\n"
	_, _, err := a.put(other, "", "")
	mustFail(t, err, http.StatusPreconditionFailed, "changed meanwhile")
	a.mustBe(edited, "wrr")
	if got := a.controller.state().inputs.Weights; len(set) != 1 || !maps.Equal(got, set) {
		t.Errorf("weights %v, want %v", got, set)
	}
}

// TestDryRun: a value of dry_run counts.
func TestDryRun(t *testing.T) {
	for value, want := range map[string]bool{"": true, "=": true, "=true": true, "=1": true, "=false": false} {
		a := newApplying(t)
		if got, _, err := a.put(with("rr"), "", "dry_run"+value); err != nil || got.Written == want {
			t.Errorf("dry_run%s: %+v, %v", value, got, err)
		}
	}
	a := newApplying(t)
	_, _, err := a.put(with("rr"), "", "dry_run=perhaps")
	mustFail(t, err, http.StatusUnprocessableEntity, "want true or false")
	a.mustBe(applied, "wrr")
}

// TestUnwritable: the remedy is for the reason.
func TestUnwritable(t *testing.T) {
	for reason, want := range map[error]string{
		unix.EACCES: "nothing changed: give the file ", unix.EROFS: "StateDirectory=",
		unix.ENOSPC: "changed: make room",
		errors.New("is a mount: mount its folder instead"): "mount its folder instead: nothing changed",
	} {
		err := unwritable("x.toml", &fs.PathError{Op: "open", Path: "y", Err: reason})
		mustFail(t, err, http.StatusForbidden, want)
		if reason == unix.ENOSPC && strings.Contains(err.Error(), "user") || strings.HasSuffix(want, "changed") &&
			!strings.HasSuffix(err.Error(), want) {
			t.Error(err)
		}
	}
}

// TestAdded: faults that a host has already do not count.
func TestAdded(t *testing.T) {
	a, b, c := errors.New("a"), errors.New("b"), errors.New("c")
	for _, x := range []struct {
		was, is error
		want    string
	}{
		{nil, nil, ""}, {a, nil, ""}, {nil, errors.Join(a, b), "a\nb"}, {errors.Join(a, b), errors.Join(b, c, a), "c"},
		{errors.Join(a, b), b, ""},
	} {
		got := ""
		if err := added(x.was, x.is); err != nil {
			got = err.Error()
		}
		if got != x.want {
			t.Errorf("%v, %v: %q, want %q", x.was, x.is, got, x.want)
		}
	}
}

// TestDigestOfTheFile: the director knows the text that it has read.
func TestDigestOfTheFile(t *testing.T) {
	a := newApplying(t)
	if got := a.controller.state().Config.Digest; got != config.Digest([]byte(applied)) {
		t.Errorf("digest %q", got)
	}
}
