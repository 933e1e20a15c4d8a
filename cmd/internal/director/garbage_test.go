package director

import (
	"runtime"
	"runtime/debug"
	"testing"
)

// TestReloadRaisesMemoryLimit: after a reload the memory that is in use by then has room for garbage, and garbage has
// raised no limit.
func TestReloadRaisesMemoryLimit(t *testing.T) {
	t.Setenv("GOMEMLIMIT", "")
	before := debug.SetMemoryLimit(-1)
	defer debug.SetMemoryLimit(before)
	d := operate(t, running(), nil)
	limit := func() int64 {
		t.Helper()
		if _, _, err := d.configure(running()); err != nil {
			t.Fatal(err)
		}
		return debug.SetMemoryLimit(-1)
	}
	const size, slack = 64 << 20, 16 << 20
	first := limit()
	tunnels := make([]byte, size)
	second := limit()
	runtime.KeepAlive(tunnels)
	tunnels = nil
	third := limit()
	if second-first < size-slack || third-first > slack {
		t.Errorf("limits %d, with %d bytes more %d, without %d", first, size, second, third)
	}
}
