package config_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vstun/balancer"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/words"
)

// schedulers is the list of all schedulers as a fault has it.
var schedulers = words.OneOf(balancer.Schedulers())

// position is what each line of Errors begins with.
var position = regexp.MustCompile(`^x\.toml:[1-9][0-9]*(:[1-9][0-9]*)?: `)

// wantFaults fails unless err is of type *config.Errors and has exactly these lines, without the "x.toml:LINE: " before
// each.
func wantFaults(t *testing.T, err error, want ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("accepted, want:\n%s", strings.Join(want, "\n"))
	}
	var faults *config.Errors
	if !errors.As(err, &faults) {
		t.Fatalf("error of type %T: %v", err, err)
	}
	var got []string
	for _, line := range *faults {
		if !position.MatchString(line) {
			t.Errorf("line without file and line: %s", line)
		}
		got = append(got, position.ReplaceAllString(line, ""))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("faults (-want +got):\n%s", diff)
	}
}

func readTestdata(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestLoadNamesTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "my.toml")
	if err := os.WriteFile(path, []byte("bogus = 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, errDirector := config.LoadDirector(path)
	_, errRealserver := config.LoadRealserver(path)
	for _, err := range []error{errDirector, errRealserver} {
		var faults *config.Errors
		if !errors.As(err, &faults) {
			t.Fatalf("error of type %T: %v", err, err)
		}
		if len(*faults) != 2 || err.Error() != (*faults)[0]+"\n"+(*faults)[1] {
			t.Errorf("want two lines, got %q", err)
		}
		for _, line := range *faults {
			if !strings.HasPrefix(line, path+":1: ") {
				t.Errorf("%q does not begin with the path", line)
			}
		}
	}
}

func TestLoadGood(t *testing.T) {
	d, err := config.LoadDirector("testdata/director.toml")
	if err != nil {
		t.Fatal(err)
	}
	if d.TUN != "vip0" {
		t.Errorf("TUN is %q", d.TUN)
	}
	r, err := config.LoadRealserver("testdata/realserver.toml")
	if err != nil {
		t.Fatal(err)
	}
	if r.TUN != "vip0" {
		t.Errorf("TUN is %q", r.TUN)
	}
}

func TestLoadUnreadable(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "none.toml")
	_, err := config.LoadDirector(missing)
	var faults *config.Errors
	if !errors.Is(err, fs.ErrNotExist) || errors.As(err, &faults) || !strings.Contains(err.Error(), missing) {
		t.Errorf("missing file: got %v", err)
	}
	if _, err := config.LoadRealserver(t.TempDir()); err == nil || errors.As(err, &faults) {
		t.Errorf("directory: got %v", err)
	}
	if _, err := config.LoadRealserver("/dev/zero"); err == nil || !strings.Contains(err.Error(),
		"larger than 16 MiB") {
		t.Errorf("endless file: got %v", err)
	}
}

