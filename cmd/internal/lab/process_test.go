package lab

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vstun/testdata/testkit"
)

func TestProcess(t *testing.T) {
	l := newLab(t, "process")
	var want string
	if err := l.Director.Do(func() (err error) {
		want, err = os.Readlink("/proc/thread-self/ns/net")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	out, err := l.Director.Run(exec.Command("readlink", "/proc/self/ns/net"))
	if err != nil || strings.TrimSpace(string(out)) != want {
		t.Errorf("a child is in %q, %v; want %q", out, err, want)
	}

	_, err = l.Director.Run(exec.Command("sh", "-c", "echo fine; echo wrong >&2; exit 3"))
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 || !strings.Contains(err.Error(), "wrong") {
		t.Errorf("Run of a failing command: %v", err)
	}

	p, err := l.Director.Start(exec.Command("sleep", "600"))
	if err != nil {
		t.Fatal(err)
	}
	_ = p.Signal(unix.SIGKILL)
	if err := p.Wait(); err == nil {
		t.Error("Wait of a killed process returned nil")
	}
	if err := p.Signal(unix.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("Signal to an ended process: %v", err)
	}

	if _, err := l.Director.Start(exec.Command("/nonexistent")); err == nil || !strings.Contains(err.Error(),
		"director") {
		t.Errorf("Start of a program that is not there: %v", err)
	}
}

func TestStop(t *testing.T) {
	l := newLab(t, "stop")
	p, err := l.Client.Start(exec.Command("sh", "-c", `trap 'echo bye; exit 0' TERM; echo up; sleep 600 & wait`))
	if err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "up", func() bool { return p.Output() == "up\n" })
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	if got := p.Output(); got != "up\nbye\n" {
		t.Errorf("output %q", got)
	}
	if err := p.Stop(); err != nil {
		t.Errorf("second Stop: %v", err)
	}
}

// Close ends children and grandchildren, also if they ignore SIGTERM. Its error names those that it had to kill.
func TestCloseEndsProcesses(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to make network namespaces")
	}
	defer func(d time.Duration) { grace = d }(grace)
	grace = time.Second
	l, err := New(Spec{Prefix: prefix("close"), Webs: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	stubborn, err := l.Webs[0].Start(exec.Command("sh", "-c", `trap '' TERM; sleep 600 & echo $!; wait`))
	if err != nil {
		t.Fatal(err)
	}
	meek, err := l.Client.Start(exec.Command("sleep", "600"))
	if err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "the grandchild's number is there", func() bool {
		return strings.HasSuffix(stubborn.Output(), "\n")
	})
	grandchild, err := strconv.Atoi(strings.TrimSpace(stubborn.Output()))
	if err != nil {
		t.Fatal(err)
	}
	pids := []int{stubborn.Pid(), grandchild, meek.Pid()}
	for _, pid := range pids {
		if !alive(pid) {
			t.Errorf("process %d does not run before Close", pid)
		}
	}

	err = l.Close()
	if !errors.Is(err, ErrKilled) || !strings.Contains(err.Error(), "web1: sh") || strings.Contains(err.Error(),
		"sleep") {
		t.Errorf("Close: %v, want an error about web1's sh only", err)
	}
	if again := l.Close(); again != err {
		t.Errorf("second Close: %v, first: %v", again, err)
	}
	for _, pid := range pids {
		testkit.Eventually(t, "process is gone", func() bool { return !alive(pid) })
	}
	if left := namespaces(t, prefix("close")); len(left) > 0 {
		t.Errorf("Close left %v", left)
	}
	if _, err := l.Client.Start(exec.Command("true")); err == nil {
		t.Error("Start in a closed lab succeeded")
	}
}

func TestTail(t *testing.T) {
	var out tail
	var all []byte
	for i := 0; len(all) < 4*tailSize; i++ {
		line := []byte(strconv.Itoa(i) + "\n")
		all = append(all, line...)
		if _, err := out.Write(line); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := out.String(), string(all[len(all)-tailSize:]); got != want {
		t.Errorf("got %d bytes that end in %q, want %d that end in %q", len(got), got[len(got)-20:], len(want),
			want[len(want)-20:])
	}
}
