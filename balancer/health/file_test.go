package health

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vstun/testdata/testkit"
)

// TestFile has the numbers of files, and keepalived's results for them (process_track_file in its track_file.c).
func TestFile(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	const own = "not checked, for a fault of this machine: "
	for name, c := range map[string]struct {
		text    string
		factor  int
		reverse bool
		offset  int
		ok      bool
		reason  string
	}{
		"number":       {"10\n", 1, false, 10, true, " has 10: weight +10"},
		"negative":     {" -3", 1, false, -3, true, " has -3: weight -3"},
		"plus":         {"+3", 1, false, 3, true, " has 3: weight +3"},
		"times":        {"3", -2, false, -6, true, " has 3: weight -6"},
		"reverse":      {"3", 2, true, -6, true, " has 3: weight -6"},
		"hexadecimal":  {"0x10", 1, false, 16, true, " has 16: weight +16"},
		"octal":        {"010", 1, false, 8, true, " has 8: weight +8"},
		"zero":         {"0", 1, false, 0, true, " has 0: weight +0"},
		"and a remark": {"5 of 7\nand so on", 1, false, 5, true, " has 5: weight +5"},
		"empty":        {"", 1, false, 0, true, " has 0: weight +0"},
		"white space":  {" \n", 1, false, 0, true, " has 0: weight +0"},
		"a VRRP failure": {"-254", 1, false, -254, true, " has -254: weight " +
			"-254"}, // of a VRRP instance, not of a realserver
		"least":              {"-2147483647", 1, false, -2147483647, true, " has -2147483647: weight -2147483647"},
		"failure":            {"-2147483648", 1, false, 0, false, " has -2147483648, which times 1 is a failure"},
		"failure, reverse":   {"2147483648", 1, true, 0, false, " has 2147483648, which times -1 is a failure"},
		"failure by product": {"-2", 2147483647, false, 0, false, " has -2, which times 2147483647 is a failure"},
		"bounded":            {"2", 2147483647, false, 2147483647, true, " has 2: weight +2147483647"},
		"state up":           {"0", 0, false, 0, true, " has 0"},
		"state down":         {"1", 0, false, 0, false, " has 1"},
		"reverse state up":   {"1", 0, true, 0, true, " has 1"},
		"reverse state down": {"0", 0, true, 0, false, " has 0"},
		"no number":          {"drain", 1, false, 0, false, own},
		"too large":          {"2147483649", 1, false, 0, false, own},
		"much too large":     {strings.Repeat("9", 1000), 1, false, 0, false, own},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			reason, offset, err := attempt(t.Context(), File{Path: path, Factor: c.factor, Reverse: c.reverse},
				endpoint{}, patience)
			want := path + c.reason
			if c.reason == own {
				want = own
			}
			if (err == nil) != c.ok || offset != c.offset || !strings.HasPrefix(reason, want) || c.reason != own &&
				reason != want || isLocal(err) != (c.reason == own) {
				t.Errorf("offset %d, %v, %q; want %d, %v, %q", offset, err, reason, c.offset, c.ok, want)
			}
		})
	}
	for name, path := range map[string]string{"missing": filepath.Join(dir, "missing"), "a FIFO without writer": fifo} {
		reason, offset, err := attempt(t.Context(), File{Path: path, Factor: 1}, endpoint{}, patience)
		if err != nil || offset != 0 || reason != path+" has 0: weight +0" {
			t.Errorf("%s: offset %d, %v, %q", name, offset, err, reason)
		}
	}
	for name, path := range map[string]string{"a directory": dir, "a device": "/dev/zero"} {
		if reason, _, err := attempt(t.Context(), File{Path: path, Factor: 1}, endpoint{}, patience); !isLocal(err) {
			t.Errorf("%s: %v, %q, want a fault of this machine", name, err, reason)
		}
	}
}

// TestOffsets: a file's number is the offset of all subjects that share the check. Each change is reported. The offset
// stays when the file cannot be read, and over a reload.
func TestOffsets(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "weight")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	a := netip.MustParseAddr("127.0.0.1")
	subject := func(service string, factor int) Subject {
		return Subject{Service: service, Realserver: plain(a), Targets: []netip.Addr{a}, Path: Direct{}, Way: "direct",
			Check: &Check{Probe: File{Path: path, Factor: factor}, Interval: 20 * time.Millisecond, Timeout: patience,
				Rise: 1, Fall: 1, Up: true}}
	}
	var mu sync.Mutex
	told := map[string][]int{}
	m := New(func(list []Change) {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range list {
			if c.Weighed {
				told[c.Service] = append(told[c.Service], c.Offset)
			}
		}
	})
	offset := func(i int) int { return m.States()[i].Offset }
	mustSet(t, m, subject("web", 1), subject("mail", 1), subject("half", -1))
	write("5")
	run(t, m)
	testkit.Eventually(t, "5", func() bool { return offset(0) == 5 && offset(1) == 5 && offset(2) == -5 })
	write("nonsense")
	testkit.Eventually(t, "the file is looked at", func() bool {
		return strings.Contains(m.States()[0].Reason, "nonsense")
	})
	if s := m.States()[0]; s.Offset != 5 || !s.Up {
		t.Errorf("without a number it is %+v", s)
	}
	mustSet(t, m, withCheck(subject("web", 1), func(c *Check) { c.Interval = time.Hour }), subject("mail", 1))
	if s := m.States(); s[0].Offset != 5 || s[1].Offset != 5 {
		t.Errorf("after a reload it is %+v", s)
	}
	write("-2147483648")
	testkit.Eventually(t, "down", func() bool { return !m.States()[1].Up })
	write("-7")
	testkit.Eventually(t, "up with -7", func() bool { return m.States()[1].Up && offset(1) == -7 })
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "0 without the file", func() bool { return offset(1) == 0 })
	mustSet(t, m, tcpSubject(closed(t), time.Hour))
	if offset(0) != 0 {
		t.Error("a check of another type keeps the offset")
	}
	testkit.Eventually(t, "all is told", func() bool {
		mu.Lock()
		defer mu.Unlock()
		mail := told["mail"]
		return len(mail) == 3 && mail[0] == 5 && mail[1] == -7 && mail[2] == 0
	})
}