// TestSyntax: a fault that the TOML parser finds has the form of every other fault, and names line and column.
func TestSyntax(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"[director]\ntun =\n", `2:6: director.tun: the value is missing: want one behind =`},
		{"tun = # comment\n", `1:7: tun: the value is missing: want one behind =`},
		{"tun = ", `1:6: tun: the value is missing: want one behind =`},
		{"weight = -\n", `1:10: weight: the value is missing: want one behind =`},
		{"name = web\n", `1:8: name: web is not a value: strings need quotes: want "web"`},
		{"name = true1\n", `1:12: true1 is not a value: strings need quotes: want "true1"`},
		{"offload = True\n", `1:11: offload: True is not a value: want true`},
		{"password = hunter2\n", `1:12: password: its value is not a string: want it in quotes, "…"`},
		{"password = 123hunter\n", `1:15: password: its value is not a string: want it in quotes, "…"`},
		{"password = 0123456\n", `1:12: password: its value is not a string: want it in quotes, "…"`},
		{"vip = 198.51.100.80\n", `1:7: vip: 198.51.100.80 is not a value: strings need quotes: want "198.51.100.80"`},
		{"vip = 2001:db8::1\n", `1:7: vip: 2001:db8::1 is not a value: strings need quotes: want "2001:db8::1"`},
		{"port = 8000-8099\n", `1:8: port: 8000-8099 is not a value: strings need quotes: want "8000-8099"`},
		{"interval = 5s\n", `1:13: 5s is not a value: strings need quotes: want "5s"`},
		{"vips = [\n \"a\",\n web]\n", `3:2: vips: web is not a value: strings need quotes: want "web"`},
		{"path = /a/b\n", `1:8: path: /a/b is not a value: strings need quotes: want "/a/b"`},
		{"check = { type = http }\n", `1:18: check.type: http is not a value: strings need quotes: want "http"`},
		{"port = 80, 443\n", `1:10: more stands behind the value: want one value a line, several in an array: [1, 2]`},
		{"port = [80 443]\n", `1:12: port: no comma stands between two values: want [1, 2] or { a = 1, b = 2 }`},
		{"a = 1\na = 2\n", `2:1: a: is there twice: want it once`},
		{"[[service]]\nvip = 1\nvip = 2\n", `3:1: service.vip: is there twice: want it once`},
		{"[director]\n[director]\n", `2:2: director: is there twice: want it once`},
		{"\"a\\nb\" = 1\n\"a\\nb\" = 2\n", `2:2: "a\nb": is there twice: want it once`},
		{"tun\n", `1:4: neither a key nor a table: want KEY = VALUE or [TABLE]`},
		{"tun: \"vs0\"\n", `1:4: neither a key nor a table: want KEY = VALUE or [TABLE]`},
		{"= 3\n", `1:1: the key is missing: want KEY = VALUE`},
		{"[director\n", `1:10: the table's name has no end, or is empty: want [TABLE] or [[TABLE]]`},
		{"tun = \"vs0\n", `1:11: tun: the string has no end on its line: close its quotes`},
		{"tun = \"vs0", `1:10: tun: the file ends in the middle of a value: close its quotes or brackets`},
		{"check = { type = \"tcp\"", `1:22: check.type: the file ends in the middle of a value: close its quotes or ` +
			`brackets`},
		{"max = 0123\n", `1:7: max: invalid integer "0123": cannot have leading zeroes: want TOML (https://toml.io)`},
		{"a = 1\n\x00", `1:6: TOML files cannot contain control characters: '0x00': want TOML (https://toml.io)`},
		{"a = \"\xff\"\n", `1:5: a: invalid UTF-8 byte: 0xff: want TOML (https://toml.io)`},
		{"\nb = 1\n" + strings.Repeat("a.", 16) + "a = 1", `3: a value is in more than 16 tables and ` +
			`arrays: want fewer dots and brackets`},
		{"[" + strings.Repeat("a.", 10_000) + "a]", `1: a value is in more than 16 tables and arrays: want ` +
			`fewer dots and brackets`},
		{"[a.b]\nc = " + strings.Repeat("[{a=", 8) + "1", `2: a value is in more than 16 tables and ` +
			`arrays: want fewer dots and brackets`},
		{"a = " + strings.Repeat("[{a=", 501), `1: more than 1000 brackets are open at once: close them`},
	} {
		_, errDirector := config.ParseDirector("x.toml", []byte(c.text))
		_, errRealserver := config.ParseRealserver("x.toml", []byte(c.text))
		for _, err := range []error{errDirector, errRealserver} {
			if err == nil || err.Error() != "x.toml:"+c.want {
				t.Errorf("%q: got %v, want x.toml:%s", c.text, err, c.want)
			}
		}
	}
}

func TestPortRangeString(t *testing.T) {
	for want, r := range map[string]config.PortRange{
		"80":        {First: 80, Last: 80},
		"8000-8099": {First: 8000, Last: 8099},
		"1-65535":   {First: 1, Last: 65535},
		"0":         {},
	} {
		if got := r.String(); got != want {
			t.Errorf("%+v: got %s, want %s", r, got, want)
		}
	}
}

// TestFIFO: a FIFO without a writer is an empty file, not a program that hangs at a reload.
func TestFIFO(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := config.LoadRealserver(path); err == nil {
		t.Error("an empty configuration is accepted")
	}
}

func TestControlSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.toml")
	for _, c := range []struct{ program, text, want, fault string }{
		{"director", "", "/run/vstun/director.sock", ""},
		{"director", "[director]\ncontrol = \"/tmp/a.sock\"\nqueues = \"many\"\ncolour = 1", "/tmp/a.sock", ""},
		{"director", "[director]\ncontrol = 1", "", "control: 1 is of the wrong type"},
		{"director", "director = 1", "", "want a [director] table"},
		{"director", "[director", "", "x.toml:1:9: "},
		{"realserver", "", "/run/vstun/realserver.sock", ""},
		{"realserver", "[realserver]\ncontrol = \"/tmp/a.sock\"\nvips = 1", "/tmp/a.sock", ""},
		{"realserver", "realserver = 1", "", "want a [realserver] table"},
	} {
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := config.ControlSocket(path, c.program)
		var faults *config.Errors
		if got != c.want || (err != nil) != (c.fault != "") || err != nil && (!errors.As(err, &faults) ||
			!strings.Contains(err.Error(), c.fault)) {
			t.Errorf("%q: got %q, %v", c.text, got, err)
		}
	}
	var faults *config.Errors
	if _, err := config.ControlSocket(path+"x", "director"); err == nil || errors.As(err, &faults) {
		t.Errorf("a missing file: %v", err)
	}
}

// TestEndlessFile: a FIFO whose writer is silent must not hold up the program.
func TestEndlessFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	writer, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	if _, err := config.LoadDirector(path); err == nil || !strings.Contains(err.Error(), "has no end") {
		t.Errorf("got %v", err)
	}
}
