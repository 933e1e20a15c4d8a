package daemon

import (
	"os"
	"os/exec"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestStore sends descriptors to the service manager, not too many at once, and lets it forget them.
func TestStore(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := Store("vs0", []int{0}); err != nil {
		t.Error(err)
	}
	l := serviceManager(t)
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	fds := make([]int, storedAtOnce+2)
	for i := range fds {
		fds[i] = pipe[i%2]
	}
	if err := Store("vs0", fds); err != nil {
		t.Fatal(err)
	}
	if err := Forget("vs0"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct {
		text string
		fds  int
	}{{"FDSTORE=1\nFDPOLL=0\nFDNAME=vs0", storedAtOnce}, {"FDSTORE=1\nFDPOLL=0\nFDNAME=vs0", 2},
		{"FDSTOREREMOVE=1\nFDNAME=vs0", 0}} {
		text, oob := make([]byte, 100), make([]byte, 1<<12)
		n, k, _, _, err := l.ReadMsgUnix(text, oob)
		if err != nil {
			t.Fatal(err)
		}
		var got []int
		messages, err := unix.ParseSocketControlMessage(oob[:k])
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range messages {
			if got, err = unix.ParseUnixRights(&m); err != nil {
				t.Fatal(err)
			}
		}
		if string(text[:n]) != want.text || len(got) != want.fds {
			t.Errorf("%q with %d descriptors, want %q with %d", text[:n], len(got), want.text, want.fds)
		}
		for i, fd := range got {
			var a, b unix.Stat_t
			if err := unix.Fstat(fd, &a); err != nil || unix.Fstat(pipe[i%2], &b) != nil || a.Ino != b.Ino {
				t.Errorf("descriptor %d is another file: %v", i, err)
			}
			unix.Close(fd)
		}
	}
}

// TestTakeStored takes descriptors in a child process, which must not pass them on. Those for another process are not
// taken.
func TestTakeStored(t *testing.T) {
	const child = "VSTUN_TAKE_STORED"
	if os.Getenv(child) != "" {
		s := TakeStored()
		if want := (Stored{"vs0": {3, 5}, "vs0-local": {4}, "": {6}}); !reflect.DeepEqual(s, want) {
			t.Fatalf("%v, want %v", s, want)
		}
		for fd := 3; fd <= 6; fd++ {
			if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("descriptor %d: %#x, %v", fd, flags, err)
			}
		}
		for _, e := range os.Environ() {
			if strings.HasPrefix(e, "LISTEN_") {
				t.Errorf("programs would get %s", e)
			}
		}
		if again := TakeStored(); len(again) > 0 {
			t.Errorf("again: %v", again)
		}
		s.Close()
		if _, err := unix.FcntlInt(3, unix.F_GETFD, 0); err != unix.EBADF || len(s) > 0 {
			t.Errorf("not closed: %v", err)
		}
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, self, "-test.run=^TestTakeStored$")
	cmd.Env = append(os.Environ(), child+"=1", "LISTEN_FDS=4", "LISTEN_FDNAMES=vs0:vs0-local:vs0")
	for range 4 {
		f, err := os.Open("/dev/null")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}

	for name, value := range map[string]string{"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "vs0"} {
		t.Setenv(name, value)
	}
	if s := TakeStored(); s != nil {
		t.Errorf("those of process 1: %v", s)
	}
}
