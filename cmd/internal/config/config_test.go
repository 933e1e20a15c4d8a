package config_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vstun/cmd/internal/config"
)

func features() config.Features {
	return config.Features{Schedulers: []string{"rr", "wrr", "wlc", "sh", "mh"}}
}

// wantFaults fails unless err is of type *config.Errors and has exactly these lines, less the "x.toml: " before each.
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
		line, ok := strings.CutPrefix(line, "x.toml: ")
		if !ok {
			t.Errorf("line without the file's name: %s", line)
		}
		got = append(got, line)
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
	_, errDirector := config.LoadDirector(path, features())
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
			if !strings.HasPrefix(line, path+": ") {
				t.Errorf("%q does not begin with the path", line)
			}
		}
	}
}

func TestLoadGood(t *testing.T) {
	d, err := config.LoadDirector("testdata/director.toml", features())
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
	_, err := config.LoadDirector(missing, features())
	var faults *config.Errors
	if !errors.Is(err, fs.ErrNotExist) || errors.As(err, &faults) || !strings.Contains(err.Error(), missing) {
		t.Errorf("missing file: got %v", err)
	}
	if _, err := config.LoadRealserver(t.TempDir()); err == nil || errors.As(err, &faults) {
		t.Errorf("directory: got %v", err)
	}
	if _, err := config.LoadRealserver("/dev/zero"); err == nil || !strings.Contains(err.Error(), "larger than 16 MiB") {
		t.Errorf("endless file: got %v", err)
	}
}

func TestSyntax(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"value missing", "[director]\ntun =\n", "line 2, column 6: expected value but found '\\n' instead"},
		{"key twice", "a = 1\na = 2\n", "line 2, column 7: Key 'a' has already been defined."},
		{"key with a newline twice", "\"a\\nb\" = 1\n\"a\\nb\" = 2\n", "line 2, column 2: Key '\"a\\nb\"' has already been defined."},
		{"brackets without end", "a = " + strings.Repeat("[{a=", 501), "more than 1000 brackets are open at once: close them"},
		{"not text", "a = \"\xff\"\n", "line 1, column 5: invalid UTF-8 byte: 0xff"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := config.ParseDirector("x.toml", []byte(c.text), features())
			wantFaults(t, err, c.want)
			_, err = config.ParseRealserver("x.toml", []byte(c.text))
			wantFaults(t, err, c.want)
		})
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

// TestFIFO: a FIFO that nobody writes to is an empty file, not a program that hangs at a reload.
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
		{"director", "[director", "", "line 1"},
		{"realserver", "", "/run/vstun/realserver.sock", ""},
		{"realserver", "[realserver]\ncontrol = \"/tmp/a.sock\"\nvips = 1", "/tmp/a.sock", ""},
		{"realserver", "realserver = 1", "", "want a [realserver] table"},
	} {
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := config.ControlSocket(path, c.program)
		var faults *config.Errors
		if got != c.want || (err != nil) != (c.fault != "") || err != nil && (!errors.As(err, &faults) || !strings.Contains(err.Error(), c.fault)) {
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
	if _, err := config.LoadDirector(path, features()); err == nil || !strings.Contains(err.Error(), "has no end") {
		t.Errorf("got %v", err)
	}
}
