package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vstun/cmd/internal/api"
	"vstun/testdata/testkit"
)

// applied is services for tests of `director apply`: downloads at port 81 of the VIP, named echo servers at port 80.
const applied = `# kept by a controller
[[service]]
name = "web"
vip = "198.51.100.80"
protocol = "tcp"
port = 80
scheduler = "wrr"
realserver = [ { address = "10.0.11.2" } ] # more to come
[[service]]
name = "files"
vip = "198.51.100.80"
protocol = "tcp"
port = 81
realserver = [ { address = "10.0.11.2" }, { address = "10.0.12.2" } ]
`

// newApplySite starts a director with applied, and downloads.
func newApplySite(t *testing.T) (*site, *downloads) {
	t.Helper()
	s := newSite(t, 2, nil)
	s.startWith(applied)
	for _, web := range s.Webs {
		s.pacedDownloads(web, 81, 4096, 20*time.Millisecond)
	}
	d := s.download(81, 10)
	d.mustGoOn(t, "before", 1<<16)
	return s, d
}

// apply runs `director apply` with a new file of these services.
func (s *site) apply(services string, flags ...string) result {
	s.t.Helper()
	file := filepath.Join(s.t.TempDir(), "new.toml")
	if err := os.WriteFile(file, []byte(s.applicable(services)), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return s.ask(append([]string{"apply", file}, flags...)...)
}

// applicable returns the text of the director's configuration file with these services.
func (s *site) applicable(services string) string {
	return withFastPath("director", s.fileWith(services))
}

// mustBeFile checks the services in the configuration file.
func (s *site) mustBeFile(services string) {
	s.t.Helper()
	if got, err := os.ReadFile(s.director.config); err != nil || string(got) != s.applicable(services) {
		s.t.Errorf("the file has %v\n%s\nwant\n%s", err, got, s.applicable(services))
	}
}

// configuration returns what GET /configuration answers, and its ETag.
func (s *site) configuration() (text, etag string) {
	s.t.Helper()
	resp, err := api.Open(s.t.Context(), s.director.socket, "/configuration", 0)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(body), resp.Header.Get("ETag")
}

// TestApply: `director apply` puts a configuration in force and into the file, or refuses it with every fault. No
// download breaks.
func TestApply(t *testing.T) {
	t.Parallel()
	s, downloads := newApplySite(t)
	next := strings.NewReplacer("wrr", "rr", "}, { address = \"10.0.12.2\" }", "}").Replace(applied) +
		"[[service]]\nname = \"dns\"\nvip = \"198.51.100.80\"\nprotocol = \"udp\"\nport = 53\n"
	want := "service \"web\": scheduler wrr -> rr\nservice \"files\": realserver 10.0.12.2: removed\n" +
		"service \"dns\": added: udp 198.51.100.80 port 53, scheduler wlc, 0 realservers\n"
	for _, flags := range [][]string{{"--dry-run"}, nil} {
		got := s.apply(next, flags...)
		if got.code != 0 || got.stdout != want || !strings.Contains(got.stderr, "director: warning: ") {
			t.Errorf("apply %v: exit status %d\n%s%s", flags, got.code, got.stdout, got.stderr)
		}
		if flags != nil {
			s.mustBeFile(applied)
		}
	}
	s.mustBeFile(next)
	downloads.mustGoOn(t, "after apply", 1<<16)
	if info, err := os.Stat(s.director.config); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("the file's mode is %v, %v", info.Mode(), err)
	}
	testkit.Within(t, "the log names the client", soon, func() bool {
		return strings.Contains(s.director.Output(), `msg="apply: service \"web\": scheduler wrr -> rr"`) &&
			strings.Contains(s.director.Output(), `client="uid 0, pid `)
	})
	for _, bad := range []struct {
		services string
		says     []string // a line each
	}{
		{strings.NewReplacer("\"rr\"", "\"lottery\"", "= 80", "= 70000", "10.0.11.2", "10.0.11.256").Replace(next),
			[]string{"lottery", "70000", "10.0.11.256", "10.0.11.256"}},
		{"director.queues = 7\nconnections.max = 2000\n" + next, []string{"queues, connections.max changed"}},
		{"[[service\n", []string{"new.toml:2:"}},
	} {
		for _, flags := range [][]string{nil, {"--force"}, {"--dry-run"}} {
			got := s.apply(bad.services, flags...)
			lines := strings.Split(strings.TrimSuffix(got.stderr, "\n"), "\n")
			if got.code != 1 || got.stdout != "" || len(lines) != len(bad.says) || !strings.Contains(got.stderr,
				"new.toml:") {
				t.Errorf("exit status %d, %d lines; want 1 and %d:\n%s%s", got.code, len(lines), len(bad.says),
					got.stdout, got.stderr)
			}
			for _, word := range bad.says {
				if !strings.Contains(got.stderr, word) {
					t.Errorf("apply does not speak of %q:\n%s", word, got.stderr)
				}
			}
			s.mustBeFile(next)
		}
	}
	if got := s.apply(next); got.code != 0 || got.stdout != "nothing changed\n" {
		t.Errorf("an equal one: exit status %d: %s%s", got.code, got.stdout, got.stderr)
	}
	downloads.mustGoOn(t, "at the end", 1<<16)
	s.mustBeServedBy(80, "web1")
	if list, err := os.ReadDir(filepath.Dir(s.director.config)); err != nil || slices.ContainsFunc(list,
		func(e os.DirEntry) bool { return strings.HasPrefix(e.Name(), ".") }) {
		t.Errorf("beside the file: %v, %v", list, err)
	}
}

// TestApplyUnseen: neither the command nor a PUT overwrites what an editor or another client has written.
func TestApplyUnseen(t *testing.T) {
	t.Parallel()
	s, _ := newApplySite(t)
	put := func(text, ifMatch string) error {
		ctx, cancel := context.WithTimeout(t.Context(), soon)
		defer cancel()
		var a api.Applied
		return api.Put(ctx, s.director.socket, "/configuration", []byte(text), ifMatch, soon, &a)
	}
	text, etag := s.configuration()
	if text != s.applicable(applied) {
		t.Errorf("GET /configuration answers\n%s", text)
	}
	errs := make(chan error)
	for _, scheduler := range []string{"rr", "lc"} {
		go func() { errs <- put(strings.Replace(text, "wrr", scheduler, 1), etag) }()
	}
	s.director.signal(unix.SIGHUP)
	first, second := <-errs, <-errs
	if first != nil {
		first, second = second, first
	}
	if refused := (*api.RefusedError)(nil); first != nil || !errors.As(second, &refused) || refused.Status !=
		http.StatusPreconditionFailed {
		t.Errorf("of two that have seen the same text: %v, %v", first, second)
	}
	edited := "# by an editor\n" + applied
	s.director.configure(s.fileWith(edited))
	for _, flags := range [][]string{nil, {"--dry-run"}, {"--json"}} {
		if got := s.apply(applied, flags...); got.code != 1 || strings.Count(got.stderr, "\n") != 1 ||
			!strings.Contains(got.stderr, "has changed since the director has read it: put it in force by a reload") {
			t.Errorf("apply %v: exit status %d: %s%s", flags, got.code, got.stdout, got.stderr)
		}
	}
	s.mustBeFile(edited)
	if got := s.apply(applied, "--force"); got.code != 0 {
		t.Errorf("apply --force: exit status %d: %s", got.code, got.stderr)
	}
	s.mustBeFile(applied)
	large := exec.Command("sh", "-c", fmt.Sprintf("head -c 17000000 /dev/zero | %s apply - -c %s",
		programPath("director"), s.director.config))
	if got := run(t, s.Director, large); got.code != 2 || !strings.Contains(got.stderr, "larger than 16 MiB") {
		t.Errorf("a large one: exit status %d: %s", got.code, got.stderr)
	}
	if err := put(strings.Repeat("#", 16<<20+1), "*"); err == nil || !strings.Contains(err.Error(), "is larger than") {
		t.Errorf("a large one: %v", err)
	}
}

// TestApplyRealserver: single realservers are added and removed over the control socket. Downloads from a removed one
// go on, and the rest of the file stays.
func TestApplyRealserver(t *testing.T) {
	t.Parallel()
	s, downloads := newApplySite(t)
	d := newDescribedSocket(t, s.director.socket)
	const second = "/realservers/10.0.12.2"
	d.ask(http.StatusOK, http.MethodDelete, "/services/files"+second, "")
	without := strings.Replace(applied, "}, { address = \"10.0.12.2\" }", "}", 1)
	s.mustBeFile(without)
	downloads.mustGoOn(t, "after the removal", 1<<16)
	if st := s.director.balance(); len(st.Services[1].Realservers) != 1 || len(st.Leaving.List) != 1 ||
		st.Leaving.List[0].Active == 0 {
		t.Errorf("the removed realserver has no downloads: %+v", st.Leaving)
	}
	d.ask(http.StatusOK, http.MethodPut, "/services/web"+second, `{"weight": 2}`, "Content-Type", "application/json")
	s.mustBeFile(strings.Replace(without, "} ] # more", "}, { address = \"10.0.12.2\", weight = 2 } ] # more", 1))
	seen := map[string]bool{}
	for range 6 {
		_, server := s.whoAnswers(anyPort(s.Client.Addr), s.at(80))
		seen[server] = true
	}
	if !seen["web1"] || !seen["web2"] {
		t.Errorf("new connections go to %v", seen)
	}
	if changes := s.mustReload(); !slices.Equal(changes, []string{"nothing changed"}) {
		t.Errorf("a reload prints %q", changes)
	}
	downloads.mustGoOn(t, "at the end", 1<<16)
}

// TestApplyKilled kills the director in the middle of an apply: when the new text lies beside the file, and when it has
// become the file. The next start has the former or the new configuration, and all connections.
func TestApplyKilled(t *testing.T) {
	t.Parallel()
	s, downloads := newApplySite(t)
	next := strings.Replace(applied, "wrr", "rr", 1)
	text := []string{s.applicable(applied), s.applicable(next)}
	temp := "." + filepath.Base(s.director.config) + ".vstun-new"
	for i := range long(20, 2, 2) {
		from, to := i%2, 1-i%2
		at := map[int]uint32{0: unix.IN_CREATE, 1: unix.IN_MOVED_TO}[i/2%2]
		happened := watchFolder(t, filepath.Dir(s.director.config), at)
		answered := make(chan error)
		go func() {
			var a api.Applied
			answered <- api.Put(t.Context(), s.director.socket, "/configuration", []byte(text[to]), "*", soon, &a)
		}()
		happened()
		s.director.kill()
		err := <-answered
		got, unread := os.ReadFile(s.director.config)
		if unread != nil || string(got) != text[to] &&
			(string(got) != text[from] || err == nil || at == unix.IN_MOVED_TO) {
			t.Errorf("kill %d: the answer is %v, the file has %v\n%s", i, err, unread, got)
		}
		s.director.start()
		want := map[bool]string{true: "rr", false: "wrr"}[string(got) == text[1]]
		if is := s.director.balance().Services[0].Scheduler; is != want {
			t.Errorf("kill %d: the scheduler is %s, want %s", i, is, want)
		}
		if _, err := os.Lstat(filepath.Join(filepath.Dir(s.director.config), temp)); err == nil {
			t.Errorf("kill %d: %s is left", i, temp)
		}
		downloads.mustGoOn(t, "after the kill", 1<<16)
		s.director.configure(s.fileWith([]string{applied, next}[to]))
		s.mustReload()
	}
}

// watchFolder returns a function that waits for an event in a folder; inotify(7).
func watchFolder(t *testing.T, dir string, event uint32) (happened func()) {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.InotifyAddWatch(fd, dir, event); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		defer unix.Close(fd)
		ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(ready, int(6*soon/time.Millisecond))
		for errors.Is(err, unix.EINTR) {
			n, err = unix.Poll(ready, int(6*soon/time.Millisecond))
		}
		if n != 1 || err != nil {
			t.Fatalf("no event: %v", err)
		}
	}
}

// TestApplyReadOnly: a director that runs where only its socket's folder may be written refuses, in one line.
func TestApplyReadOnly(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, nil)
	s.director = s.prepare(s.Director, "director")
	s.director.configure(s.fileWith(applied))
	if err := os.Mkdir(filepath.Dir(s.director.socket), 0o755); err != nil {
		t.Fatal(err)
	}
	box := &sandbox{Writable: []string{"/proc/sys/net", filepath.Dir(s.director.socket)}}
	s.director.startAs(box.command(t, exec.Command(programPath("director"), "run", "-c", s.director.config)))
	got := s.apply(strings.Replace(applied, "wrr", "rr", 1))
	if got.code != 1 || strings.Count(got.stderr, "\n") != 1 || !strings.Contains(got.stderr, "read-only file system") {
		t.Errorf("exit status %d: %s", got.code, got.stderr)
	}
	s.mustBeFile(applied)
	if is := s.director.balance().Services[0].Scheduler; is != "wrr" {
		t.Errorf("the scheduler is %s", is)
	}
	if got := s.apply(applied); got.code != 0 || got.stdout != "nothing changed\n" {
		t.Errorf("an equal one: exit status %d: %s", got.code, got.stderr)
	}
}

// TestApplyInUnit: in systemd's unit the configuration is read-only, unless the operator does what the manual says.
func TestApplyInUnit(t *testing.T) {
	t.Parallel()
	u := newUnitSite(t, tun, 1)
	b := u.systemd
	u.configure("")
	b.run("systemctl", "start", directorUnit)
	apply := func(more string) (string, error) {
		b.write("/root/new.toml", more+b.run("cat", "/etc/vstun/director.toml"))
		return b.try("director", "apply", "/root/new.toml")
	}
	out, err := apply("# new\n")
	if err == nil || strings.Count(out, "\n") != 1 || !strings.Contains(out, "permission denied") ||
		!strings.Contains(out, "StateDirectory=") {
		t.Errorf("apply to a read-only file: %v\n%s", err, out)
	}
	for command := range strings.Lines(u.manualCommands()) {
		b.run("sh", "-c", strings.TrimSpace(command))
	}
	pid := b.property(directorUnit, "MainPID")
	if out, err = apply("# new\n"); err != nil || out != "nothing changed but the text of /etc/vstun/director.toml\n" {
		t.Errorf("apply: %v\n%s", err, out)
	}
	if out := b.run("head", "-n", "1", "/etc/vstun/director.toml"); out != "# new\n" {
		t.Errorf("the file begins with %q", out)
	}
	owner := strings.TrimSpace(b.run("stat", "-c", "%u", "/proc/"+pid))
	if out := b.run("stat", "-c", "%a %u", "/var/lib/vstun/director.toml", "/etc/vstun/director.toml"); owner == "0" ||
		out != "644 "+owner+"\n777 0\n" {
		t.Errorf("mode and owner of the file and the link, for a director of user %s:\n%s", owner, out)
	}
	needTool(t, "curl", "curl")
	out = b.run("bash", "-c", `curl -sS --unix-socket /run/vstun/director.sock \
		http://director/services/count/realservers/10.0.11.2 -T - <<<'{"weight": 3}'`)
	if !strings.Contains(out, `"text": "service \"count\": realserver 10.0.11.2: weight 1 -> 3"`) {
		t.Errorf("curl: %s", out)
	}
	b.run("systemctl", "reload", directorUnit)
	b.run("systemctl", "restart", directorUnit)
	if now := b.property(directorUnit, "MainPID"); now == pid {
		t.Error("no restart")
	}
	if out, err = apply("# newer\n"); err != nil {
		t.Errorf("apply after a restart: %v\n%s", err, out)
	}
}

// manualCommands returns the commands by which the manual lets the unit's configuration be written.
func (u *unitSite) manualCommands() (all string) {
	u.t.Helper()
	text, err := os.ReadFile("../../director/operating.md")
	if err != nil {
		u.t.Fatal(err)
	}
	_, text2, ok := strings.Cut(string(text), "# mkdir -p /etc/systemd/system/vstun-director.service.d\n")
	if !ok {
		u.t.Fatal("the manual has no such commands")
	}
	block, _, _ := strings.Cut(text2, "```")
	all = "mkdir -p /etc/systemd/system/vstun-director.service.d\n"
	for line := range strings.Lines(block) {
		if command, ok := strings.CutPrefix(line, "# "); ok {
			all += command
		}
	}
	return all
}
